"""Shared by the tests: the repository root on the path, one thread (so that parallel runs do not fight), and the reference vectors."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub library is imported: a test that asks for the network fails at once
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def vectors() -> dict[str, dict]:
    """The reference vectors by name: inputs, expected, tol."""
    return {entry["name"]: entry for entry in json.loads((ROOT / "tests" / "vectors.json").read_text())["vectors"]}


def run_script(*command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run `python <command>` from cwd with one thread and no hub, and return what it printed and its exit code."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


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


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl without its clock readings, which differ from run to run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]
