"""Every combination of the values given to a script's flags: what is planned and refused, and a small real sweep."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from tools.sweep import divided, main, plan
from common.errors import UserError
from support.running import SMALL, train


def planned(words: str, seeds: int = 1):
    name, own, given = divided(shlex.split(words))
    assert own == []
    return plan(Path(f"algos/{name}.py"), import_module(f"algos.{name}").Args, given, seeds, Path("r"))


def test_the_words_are_parted_into_name_own_flags_and_the_scripts():
    words = "ctwa --lr 3e-5 1e-4 --seeds 2 --kl_coef=0 1e-3 --dry-run --out o --normalize --help"
    name, own, given = divided(words.split())
    assert (name, own) == ("ctwa", ["--seeds", "2", "--dry-run", "--out", "o", "--help"])
    assert given == {"lr": ["3e-5", "1e-4"], "kl-coef": ["0", "1e-3"], "normalize": []}


def test_the_plan_is_every_combination_on_the_tuning_prompts():
    jobs = planned("ctwa --lr 3e-5 1e-4 --kl-coef 0 1e-3 --steps 7", seeds=2)
    settings = ["kl-coef0-lr3e-5", "kl-coef0.001-lr3e-5", "kl-coef0-lr1e-4", "kl-coef0.001-lr1e-4"]
    assert [job.name for job in jobs] == [f"ctwa-steps7-{setting}-s{seed}" for seed in (1, 2) for setting in settings]
    assert jobs[0].argv == ["--eval-split", "tune", "--lr", "3e-5", "--kl-coef", "0", "--steps", "7", "--seed", "1"]
    assert [(job.args["lr"], job.args["kl_coef"], job.args["seed"]) for job in jobs[2:5]] == [(1e-4, 0, 1), (1e-4, 1e-3, 1), (3e-5, 0, 2)]
    assert {(job.args["eval_split"], job.steps, job.folder.parent) for job in jobs} == {("tune", 7, Path("r/runs"))}


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ('linear --weights "2 1 1" "1 1 1"', [[2, 1, 1], [1, 1, 1]]),
        ("linear --weights 2 1 1", [[2, 1, 1]]),
        ('linear --weights "2 1 1"', [[2, 1, 1]]),
        ("mgda --normalize false true", [False, True]),
        ("mgda --normalize", [True]),
        ("mgda --no-normalize", [False]),
        ("linear --estimator reinforce grpo", ["reinforce", "grpo"]),
        ("linear --eval-split test", ["test"]),
        ("linear --preset smollm2-135m-words --lr 1e-6 2e-6", [1e-6, 2e-6]),
    ],
)
def test_what_a_flags_values_are(words, values):
    jobs = planned(words)
    flag = [word for word in words.split() if word.startswith("--")][-1].removeprefix("--").removeprefix("no-").replace("-", "_")
    assert [job.args[flag] for job in jobs] == values
    assert len({job.name for job in jobs}) == len(values)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("ctwa --lrr 1e-4", "--lrr does not exist; did you mean 'lr'?"),
        ("ctwa --lr 1e-4 0.0001", "--lr 0.0001 is the same setting as --lr 1e-4"),
        ('linear --weights "1 1 1" "1.0 1 1"', "is the same setting as --weights 1 1 1"),
        ("ctwa --lr", "--lr has no value"),
        ("ctwa --lr 1e-4 x", "--lr x: not a value that ctwa takes; python run.py ctwa --help says which"),
        ("ctwa --lr -1", "--lr -1.0 must not be negative"),
        ("ctwa --estimator grpo reinforc", "--estimator reinforc: not a value that ctwa takes"),
        ("ctwa --lr 1e-4 --lr 3e-4", "--lr is given twice"),
        ("ctwa --seed 1 2", "--seed: sweep sets it for each run; use --seeds"),
        ("ctwa --resume r", "--resume: the same sweep continues"),
        ("ctwa foo", "'foo' belongs to no flag"),
        ("mgda --normalize maybe", "--normalize maybe: a switch takes true and false"),
        ("ctwa --micro-batch-tokens 512 1024", "--micro-batch-tokens changes no number"),
        ("ctwa --model a/x b/x", "two settings would be called ctwa-model-x-s1"),
        ("ctwa --preset nosuch", "--preset nosuch does not exist"),
    ],
)
def test_the_plan_refuses(words, told):
    with pytest.raises(UserError, match=re.escape(told)):
        planned(words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "which algorithm?"),
        ("ctw --lr 1", "ctw does not exist; did you mean 'ctwa'?"),
        ("ctwa --jobs -1", "--jobs -1 must"),
        ("ctwa --seeds 0", "--seeds 0 must"),
    ],
)
def test_the_command_refuses(words, told):
    with pytest.raises(UserError, match=re.escape(told)):
        main(words.split())


def test_a_dry_run_tells_the_commands_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["linear", "--lr", "1e-5", "1e-4", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    name = "linear-lr1e-5-s1"
    assert lines[0].startswith(f"{name}: python ")
    assert lines[0].endswith(f"algos/linear.py --eval-split tune --lr 1e-5 --seed 1 --out results/sweep-linear/runs/{name}")
    assert lines[2] == "2 runs; nothing was started"
    assert list(tmp_path.iterdir()) == []


def test_a_small_sweep_is_tabled_and_extended(tmp_path, monkeypatch, capsys):
    """In this process; how runs are started and continued is tested with bench's."""

    def train_missing(jobs, out, at_once, command):
        for job in jobs:
            train("linear", job.folder, **(SMALL | {"steps": 1, "lr": job.args["lr"], "eval_split": job.args["eval_split"]}))
        return {}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tools.jobs.train_missing", train_missing)
    monkeypatch.setattr("tools.leaderboard.draw_ends", lambda section, out: out.write_text("a picture"))
    small = [word for flag, value in (SMALL | {"steps": 1}).items() for word in (f"--{flag}", str(value))]
    main(["linear", *small, "--lr", "1e-4", "1e-3"])
    table = Path("results/sweep-linear/table.md").read_text()
    assert table in capsys.readouterr().out
    assert table.startswith("# Sweep\n\n**Tuning prompts**")
    assert sorted(re.findall(r"^\| `linear lr (\S+)` \| 1 \|", table, re.M)) == ["0.0001", "0.001"]
    assert Path("results/sweep-linear/ends.png").exists()
    main(["linear", *small, "--lr", "1e-4", "1e-3", "1e-2", "--dry-run"])
    told = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert told[:2] == ["finished", "finished"]
    assert "--lr 1e-2" in told[2]
    main(["linear", *small, "--lr", "1e-4", "--eval-split", "test"])
    assert "**Chosen on what is reported**" in capsys.readouterr().out
