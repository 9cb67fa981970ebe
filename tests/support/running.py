"""Running the scripts, in this process or in one of their own, and what a run leaves in its folder."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import warnings
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "algos").glob("[a-z]*.py"))
SMALL = {"steps": 3, "prompts": 4, "completions": 4, "eval_prompts": 8, "eval_every": 2, "checkpoint_every": 2}


@functools.cache
def _server() -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "support" / "forkserver.py")]
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.kill)
    return server


def run_script(*command: str, ranks: int = 1, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run `python <command>` from cwd with one thread and no hub, on one rank or several, and return what was printed and the exit code.

    A script, or a module by -m, runs in a fork of a process that has imported the libraries already (forkserver.py).
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    if command[0] == "-c":
        return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        files = {name: os.path.join(folder, name) for name in ("stdout", "stderr")}
        for file in files.values():
            open(file, "w").close()
        print(json.dumps({"command": command, "ranks": ranks, "cwd": str(cwd), "env": environment} | files), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        told = {name: Path(file).read_text() for name, file in files.items()}
    return subprocess.CompletedProcess([sys.executable, *command], code, **told)


def train(name: str, out: Path, picture: bool = False, **flags) -> list[dict]:
    """Run a script's main with few small steps; returns its metrics. The picture takes longer than such a run: one test has it drawn."""
    script = import_module(f"algos.{name}")
    with nullcontext() if picture else patch("common.curves.draw"):
        script.main(script.Args(**(SMALL | {"out": str(out)} | flags)))
    return read_metrics(out)


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl without its clock readings, which differ from run to run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def policy_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The parameters in a checkpoint folder, by their names."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(checkpoint)
    saved = {k: v for k, v in reader.read_metadata().state_dict_metadata.items() if k.startswith("policy.")}
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in saved.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as intended
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return {name.removeprefix("policy."): tensor for name, tensor in tensors.items()}
