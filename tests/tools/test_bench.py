"""The table of runs whose truth is known, what is started, kept, resumed and refused, with a script
that only pretends to train, and a bench that is stopped and one that is killed."""

import json
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from common.errors import UserError
from support.folders import NAMES, write_run
from support.pretender import make_pretender
from support.running import ROOT, SMALL, train
from tools import bench, jobs
from tools.jobs import plan, train_missing
from tools.leaderboard import MEASURE, SETTING, code, load_finished, make_table


def finished(folder: Path, *ends: float, script: str = "linear", seed: int = 1, **flags) -> Path:
    """A finished run of 50 steps from .5, .3, .4 to `ends`, reached at step 40 and passed at once:
    the mean of the last three counts. Two standard errors of a change are .0566."""
    values = {
        name: [start, 0.99, 0.99, end - 0.1, end, end + 0.1]
        for name, start, end in zip(NAMES, (0.5, 0.3, 0.4), ends, strict=True)
    }
    write_run(folder, values, **({"steps": 50, "script": script, "seed": seed} | flags))
    file = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row |= {"time/rollout": 0.5, "time/update": 100.0 if row["step"] == 7 else 1.5}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    """linear loses accuracy in two runs of three; ctwa in none."""
    linear = [(0.2, 0.8, 0.8), (0.3, 0.8, 0.8), (0.55, 0.7, 0.75)]
    ctwa = [(0.6, 0.7, 0.7), (0.55, 0.7, 0.7), (0.7, 0.8, 0.7)]
    return [
        finished(tmp_path / f"{script}-{seed}", *ends, script=script, seed=seed)
        for script, runs in (("linear", linear), ("ctwa", ctwa))
        for seed, ends in enumerate(runs, 1)
    ]


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Makes table.md without pictures; of every section the rows by algorithm."""
    monkeypatch.setattr("tools.leaderboard.compare", lambda runs, out: None)

    def read(*folders: Path) -> list[dict[str, dict[str, str]]]:
        make_table(folders, tmp_path / "out")
        return [
            {row["algorithm"]: row for row in section["rows"]}
            for section in json.loads((tmp_path / "out" / "table.json").read_text())
        ]

    return read


def test_the_table_says_what_was_put_in(folders, tmp_path, tables):
    (rows,) = tables(*folders)
    assert list(rows) == ["ctwa", "linear"]  # by the worst change
    assert rows["linear"] == {
        "algorithm": "linear",
        "seeds": "3",
        "accuracy": "0.50 → 0.35 [0.20, 0.55]",  # of 27 resamples, the ends are more than 2.5%
        "conciseness": "0.30 → 0.77 [0.70, 0.80]",
        "clarity": "0.40 → 0.78 [0.75, 0.80]",
        "worst change": "-0.15 [-0.30, 0.05]",
        "interference": "2/3 (accuracy 2)",
        "lost greedily": "0/3",
        "hypervolume": "0.20 [0.13, 0.29]",
        "tokens": "30.00 → 26.00 [26.00, 26.00]",
        "seconds per step": "2.00 [2.00, 2.00]",
        "P(better than linear)": "–",
    }
    assert rows["ctwa"]["P(better than linear)"].startswith("0.94 [")  # one pair of nine is a tie
    told = (tmp_path / "out" / "table.md").read_text()
    opening = (
        "In 2 of 6 runs an objective fell while another rose (linear 2 of 3); first stands ctwa,"
    )
    assert f"\n\n{opening} whose worst objective changed by +0.12.\n\n| algorithm |" in told
    assert f"| {' | '.join(rows['linear'].values())} |" in told
    (section,) = json.loads((tmp_path / "out" / "table.json").read_text())
    worst = [run["worst change"] for run in section["runs"] if run["algorithm"] == "ctwa"]
    assert sorted(worst) == pytest.approx([0.05, 0.1, 0.2])


@pytest.mark.parametrize("flag", [*SETTING, *MEASURE[1:]])
def test_runs_that_differ_in_what_is_measured_are_not_compared(flag, folders, tmp_path, tables):
    flags = {flag: 40 if flag == "steps" else "that"}
    other = finished(tmp_path / "other", 0.2, 0.3, 0.4, script="pama", **flags)
    (apart,) = (rows for rows in tables(*folders, other) if "pama" in rows)
    assert list(apart) == ["pama"]
    assert apart["pama"]["interference"] == "0/1"  # accuracy is lost, but nothing rose


def test_other_flags_are_another_row_beside_linear_of_the_nearest_flags(folders, tmp_path, tables):
    own = {"lr": 3e-5, "kl_coef": 0.0}
    near = finished(tmp_path / "a", 0.99, 0.9, 0.9, lr=3e-5, kl_coef=1.0, checkpoint_every=5)
    slow = finished(tmp_path / "b", 1e30, 0.8, 0.8, script="ctwa", checkpoint_every=9, **own)
    (rows,) = tables(*folders, near, slow)
    (row,) = [row for label, row in rows.items() if "ctwa lr 3e-5" in label]
    assert len(rows) == 4
    assert row["P(better than linear)"] == "0.00"  # one seed each; beside the others it would be 1
    assert row["accuracy"] == "0.50 → 1e30"


def test_what_fell_greedily_alone_is_told_and_a_column_that_nothing_fills_is_not(folders, tables):
    for folder in folders[3:5]:
        text = (folder / "metrics.jsonl").read_text()
        told = text.replace('"eval/greedy/clarity": 0.2,', '"eval/greedy/clarity": 0.9,')
        if folder == folders[4]:  # in samples it did not rise either
            told = told.replace('"eval/clarity": 0.4,', '"eval/clarity": 0.69,')
        (folder / "metrics.jsonl").write_text(told)
    (rows,) = tables(*folders[3:])
    assert rows["ctwa"]["lost greedily"] == "2/3 (clarity 2)"
    assert "P(better than linear)" not in rows["ctwa"]


def test_an_unfinished_run_is_left_out_and_told(folders, tmp_path):
    lines = (folders[1] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folders[1] / "metrics.jsonl").write_text("".join(lines[:-1]))
    (tmp_path / "results" / "runs" / "begun").mkdir(parents=True)
    folders = [folder.rename(tmp_path / "results" / "runs" / folder.name) for folder in folders]
    runs, left_out = load_finished([tmp_path / "results", folders[0]])  # twice counts once
    assert len(runs) == 5
    assert re.search(r"begun.*linear-2: at step 49 of 50", " ".join(left_out))
    with pytest.raises(UserError, match="no finished run.*linear-2: at step 49 of 50"):
        load_finished(folders[1:2])


def test_the_same_seed_twice_and_a_table_of_other_runs_are_refused(folders, tmp_path, tables):
    again = finished(tmp_path / "again", 0.2, 0.8, 0.8, seed=2)
    with pytest.raises(UserError, match="another run has the same setting and seed"):
        tables(*folders, again)
    tables(*folders[:4])
    tables(*folders)  # more runs: the same question
    with pytest.raises(UserError, match="holds the table of other runs: give another folder"):
        tables(*folders[1:], again)


def test_from_writes_a_table_and_a_picture_of_each_section(folders, tmp_path, capsys):
    other = finished(tmp_path / "other", 0.2, 0.8, 0.8, model="testbed:robust")
    out = tmp_path / "out"
    bench.main(["--from", str(folders[0]), str(other), "--out", str(out)])
    assert (out / "table.md").read_text() in capsys.readouterr().out
    assert all((out / f"curves{place}.png").exists() for place in ("", 1))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out .*/file cannot be made"):
        bench.main(["--from", str(folders[0]), "--out", str(tmp_path / "file")])


def test_a_table_is_made_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert code().startswith("commit unknown, torch ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--from a --seeds 3", "--from trains nothing, so --seeds has no use"),
        ("--from a -- --lr 1", "--from trains nothing, so -- --lr has no use"),
        ("--from", "no finished run"),
        ("--seeds 0", "--seeds 0 must be at least 1"),
        ("--algos linear -- --seed 3", "each run has its own"),
        ("--algos linear linear", "would be two runs"),
    ],
)
def test_a_bench_refuses(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(told)):
        bench.main(words.split())
    assert not any(tmp_path.iterdir())


def test_the_plan_finds_a_run_by_its_flags(tmp_path):
    """What a script writes is what was planned."""
    run = tmp_path / "runs" / "of-another-name"
    train("linear", run, eval_every=10, lr=3e-5)  # the others of SMALL
    fixed = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    fixed += ["--eval-every", "10"]
    options = [[["--lr", "3e-5"], ["--lr", "1e-4"]]]
    found = plan(["linear"], options, fixed, 1, tmp_path)
    assert [folder.name for folder in found] == [run.name, "linear-lr1e-4-s1"]
    assert train_missing({run: found[run]}, tmp_path, 1) == []
    args = json.loads((run / "args.json").read_text())
    del args["eval_samples"], args["estimator"]  # of a version before these flags
    (run / "args.json").write_text(json.dumps(args))
    for more, name in (([], run.name), (["--eval-samples", "2"], "linear-lr3e-5-s1")):
        assert next(iter(plan(["linear"], options, [*fixed, *more], 1, tmp_path))).name == name
    run.rename(run.with_name("linear-s1"))
    with pytest.raises(UserError, match="linear-s1 would be two runs"):
        plan(["linear"], [], fixed, 1, tmp_path)


# --- what is run ---


@pytest.fixture
def planned(tmp_path) -> dict[Path, list[str]]:
    """Four runs of four steps of a script that pretends."""
    script = make_pretender(tmp_path / "fake")
    folders = [tmp_path / "out" / "runs" / f"linear-s{seed}" for seed in (1, 2, 3, 4)]
    return {f: [str(script), "--seed", f.name[-1], "--steps", "4"] for f in folders}


def started(tmp_path: Path) -> list[str]:
    """What was started since the last look."""
    return sorted((tmp_path / "fake" / "started.txt").rename(tmp_path / "seen").read_text().split())


def test_finished_runs_are_kept_and_the_others_resumed_or_started_anew(planned, tmp_path):
    out, (one, two, three, four) = tmp_path / "out", planned
    assert train_missing({one: planned[one], two: planned[two]}, out, 2) == []
    assert started(tmp_path) == ["linear-s1--out", "linear-s2--out"]
    (one / "model").rmdir()  # killed between its last step and its model
    for path in (two / "model", *(two / "checkpoints").iterdir()):  # cleared of both
        path.rmdir()
    (three / "checkpoints" / "step_000002.tmp").mkdir(parents=True)  # killed in its first one
    four.mkdir()  # killed at once
    assert train_missing(planned, out, 2) == []
    assert started(tmp_path) == ["linear-s1--resume", "linear-s3--out", "linear-s4--out"]
    stopped = sorted(path.name[:9] for path in (out / "stopped").iterdir())
    assert stopped == ["linear-s3", "linear-s4"]
    assert train_missing(planned, out, 2) == []
    assert not (tmp_path / "fake" / "started.txt").exists()
    assert (out / "logs" / "linear-s1.log").read_text().startswith("commit ")


def test_a_failing_run_is_told_and_the_others_go_on(planned, tmp_path, capsys, monkeypatch, tables):
    with pytest.raises(UserError, match="--out .*fake.py: "):
        train_missing(planned, tmp_path / "fake" / "fake.py", 1)
    monkeypatch.setattr(jobs, "plan", lambda *_: planned)
    words = ["--algos", "linear", "--out", str(tmp_path / "out")]
    (tmp_path / "fake" / "fail-linear-s2").touch()
    with pytest.raises(SystemExit, match="failed: linear-s2; the same command tries again"):
        bench.main(words)
    told = capsys.readouterr().out
    assert "linear-s2 failed: error: the disk is full" in told
    assert "| linear | 3 |" in told
    (tmp_path / "fake" / "fail-linear-s2").unlink()
    bench.main(words)
    assert "| linear | 4 |" in capsys.readouterr().out


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stopped_bench_ends_its_runs_and_those_of_a_killed_one_keep_the_folder(planned, tmp_path):
    out, wait = tmp_path / "out", tmp_path / "fake" / "wait"
    wait.touch()

    def begin(steps: int) -> subprocess.Popen:
        """Train in a process of its own, until two runs have waited at step 2, or then 3."""
        words = {str(folder): words for folder, words in planned.items()}
        code = "from pathlib import Path; from tools.jobs import train_missing\n"
        code += f"train_missing({{Path(k): v for k, v in {words}.items()}}, Path({str(out)!r}), 2)"
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        logs = [folder / "metrics.jsonl" for folder in list(planned)[:2]]
        until(lambda: all(log.exists() and log.read_text().count("\n") > steps for log in logs))
        return process

    process = begin(2)
    process.terminate()
    assert process.wait(60) == 143
    process = begin(3)  # nothing holds the folder; resumed from step 2
    process.kill()
    process.wait()
    with pytest.raises(UserError, match="another command, or runs that one left, are at work"):
        train_missing(planned, out, 2)
    wait.unlink()

    def trained() -> bool:
        with suppress(UserError):
            return train_missing(planned, out, 2) == []

    until(trained)
    assert [len((run / "metrics.jsonl").read_text().splitlines()) for run in planned] == [5] * 4
    assert not any((out / "stopped").iterdir())
