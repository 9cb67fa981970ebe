"""Two processes are one: gloo on the CPU, as torchrun starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SAME = ["CTWA", "CTWA+", "FAMO", "PAMA"]  # +: after_update


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> dict[int, list[dict]]:
    """What each process knew at the end, by the number of processes: {method: its state, weights
    and advantages}."""
    folder, found = tmp_path_factory.mktemp("processes"), {}
    path = os.pathsep.join((str(HERE), str(HERE.parents[1])))
    own = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": path}
    for count, methods in ((1, SAME), (2, [*SAME, "Ratchet"])):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(count), str(HERE / "two_processes.py"), str(folder)]
        how = {"env": os.environ | own, "capture_output": True, "text": True, "timeout": 280}
        done = subprocess.run([*command, *methods], **how)
        assert done.returncode == 0, done.stderr[-3000:]
        files = [folder / f"{count}-{rank}.json" for rank in range(count)]
        found[count] = [json.loads(file.read_text()) for file in files]
    return found


def close(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == pytest.approx(other, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("method", SAME)
def test_two_processes_are_one(method, known):
    one, two = known[1][0][method], [each[method] for each in known[2]]
    assert two[0]["state"] == two[1]["state"]
    assert two[0]["weights"] == two[1]["weights"]
    parts = [each.pop("advantages") for each in two]
    two[0]["advantages"] = [first + second for first, second in zip(*parts, strict=True)]
    assert len(parts[0]) == 3
    assert close(two[0], one)


def test_what_is_measured_on_two_processes_is_known_to_both(known):
    """Ratchet's measure depends on TRL's shuffle, which is each process's own: one process has
    another half of the completions."""
    one, other = (each["Ratchet"]["state"] for each in known[2])
    assert one == other
    assert any(one["multipliers"])
