"""Runs that are stopped from outside, and what stands in the way of the next one: nothing is lost, and what is said is true."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from common.errors import Interrupted, UserError, plain_errors
from common.interrupt import Signals
from common.rollout import TransformersEngine
from common.run import Run
from common.track import Hold, run_folder
from support.running import ROOT, read_metrics, run_script, train, weights_of

LONG = {"steps": 6, "checkpoint_every": 100, "lr": 1e-3}


def stopped(out: Path, **flags) -> tuple[int, str]:
    """Train until the run is interrupted: (the signal, the message)."""
    with pytest.raises(Interrupted) as stop:
        train("linear", out, **(LONG | flags))
    found = stop.value.number, str(stop.value)
    del stop
    gc.collect()
    return found


def signal_at(monkeypatch, call: int, number: int) -> None:
    """Send this process a signal within the call-th training rollout, before its completions are there."""
    generate, calls = TransformersEngine.generate, []

    def generating(self, prompts, completions, *rest):
        if completions > 1:
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), number)
        return generate(self, prompts, completions, *rest)

    monkeypatch.setattr(TransformersEngine, "generate", generating)


@pytest.mark.parametrize(
    ("calls", "flags", "after"),
    [
        (5, {}, 3),  # fails in step 4: a checkpoint of the step before is written
        (5, {"eval_every": 3}, 3),  # in the evaluation after step 3, which the resumed run makes up for
        (8, {}, 6),  # in that after the last step
    ],
)
def test_a_reward_that_fails_says_where_to_go_on_and_the_run_ends_as_if_it_never_had(calls, flags, after, tmp_path):
    mine, left = tmp_path / "mine.py", tmp_path / "left"
    mine.write_text(
        f"from pathlib import Path\nfrom rewards.accuracy import accuracy\nleft = Path({str(left)!r})\n\n"
        "def mine(**columns):\n    if left.exists():\n        left.write_text(str(number := int(left.read_text()) - 1))\n"
        "        assert number >= 0, 'out of quota'\n    return accuracy(**columns)\n"
    )
    settings = LONG | {"rewards": (f"{mine}:mine", "rewards.conciseness:conciseness")} | {"eval_every": 100} | flags
    whole = train("linear", tmp_path / "whole", **settings)
    left.write_text(str(calls))  # the two halves of the first evaluation, and steps
    with pytest.raises(UserError, match="'mine' raised .*out of quota") as failed:
        train("linear", tmp_path / "run", **settings)
    told = f"; mend that, and --resume {tmp_path / 'run'} goes on after step {after}"
    assert str(failed.value).endswith(told)
    again = run_script("algos/linear.py", "--resume", str(tmp_path / "run"))
    assert again.returncode == 2
    assert again.stderr.strip().endswith(told)
    left.unlink()
    assert getattr(signal.getsignal(signal.SIGINT), "__func__", None) is not Signals._note  # given back
    done = run_script("algos/linear.py", "--resume", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "run") == whole
    for name in ("completions.jsonl", "training_completions.jsonl", "statistics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    before, ended = weights_of(tmp_path / "whole/model"), weights_of(tmp_path / "run/model")
    assert all(torch.equal(before[key], ended[key]) for key in before)


def test_a_reward_that_fails_at_once_has_nothing_to_go_on_from(tmp_path):
    (tmp_path / "mine.py").write_text("def mine(**columns):\n    raise ValueError('no key')\n")
    with pytest.raises(UserError, match="no key") as failed:
        train("linear", tmp_path / "run", **LONG, rewards=(f"{tmp_path / 'mine.py'}:mine",))
    assert "--resume" not in str(failed.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_rollout_saves_the_step_before_and_nothing_is_lost(number, tmp_path, monkeypatch):
    whole = train("linear", tmp_path / "whole", **LONG)
    signal_at(monkeypatch, 4, number)
    came, told = stopped(tmp_path / "run")
    assert came == number
    assert f"stopped by {number.name} after step 3 of 6; --resume {tmp_path / 'run'} goes on" in told
    assert getattr(signal.getsignal(number), "__func__", None) is not Signals._note  # given back
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_000003"]
    done = run_script("algos/linear.py", "--resume", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "run") == whole
    before, after = weights_of(tmp_path / "whole/model"), weights_of(tmp_path / "run/model")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_signal_in_an_update_lets_the_step_end(tmp_path, monkeypatch):
    script, losses = import_module("algos.linear"), []
    loss = script.policy_loss

    def loss_and_signal(*given):
        losses.append(1)
        if len(losses) == 3:  # the first mini-batch of the second step
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(*given)

    monkeypatch.setattr(script, "policy_loss", loss_and_signal)
    _, told = stopped(tmp_path / "run")
    assert "after step 2 of 6" in told
    assert read_metrics(tmp_path / "run")[-1]["step"] == 2


def test_a_signal_while_a_checkpoint_is_written_leaves_it_whole(tmp_path, monkeypatch):
    save = dcp.save
    monkeypatch.setattr(dcp, "save", lambda *given, **more: (os.kill(os.getpid(), signal.SIGINT), save(*given, **more)))
    _, told = stopped(tmp_path / "run", checkpoint_every=2)
    assert "after step 2 of 6" in told
    monkeypatch.undo()
    assert run_script("algos/linear.py", "--resume", str(tmp_path / "run")).returncode == 0


def test_ctrl_c_while_a_checkpoint_is_read_is_no_damaged_checkpoint(tmp_path, monkeypatch, capsys):
    train("linear", tmp_path / "run", steps=4)

    def interrupted(*given, **more):
        raise CheckpointException("all_gather", {0: (KeyboardInterrupt(), None)})

    monkeypatch.setattr(dcp, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("linear", tmp_path / "again", steps=4, resume=str(tmp_path / "run"))
    assert "cannot be read" not in capsys.readouterr().out


def test_a_second_ctrl_c_stops_at_once_but_torchruns_echo_does_not(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    signals = Signals()
    try:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):  # the terminal's, and what torchrun sends on
            os.kill(os.getpid(), number)
        assert signals.asked() == signal.SIGINT
        now[0] += 5
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signals.release()


def test_a_run_that_is_saved_is_not_interrupted_once_more(capsys):
    """Between the line that says where, and the end of the process."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as stop, plain_errors():
            raise Interrupted(signal.SIGINT, "stopped")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "\nstopped\n"


