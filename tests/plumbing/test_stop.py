"""Runs that are stopped, by a signal, a kill, a reward or a full disk, and gone on with: nothing is
lost, and what is said is true."""

import json
import os
import re
import signal
import time
from importlib import import_module
from itertools import count
from pathlib import Path

import pytest
import torch

from common.errors import Stopped, UserError, plain_errors
from common.log import new_folder
from common.rollout import TransformersEngine
from common.run import Signals
from common.runs import write_whole
from support.running import (
    ROOT,
    SMALL,
    as_flags,
    assert_same_run,
    call,
    from_the_command_line,
    read_lines,
    read_metrics,
    resume,
    run_script,
    steps_of,
    train,
)

LONG = {"steps": 4, "eval_every": 100, "checkpoint_every": 2, "lr": 1e-3, "max_new_tokens": 24}


def test_a_killed_run_goes_on(trained, tmp_path):
    """By the command line, with a learning rate that depends on the step, and on what steps did."""
    flags = LONG | {"lr_schedule": "linear", "steps": 6, "desired_kl": 1e-3}
    run = tmp_path / "run"
    words = as_flags(**SMALL | flags | {"out": run})
    kill_at = run / "checkpoints/step_000002"
    killed = call(from_the_command_line, "linear", *words, kill_at=kill_at)
    assert killed.returncode == -signal.SIGKILL
    for name in ("metrics.jsonl", "statistics.jsonl"):
        with open(run / name, "a") as file:
            file.write('{"step": 5, "rewa')  # killed while it wrote
    resume(run)
    assert_same_run(run, trained("linear", **flags))


def after_calls(monkeypatch, owner, name: str, calls: int, number: int) -> None:
    """Send this process a signal when a function is called for the calls-th time."""
    function, called = getattr(owner, name), count(1)

    def calling(*given, **more):
        if next(called) == calls:
            os.kill(os.getpid(), number)
        return function(*given, **more)

    monkeypatch.setattr(owner, name, calling)


@pytest.mark.parametrize(
    ("owner", "name", "calls", "number", "step"),
    [
        (TransformersEngine, "generate", 5, signal.SIGINT, 2),  # the rollout of step 3
        (TransformersEngine, "generate", 5, signal.SIGTERM, 2),
        (import_module("algos.linear"), "policy_loss", 3, signal.SIGTERM, 2),  # in its first update
        (torch, "save", 1, signal.SIGINT, 2),  # while a checkpoint is written
    ],
)
def test_a_signal_stops_between_steps_and_the_run_goes_on(
    owner, name, calls, number, step, trained, tmp_path, monkeypatch
):
    whole, run = trained("linear", **LONG), tmp_path / "run"
    handler = signal.getsignal(number)
    after_calls(monkeypatch, owner, name, calls, number)
    with pytest.raises(Stopped) as stop:
        train("linear", run, **LONG)
    monkeypatch.undo()
    assert stop.value.number == number
    told = f"stopped by {number.name} after step {step} of 4; --resume {run} goes on"
    assert str(stop.value) == told
    assert steps_of(run)[-1] == read_metrics(run)[-1]["step"] == step
    signal.signal(signal.SIGINT, signal.default_int_handler)  # that run never ended
    signal.signal(number, handler)
    resume(run)
    assert_same_run(run, whole)
    assert signal.getsignal(number) == handler  # given back


