"""Running the scripts, in this process or in others, and what a run leaves in its folder."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from common import data, launch

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "algos").glob("[a-z]*.py"))
OBJECTIVES = ("accuracy", "conciseness", "clarity")  # those of --rewards by default
SMALL = {"steps": 3, "prompts": 4, "completions": 4, "eval_prompts": 8}
SMALL |= {"eval_every": 2, "checkpoint_every": 2}


@functools.cache
def _server() -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).with_name("forkserver.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    atexit.register(lambda: (server.stdin.close(), server.wait()))
    return server


def run_script(
    *command: str,
    ranks: int = 1,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
    kill_at: Path | None = None,
) -> subprocess.CompletedProcess:
    """Run `python <command>` from cwd without a hub, on one rank or several, and return what was
    printed and the exit code. kill_at: kill -9 once this file is there.

    A script, or a module by -m, runs in a fork of a process that has imported the libraries
    already (forkserver.py); -c in a process of its own.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    if command[0] == "-c":
        how = {"cwd": cwd, "env": environment, "capture_output": True, "text": True}
        return subprocess.run([sys.executable, *command], timeout=300, **how)
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        for file in files:
            file.touch()
        request = {"command": command, "ranks": ranks, "cwd": cwd, "env": environment}
        request |= {"output": files, "kill_at": kill_at}
        print(json.dumps(request, default=str), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        told = [file.read_text() for file in files]
    return subprocess.CompletedProcess([sys.executable, *command], code, *told)


def call(function: Callable, *arguments, **how) -> subprocess.CompletedProcess:
    """Call a function of a test's file with texts, in a fork as `run_script` makes them."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    where = f"{function.__code__.co_filename}:{function.__name__}"
    return run_script(where, *map(str, arguments), env={"PYTHONPATH": paths}, **how)


def on_ranks(count: int, function: Callable, *arguments) -> None:
    """The same on every rank of several, which it starts itself. What fails there fails here."""
    done = call(function, *arguments, ranks=count)
    assert done.returncode == 0, done.stderr


def from_the_command_line(name: str, *words: str) -> None:
    """Run a script as a user does, but for the picture, which takes longer than a small run."""
    sys.argv = [name, *words]
    script = import_module(f"algos.{name}")
    with patch("common.run.draw"):
        launch.run(script.main, script.Args)


def as_flags(**values) -> list[str]:
    """Values of `Args` as words of a command line."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


_load = data.load


@functools.cache
def _arithmetic(longest: int) -> dict[str, data.Prompts]:
    """The testbed's prompts, tokenized once for all runs."""
    from testbed.arithmetic import tokenizer

    return _load(data.RunFlags(max_prompt_length=longest), tokenizer(), {}, "exact")


def _data(args, *rest) -> dict[str, data.Prompts]:
    usual = args.dataset == "arithmetic" and not args.prompt_suffix
    return _arithmetic(args.max_prompt_length) if usual else _load(args, *rest)


def run_main(script, args, picture: bool = False) -> None:
    """A script's main, with the picture where one is wanted. It leaves no process group behind."""
    drawn = nullcontext() if picture else patch("common.run.draw")
    try:
        with drawn, patch("common.data.load", _data), patch.dict(os.environ):
            script.main(args)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def train(name: str, out: Path, picture: bool = False, **flags) -> list[dict]:
    """Run a script with few small steps; returns its metrics."""
    script = import_module(f"algos.{name}")
    run_main(script, script.Args(**(SMALL | {"out": str(out)} | flags)), picture)
    return read_metrics(out)


def resume(folder: Path, *flags: str) -> list[dict]:
    """Go on with a run, as --resume does; returns its metrics."""
    name = json.loads((folder / "args.json").read_text())["script"]
    script = import_module(f"algos.{name}")
    run_main(script, launch.parse(script.Args, name, ["--resume", str(folder), *flags]))
    return read_metrics(folder)


def read_lines(file: Path) -> list[dict]:
    """The lines of a .jsonl."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl without its clock readings, which differ."""
    rows = read_lines(folder / "metrics.jsonl")
    return [{k: value for k, value in row.items() if not k.startswith("time/")} for row in rows]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def steps_of(run: Path) -> list[int]:
    """Those of the checkpoints that a run has."""
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").iterdir())


def assert_same_run(one: Path, other: Path) -> None:
    """All that two runs leave is the same, to the last bit, but for folders, clocks, pictures."""
    for row, wanted in zip(*map(read_metrics, (one, other)), strict=True):
        differing = {
            key: (row.get(key), wanted[key]) for key in wanted if row.get(key) != wanted[key]
        }
        assert not differing, (wanted["step"], differing)
    contents = [
        {
            str(path.relative_to(run)): path.read_bytes()
            for path in run.rglob("*")
            if path.is_file() and path.name not in ("args.json", "metrics.jsonl", "curves.png")
        }
        for run in (one, other)
    ]
    assert contents[0].keys() == contents[1].keys()
    assert [name for name, text in contents[0].items() if contents[1][name] != text] == []