# --- the next run ---


def test_fewer_steps_than_were_taken_are_refused_and_change_nothing(tmp_path):
    train("linear", tmp_path / "run", steps=4)
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("args.json", "metrics.jsonl", "statistics.jsonl")}
    refused = run_script("algos/linear.py", "--resume", str(tmp_path / "run"), "--steps", "3")
    assert refused.returncode == 2
    assert "--steps 3 is below the 4 steps" in refused.stderr
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}


def test_a_run_is_resumed_by_one_process_at_a_time(tmp_path):
    train("linear", tmp_path / "run", steps=2)
    hold = Hold(tmp_path / "run")
    refused = run_script("algos/linear.py", "--resume", str(tmp_path / "run"), "--steps", "4")
    assert refused.returncode == 2
    assert "another process is training in it" in refused.stderr
    del hold
    assert run_script("algos/linear.py", "--resume", str(tmp_path / "run"), "--steps", "4").returncode == 0


def broken(folder: Path) -> str:
    (folder / "broken.py").write_text("def broken(prompts, **rest):\n    return [0.0] * len(prompts) if len(prompts) == 8 else 1 / 0\n")
    return f"{folder / 'broken.py'}:broken"


def test_a_run_that_never_stepped_is_not_in_the_way(tmp_path, capsys):
    with pytest.raises(UserError, match="ZeroDivisionError"):  # at the first step: the evaluation has eight prompts
        train("linear", tmp_path / "run", rewards=("rewards.accuracy:accuracy", broken(tmp_path)))
    gc.collect()
    assert (tmp_path / "run/args.json").exists()
    assert [row["step"] for row in train("linear", tmp_path / "run", steps=1)] == [0, 1]
    assert "never took a step: started anew" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists already"):  # this one did
        train("linear", tmp_path / "run", steps=1)


def begun(folder: Path) -> Path:
    """What a run leaves before its first step."""
    folder.mkdir(parents=True)
    (folder / "args.json").write_text("{}")
    return folder