def test_a_second_ctrl_c_stops_at_once_but_torchruns_echo_does_not(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    signals = Signals()
    try:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):  # and what torchrun sends on
            os.kill(os.getpid(), number)
        assert signals.asked() == signal.SIGINT
        now[0] += 5
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signals.release()


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError("--lr is odd"), 2, "error: --lr is odd\n"),
        (Stopped(signal.SIGINT, "stopped"), 130, "\nstopped\n"),
        (Stopped(signal.SIGTERM, "stopped"), 143, "\nstopped\n"),
        (KeyboardInterrupt(), 130, "\nstopped by Ctrl-C\n"),
    ],
)
def test_how_a_process_ends(error, code, told, capsys, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    try:
        for rank in ("1", "0"):  # of several, the first one speaks
            monkeypatch.setenv("RANK", rank)
            with pytest.raises(SystemExit) as stop, plain_errors():
                raise error
            assert stop.value.code == code
            assert capsys.readouterr().err == (told if rank == "0" else "")
        if isinstance(error, Stopped):  # it is saved: one more signal has nothing to stop
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize(
    ("calls", "flags", "step"),
    [
        (4, {}, 2),  # in step 3, after both halves of the first evaluation and two steps
        (4, {"eval_every": 2}, 2),  # in the evaluation after step 2, made up for when it goes on
        (6, {}, 4),  # in that after the last step
    ],
)
def test_a_reward_that_fails_loses_nothing(calls, flags, step, trained, tmp_path):
    left, mine = tmp_path / "left", tmp_path / "mine.py"
    mine.write_text(
        "from pathlib import Path\nfrom rewards.accuracy import accuracy\n"
        f"left = Path({str(left)!r})\ndef mine(**columns):\n    if left.exists():\n"
        "        left.write_text(str(number := int(left.read_text()) - 1))\n"
        "        assert number >= 0, 'out of quota'\n    return accuracy(**columns)\n"
    )
    rewards = (f"{mine}:mine", "rewards.conciseness:conciseness")
    flags = LONG | {"rewards": rewards, "checkpoint_every": 100} | flags
    whole, run = trained("linear", **flags), tmp_path / "run"
    left.write_text(str(calls))
    told = rf"'mine' raised .*out of quota.*; mend that, and --resume {run} goes on$"
    with pytest.raises(UserError, match=told):
        train("linear", run, **flags)
    assert steps_of(run) == [step]
    left.write_text("0")
    with pytest.raises(UserError, match="out of quota"):  # not yet mended
        resume(run)
    left.unlink()
    if flags.get("eval_every") == 2:  # made up for, and stopped again before the next checkpoint
        left.write_text("2")
        with pytest.raises(UserError, match="out of quota"):
            resume(run)
        left.unlink()
    assert resume(run) == read_metrics(whole)
    for name in ("completions.jsonl", "statistics.jsonl", "model/model.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_a_reward_that_fails_at_once_has_nothing_to_go_on_from(tmp_path):
    (tmp_path / "mine.py").write_text("def mine(**columns):\n    raise ValueError('no key')\n")
    with pytest.raises(UserError, match="no key") as failed:
        train("linear", tmp_path / "run", rewards=(f"{tmp_path / 'mine.py'}:mine",))
    assert "--resume" not in str(failed.value)


def test_the_checkpoint_before_a_damaged_one_is_used_and_a_run_can_train_longer(tmp_path, capsys):
    """With a reward that draws lots, from global generators whose state nobody saves."""
    (tmp_path / "lots.py").write_text(
        "import random\nimport numpy as np\nimport torch\n"
        "def lots(completions, **kwargs):\n"
        "    own = random.random() + np.random.rand() + torch.rand(()).item()\n"
        "    return [own + i for i in range(len(completions))]\n"
    )
    rewards = ("rewards.accuracy:accuracy", f"{tmp_path / 'lots.py'}:lots")
    flags = LONG | {"rewards": rewards, "checkpoint_every": 1}
    whole = train("ctwa", tmp_path / "whole", **flags)
    train("ctwa", tmp_path / "run", **flags | {"steps": 3})
    newest = tmp_path / "run/checkpoints/step_000003/rank_0.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    longer = resume(tmp_path / "run", "--steps", "4")
    assert "step_000003 cannot be read" in capsys.readouterr().out
    assert longer[1:] == whole[1:]
    assert len({row["reward/lots"] for row in whole[1:]}) == 4


def test_a_run_goes_on_with_its_own_prompts_and_lines_or_not_at_all(tmp_path):
    """A file that grew: its splits would be others, and training prompts among those held out."""
    rows = [{"prompt": f"Q({i}+1)=?", "answer": str(i + 1)} for i in range(40)]
    file, run = tmp_path / "rows.json", tmp_path / "run"
    file.write_text(json.dumps(rows))
    train("linear", run, dataset=str(file), steps=2, max_new_tokens=8)
    file.write_text(json.dumps([*rows, {"prompt": "Q(9+9)=?", "answer": "18"}]))
    with pytest.raises(
        UserError, match="--dataset .*rows.json has other prompts than when --resume"
    ):
        resume(run, "--steps", "4")
    file.write_text(json.dumps(rows))
    whole = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(whole[0])
    with pytest.raises(UserError, match="metrics.jsonl was cut short"):
        resume(run, "--steps", "4")
    (run / "metrics.jsonl").write_text("".join(whole))
    told = "--resume .* began in float32 and would go on in bfloat16: add --compute-dtype float32"
    with pytest.raises(UserError, match=told):  # as on a GPU, where auto is that
        resume(run, "--steps", "4", "--compute-dtype", "bfloat16")
    assert [row["step"] for row in resume(run, "--steps", "4")] == [0, 1, 2, 3, 4]


def test_fewer_steps_than_were_taken_are_refused_and_change_nothing(trained):
    run = trained("linear", **LONG)
    files = [path for path in run.rglob("*") if path.is_file()]
    before = [path.read_bytes() for path in files]
    with pytest.raises(UserError, match="--steps 3 is below the 4 steps"):
        resume(run, "--steps", "3")
    assert [path.read_bytes() for path in files] == before


LIMITED = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))  # fails as on a full disk
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.parametrize(("limit", "steps"), [(400_000, [0, 1, 2]), (1700, [0])])
def test_a_full_disk_is_one_line_and_what_was_there_stays_readable(limit, steps, tmp_path):
    """Room for the logs but for no checkpoint; for the first line of metrics, and not the next."""
    flags = SMALL | {"log_completions": 0, "eval_prompts": 2, "out": tmp_path / "run"}
    program = tmp_path / "limited.py"
    program.write_text(LIMITED.format(limit=limit, script=str(ROOT / "algos/linear.py")))
    done = run_script(str(program), *as_flags(**flags))
    assert done.returncode == 2, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "File too large" in said or "--resume" in said
    assert "Traceback" not in done.stderr
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line)["step"] for line in lines if line.endswith("\n")] == steps


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "table.md"
    write_whole(file, "old")
    write = Path.write_text

    def cut(path, text, **how):
        write(path, text[:1], **how)
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, "new")
    assert file.read_text() == "old"


