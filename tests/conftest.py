"""Of all tests: no hub, no GPU (they compare with a CPU's numbers, and start more ranks than there
are GPUs), one thread (so that parallel runs do not fight), and what they share."""

import functools
import json
import os
from pathlib import Path

# before the hub library: what asks for the network fails at once
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest


@pytest.fixture(scope="session")
def vectors() -> dict[str, dict]:
    """The reference vectors by name: inputs, expected, tol."""
    entries = json.loads(Path(__file__).with_name("vectors.json").read_text())["vectors"]
    return {entry["name"]: entry for entry in entries}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Runs that several tests look at, and none changes: trained("linear", lr=1e-3) is a folder."""
    from support.running import train  # here, for the tests of TRL are run without tyro

    @functools.cache
    def folder(name: str, **flags) -> Path:
        out = tmp_path_factory.mktemp(name) / "run"
        train(name, out, **flags)
        return out

    return folder
