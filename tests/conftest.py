"""Of all tests: no hub, one thread (so that parallel runs do not fight), and the reference vectors."""

import json
import os
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub library is imported: a test that asks for the network fails at once
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def vectors() -> dict[str, dict]:
    """The reference vectors by name: inputs, expected, tol."""
    return {entry["name"]: entry for entry in json.loads(Path(__file__).with_name("vectors.json").read_text())["vectors"]}