# --- held-out values that fall ---


def evaluated(monkeypatch, *values: float) -> None:
    """The held-out accuracy of the evaluations to come; all else stays as it is."""
    left = iter(values)

    def evaluate(engine, tokenizer, prompts, objectives, *rest):
        names = [f"eval/{kind}{n}" for kind in ("", "greedy/") for n in (*objectives, "length")]
        found = dict.fromkeys(names, 0.5) | {f"{name}_se": 0.01 for name in names}
        return found | {"eval/accuracy": next(left)}, []

    monkeypatch.setattr("common.run.evaluate", evaluate)


def test_the_checkpoint_of_the_last_safe_evaluation_outlives_the_others_and_a_resume(
    tmp_path, monkeypatch, capsys
):
    run, flags = tmp_path / "run", {"eval_every": 2, "checkpoint_every": 1, "keep_safe": True}
    evaluated(monkeypatch, 0.9, 0.9, 0.2, 0.2, 0.2, 0.2)  # at the start, after 2, 4, 5, 6 and 7
    told = r"step (\d): held-out accuracy fell beyond noise; python run.py explain"
    train("linear", run, steps=5, **flags)
    assert re.findall(told, capsys.readouterr().out) == ["4"]  # once
    assert steps_of(run) == [2, 4, 5]
    resume(run, "--steps", "7")
    assert re.findall(told, capsys.readouterr().out) == ["6"]  # from the first run's start
    assert steps_of(run) == [2, 6, 7]


@pytest.mark.parametrize(("keep", "steps"), [(True, [2, 3]), (False, [3])])
def test_one_is_written_at_evaluations_only_with_the_flag(keep, steps, tmp_path, monkeypatch):
    evaluated(monkeypatch, 0.5, 0.5, 0.5)
    train("linear", tmp_path / "run", keep_safe=keep, checkpoint_every=100, max_new_tokens=8)
    assert steps_of(tmp_path / "run") == steps


# --- folders ---


def test_default_folders_are_numbered_and_given_ones_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [str(new_folder("", "linear-s1")) for _ in range(3)]
    assert made == ["runs/linear-s1", "runs/linear-s1-2", "runs/linear-s1-3"]
    with pytest.raises(UserError, match="--out runs/linear-s1 exists .* --resume runs/linear-s1"):
        new_folder("runs/linear-s1", "linear-s1")


def test_names_in_any_script_whatever_the_terminal_can_show(tmp_path):
    """Of folders, files, rewards and columns: written as they are, shown as far as it goes. A log
    file gets a line for each evaluation and no progress bar."""
    folder = tmp_path / "läufe ½"
    folder.mkdir()
    lohn = "def числo(completions, **kwargs):\n    return [float('2' in c) for c in completions]\n"
    (folder / "lohn.py").write_text(lohn, "utf-8")
    rows = [{"prompt": f"Q({i}+1)=?\n", "answer": i + 1, "größe": "ü"} for i in range(40)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "daten.jsonl").write_text(text, "utf-8")
    flags = SMALL | {"steps": 1, "dataset": "läufe ½/daten.jsonl", "out": "läufe ½/eins"}
    words = [*as_flags(**flags), "--rewards", "läufe ½/lohn.py:числo", "rewards.accuracy:accuracy"]
    program = str(ROOT / "run.py")
    done = run_script(program, "linear", *words, cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^step (\d) of 1: held-out ", done.stdout, re.M) == ["0", "1"]
    assert "\r" not in done.stdout + done.stderr
    assert "eval/числo" in read_lines(folder / "eins/metrics.jsonl")[1]
    assert (folder / "eins/curves.png").stat().st_size > 10_000
