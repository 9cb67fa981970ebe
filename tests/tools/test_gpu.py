"""The commands for a GPU that nobody here has: they can be read by what they call, and one that fails does not stop the next."""

import importlib
import shlex
import sys

import pytest
import tyro

from study import gpu
from common.errors import UserError
from support.running import ROOT

COMMANDS = [(name, command) for name, part in gpu.PARTS.items() for command in (*part.commands, *part.tiny)]


@pytest.mark.parametrize(("part", "command"), COMMANDS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(COMMANDS)])
def test_every_flag_is_known(part, command):
    program, *words = shlex.split(command)
    if program == "nvidia-smi":
        return
    assert program == "python"
    if words[0] == "-m" and words[1] == "pytest":
        assert all((ROOT / word).is_file() for word in words[2:] if word.endswith(".py"))
    elif words[0] == "-m":
        tyro.cli(importlib.import_module(words[1]).Args, args=words[2:])
    else:
        assert words[0] == "run.py"
        module, own = importlib.import_module(f"tools.{words[1]}"), words[2:]
        given, training = (own[: own.index("--")], own[own.index("--") + 1 :]) if "--" in own else (own, [])
        if hasattr(module, "Args"):
            args = tyro.cli(module.Args, args=given)
            for script in getattr(args, "algos", ()):
                tyro.cli(importlib.import_module(f"algos.{script}").Args, args=training)


def test_a_part_that_fails_or_takes_too_long_is_told_and_the_next_command_begins(tmp_path):
    commands = ("python -c 'print(40 + 2)'", "python -c 'raise SystemExit(3)'", "no-such-program", "python -c 'print(6 * 7)'")
    told = gpu.report(gpu.Part("", 1, (), ()), commands, tmp_path / "part.txt")
    assert told == f"exit code 3: {commands[1]}; FileNotFoundError: {commands[2]}"
    assert (tmp_path / "part.txt").read_text().count("42") == 2
    told = gpu.report(gpu.Part("", 0.01, (), ()), (f"{sys.executable} -c 'import time; time.sleep(30)'",), tmp_path / "part.txt")
    assert told.startswith("TimeoutExpired: ")
    assert gpu.report(gpu.Part("", 1, (), ()), ("python -c 0",), tmp_path / "part.txt") == "done"


def test_what_is_wrong_is_named(tmp_path, capsys):
    with pytest.raises(UserError, match="--only scales: the parts are check, scale"):
        gpu.main(gpu.Args(only=("scales",)))
    with pytest.raises(UserError, match=f"--out {tmp_path} exists already"):
        gpu.main(gpu.Args(out=str(tmp_path)))
    gpu.main(gpu.Args(only=("scale",), dry_run=True, out=str(tmp_path / "none")))
    assert "study.scale --size 0.5b" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
