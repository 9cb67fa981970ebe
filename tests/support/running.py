"""Running the scripts, in this process or in one of their own, and what a run leaves in its folder."""

import json
import os
import subprocess
import sys
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


def run_script(*command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run `python <command>` from cwd with one thread and no hub, and return what it printed and its exit code."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def train(name: str, out: Path, picture: bool = False, **flags) -> list[dict]:
    """Run a script's main with few small steps; returns its metrics. The picture takes longer than such a run: one test has it drawn."""
    script = import_module(f"algos.{name}")
    with nullcontext() if picture else patch("analysis.curves.draw"):
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
