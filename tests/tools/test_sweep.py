"""Every combination of the values given to a script's flags: what is planned and refused, and the
command, with a script that only pretends to train."""

import re
import shlex
from pathlib import Path

import pytest

from common.errors import UserError
from support.pretender import make_pretender
from tools import jobs, sweep


@pytest.fixture
def planned(monkeypatch):
    """What a sweep would train, by the names of the runs: the words after the script's name."""
    found = {}
    monkeypatch.setattr(jobs, "train_missing", lambda jobs, out, at_once: found.update(jobs))
    monkeypatch.setattr(jobs, "make_table", lambda *_: "")

    def plan(words: str) -> dict[str, str]:
        found.clear()
        sweep.main(shlex.split(words))
        return {folder.name: shlex.join(words[1:]) for folder, words in found.items()}

    return plan


def test_every_combination_is_planned_seed_by_seed_on_the_tuning_prompts(planned):
    names = planned("ctwa --lr 3e-5 1e-4 --kl_coef 0 1e-3 --seeds 2 --steps=7 --jobs 1")
    settings = [f"lr{lr}-kl_coef{kl}-steps-7" for lr in ("3e-5", "1e-4") for kl in ("0", "1e-3")]
    assert list(names) == [f"ctwa-{setting}-s{seed}" for seed in (1, 2) for setting in settings]
    first = "--seed 1 --eval-split tune --lr 3e-5 --kl_coef 0 --steps=7"
    assert names["ctwa-lr3e-5-kl_coef0-steps-7-s1"] == first


@pytest.mark.parametrize(
    ("flag", "settings"),
    [
        ('--weights "2 1 1" "1 1 1"', ["--weights 2 1 1", "--weights 1 1 1"]),
        ("--weights 2 1 1 --lr 1 2", ["--weights 2 1 1 --lr 1", "--weights 2 1 1 --lr 2"]),
        ("--normalize false true", ["--no-normalize", "--normalize"]),
        ("--no-normalize --lr 1 2", ["--no-normalize --lr 1", "--no-normalize --lr 2"]),
        ("--eval-split test --lr 1 2", ["--eval-split test --lr 1", "--eval-split test --lr 2"]),
        ("--model 'my models/a' b", ["--model 'my models/a'", "--model b"]),
        ("--rewards a:b 'my dir/r.py:f' --lr 1 2", ["--rewards a:b 'my dir/r.py:f' --lr 1"]),
        ("--rewards \"a:b 'x y:f'\" c:d", ["--rewards a:b 'x y:f'", "--rewards c:d"]),
    ],
)
def test_what_the_values_of_a_flag_are(flag, settings, planned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my dir").mkdir()
    Path("my dir/r.py").touch()
    script = "mgda" if "normalize" in flag else "linear"
    found = [words.removeprefix("--seed 1 --eval-split tune ") for words in
             planned(f"{script} {flag}").values()]  # fmt: skip
    assert found[: len(settings)] == settings
    assert len(found) == 2


def test_settings_that_differ_in_a_sign_are_two_runs(planned):
    assert len(planned('ctwa --cov-targets ".1 .08 .08" "-.1 .08 .08" ".1 -.08 .08"')) == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "sweep: '' is none of ctwa"),
        ("ctw --lr 1 2", "sweep: 'ctw' is none of ctwa"),
        ("ctwa foo --lr 1 2", "sweep: 'ctwa foo' is none of"),
        ("ctwa", "sweep: give a flag several values"),
        ("ctwa --lr 1e-4 --weights 2 1 1", "sweep: give a flag several values"),
        ("ctwa --lr 1e-4 0.0001", "would be two runs"),
        ("ctwa --micro-batch-tokens 512 1024", "would be two runs"),
        ("ctwa --lr -1 1", "--lr -1.0 must be at least 0"),
        ("ctwa --seed 1 2", "each run has its own; --seeds says how many"),
        ("ctwa --lr 1 2 --jobs -1", "--jobs -1 must be at least 1"),
        ("ctwa --lr 1 2 --seeds 0", "--seeds 0 must be at least 1"),
        # what the script itself does not take is told by tyro: exit code 2
        ("ctwa --lrr 1 2", "2"),
        ("ctwa --lr 1 x", "2"),
        ("ctwa --lr 1 2 --steps", "2"),
        ("mgda --normalize maybe true", "2"),
    ],
)
def test_a_sweep_refuses(words, told, planned):
    with pytest.raises((UserError, SystemExit), match=re.escape(told)):
        planned(words)


def test_a_sweep_is_tabled_beside_what_was_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script = make_pretender(tmp_path / "fake")
    monkeypatch.setattr(jobs, "algorithms", lambda: {"linear": script})
    monkeypatch.setattr("tools.leaderboard.compare", lambda runs, out: None)
    words = ["linear", "--steps", "4", "--lr", "1e-4", "3e-5"]
    sweep.main([*words, "--dry-run"])
    told = "--lr 3e-5 --out results/sweep-linear/runs/linear-steps4-lr3e-5-s1"
    assert told in capsys.readouterr().out
    assert not Path("results").exists()
    sweep.main(words)
    table = Path("results/sweep-linear/table.md").read_text()
    assert table in capsys.readouterr().out
    assert re.findall(r"^\| (linear lr \S+) \| 1 \|", table, re.M) == [
        "linear lr 1e-4",
        "linear lr 3e-5",
    ]
    sweep.main(["linear", "--steps", "4", "--kl-coef", "0", "0.5"])  # another question
    table = Path("results/sweep-linear/table.md").read_text()
    assert len(re.findall(r"^\| linear .*\| 1 \|", table, re.M)) == 4