def test_a_run_that_has_only_begun_keeps_its_folder(tmp_path, monkeypatch):
    """Another one of the same name is numbered, as ever; where locks cannot tell, nobody's folder is taken either."""
    monkeypatch.chdir(tmp_path)
    first = begun(tmp_path / "runs/linear-s1")
    hold = Hold(first)
    assert str(run_folder("", "", "linear-s1")) == "runs/linear-s1-2"
    with pytest.raises(UserError, match="--out .* exists already"):
        run_folder(str(first), "", "linear-s1")
    del hold
    with patch("fcntl.flock", side_effect=OSError("no locks here")):
        assert str(run_folder("", "", "linear-s1")) == "runs/linear-s1-3"
    assert (first / "args.json").exists()
    assert str(run_folder("", "", "linear-s1")) == "runs/linear-s1"  # abandoned
    assert not (first / "args.json").exists()


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints", "model"])
def test_a_folder_with_anything_else_is_left_alone(name, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/args.json").write_text("{}")
    (tmp_path / "run" / name).mkdir() if name != "notes.txt" else (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        train("linear", tmp_path / "run", steps=1)
    assert (tmp_path / "run" / name).exists()


def test_a_tracker_that_does_not_start_is_one_line_and_leaves_no_folder(tmp_path, monkeypatch):
    def init(**given):
        raise RuntimeError("api_key not configured (no-tty). call wandb.login(key=[your_api_key])\nmore")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(UserError, match="--wandb could not start: api_key not configured.*`wandb login` first") as error:
        train("linear", tmp_path / "run", wandb=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_log_file_gets_lines_and_no_progress_bar(tmp_path):
    flags = ["--steps", "3", "--eval-every", "2", "--prompts", "4", "--completions", "4", "--eval-prompts", "8"]
    done = run_script("algos/linear.py", *flags, "--out", str(tmp_path / "run"))
    assert "\r" not in done.stdout + done.stderr
    assert re.findall(r"^step (\d) of 3: held-out accuracy [\d.]+ conciseness [\d.]+ clarity [\d.]+ length", done.stdout, re.M) == list(
        "023"
    )


def test_names_in_any_script_whatever_the_terminal_can_show(tmp_path):
    """Of folders, files, rewards and columns: written as they are, shown as far as it goes."""
    folder = tmp_path / "läufe ½"
    folder.mkdir()
    (folder / "lohn.py").write_text("def числo(completions, **kwargs):\n    return [float('2' in c) for c in completions]\n", "utf-8")
    rows = [{"prompt": f"Q({i}+1)=?\n", "answer": i + 1, "größe": "ü"} for i in range(40)]
    (folder / "daten.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    flags = ["--steps", "1", "--prompts", "4", "--completions", "4", "--eval-prompts", "8", "--out", "läufe ½/eins"]
    rewards = ["--rewards", "läufe ½/lohn.py:числo", "rewards.accuracy:accuracy"]
    command = [sys.executable, str(ROOT / "run.py"), "linear", *flags, *rewards, "--dataset", "läufe ½/daten.jsonl"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert b"accuracy" in done.stdout
    assert "eval/числo" in read_metrics(folder / "eins")[1]
    assert (folder / "eins/curves.png").exists()


# --- what is told while it trains ---


def rows_of(signals: list[list[float]], rewards: list[list[float]], spread: float = 1.0) -> list[dict]:
    names = ("a", "b")
    return [
        {f"signal/{n}": s for n, s in zip(names, signal, strict=True)}
        | {f"reward/{n}": r for n, r in zip(names, reward, strict=True)}
        | {f"reward_std/{n}": spread * (s > 0) for n, s in zip(names, signal, strict=True)}
        | {"loss/kl": 7.0}
        for signal, reward in zip(signals, rewards, strict=True)
    ]


def told(rows: list[dict]) -> list[str]:
    said = []
    run = SimpleNamespace(objectives={"a": None, "b": None}, flat=0, spread={}, say=said.append)
    for step, row in enumerate(rows, 1):
        Run._alarm(run, step, row)
    return said


def test_a_reward_that_never_varies_is_told_once():
    said = told(rows_of([[0.5, 0.0]] * 12, [[0.4, 1.0]] * 12))
    assert len(said) == 1
    assert said[0].startswith("step 5: b was 1 for every completion so far")
    assert told(rows_of([[0.5, 0.0]] * 3 + [[0.5, 0.1]] * 9, [[0.4, 1.0]] * 12)) == []


def test_a_reward_that_hardly_varies_is_told_once():
    said = told(rows_of([[0.5, 0.5]] * 12, [[0.4, 0.4]] * 12, spread=0.004))
    assert [text.split(":")[1] for text in said] == [f" {name} had a standard deviation of at most 0.004" for name in "ab"]
    assert told(rows_of([[0.5, 0.5]] * 12, [[0.4, 0.4]] * 12, spread=0.3)) == []


def test_a_collapsed_policy_is_told_once():
    said = told(rows_of([[0.5, 0.5]] * 3 + [[0.0, 0.0]] * 9, [[0.4, 0.4]] * 3 + [[0.0, 1.0]] * 9))
    assert len(said) == 1
    assert re.match(r"step 8: for 5 steps no prompt's completions differed.* KL 7 nats.* lower --lr", said[0])
    assert told(rows_of([[0.5, 0.5]] * 3 + [[0.0, 0.0]] * 4 + [[0.1, 0.0]], [[0.4, 0.4]] * 8)) == []


FALLING = """
calls = []

def falling(completions, **rest):
    calls.append(1)
    return [0.9 + 0.1 * (i % 2) if len(calls) < 3 else 0.2 for i in range(len(completions))]

def steady(completions, **rest):
    return [0.5 + 0.1 * (i % 2) for i in range(len(completions))]
"""


def test_an_objective_that_falls_below_its_start_is_told_once(tmp_path, capsys):
    """Whatever its covariance was; of a resumed run the start is that of its first evaluation."""
    (tmp_path / "falls.py").write_text(FALLING)
    rewards = tuple(f"{tmp_path / 'falls.py'}:{name}" for name in ("falling", "steady"))
    train("linear", tmp_path / "run", rewards=rewards)
    told = re.findall(
        r"^step (\d): held-out (\w+) fell from ([\d.]+) to ([\d.]+), beyond noise; python run.py explain", capsys.readouterr().out, re.M
    )
    assert told == [("2", "falling", "0.950", "0.200")]
    train("linear", tmp_path / "run", rewards=rewards, resume=str(tmp_path / "run"), steps=5)
    assert "step 4: held-out falling fell from 0.950 to 0.200" in capsys.readouterr().out
