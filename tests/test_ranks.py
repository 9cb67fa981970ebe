"""Several ranks: the same mathematics on 1, 2 and 4 of them, runs that are killed and resumed, and what the ranks do together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, read_metrics
from safetensors.torch import load_file

from common.arithmetic import base_path

NAMES = sorted(path.stem for path in (ROOT / "algos").glob("[a-z]*.py"))
SMALL = {"prompts": 8, "completions": 3, "max_new_tokens": 24, "eval_prompts": 5, "eval_every": 3, "checkpoint_every": 3}


def job(script: str, folder: Path, ranks: int, kill_after: int = 0, **flags) -> dict:
    argv = [f"--{k.replace('_', '-')}={v}" for k, v in (SMALL | flags | {"out": folder}).items()]
    return {"script": script, "folder": str(folder), "ranks": ranks, "kill_after": kill_after, "argv": argv}


def run_jobs(jobs: list[dict], folder: Path) -> None:
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "forked_ranks.py"), str(folder / "jobs.json")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_ranks_is_one_run_and_a_killed_run_resumes(name, tmp_path):
    """REINFORCE and GRPO, 3 steps on 1, 2 and 4 ranks; 6 steps on 1 and 2, which are also killed with SIGKILL after step 3 and resumed."""
    jobs = []
    for estimator in ("reinforce", "grpo"):
        jobs += [job(name, tmp_path / f"{estimator}-{ranks}", ranks, estimator=estimator, steps=3) for ranks in (1, 2, 4)]
        for ranks in (1, 2):
            flags = {"estimator": estimator, "steps": 6, "lr_schedule": "linear"}
            jobs.append(job(name, tmp_path / f"{estimator}-{ranks}-whole", ranks, **flags))
            jobs.append(job(name, tmp_path / f"{estimator}-{ranks}-killed", ranks, kill_after=3, **flags))
    run_jobs(jobs, tmp_path)
    start = load_file(base_path("fragile") / "model.safetensors")
    for estimator in ("reinforce", "grpo"):
        one = tmp_path / f"{estimator}-1"
        rows, parameters, advantages = read_metrics(one), weights_of(one), torch.load(f"{one}.rank0.pt", weights_only=True)
        assert [row["step"] for row in rows] == [0, 1, 2, 3]
        assert len(advantages) >= 3
        for ranks in (2, 4):
            several = tmp_path / f"{estimator}-{ranks}"
            for row, other in zip(rows, read_metrics(several), strict=True):
                assert other == pytest.approx(row, rel=1e-4, abs=1e-5)
            for rank in range(ranks):
                torch.testing.assert_close(torch.load(f"{several}.rank{rank}.pt", weights_only=True), advantages, rtol=0, atol=1e-5)
            trained = weights_of(several)
            assert trained.keys() == parameters.keys()
            assert max((trained[k] - parameters[k]).abs().max() for k in trained) < 1e-5
        assert min((parameters[k] - start[k]).abs().max() for k in start) > 1e-4  # far more than that
        for ranks in (1, 2):
            whole, killed = tmp_path / f"{estimator}-{ranks}-whole", tmp_path / f"{estimator}-{ranks}-killed"
            assert [row["step"] for row in read_metrics(killed)] == list(range(7))
            assert read_metrics(killed) == read_metrics(whole)  # to the last bit
            for file in ("model/model.safetensors", "completions.jsonl"):
                assert (killed / file).read_bytes() == (whole / file).read_bytes()


# --- started by torchrun, as a user does ---

FLAGS = ["--steps=2", "--prompts=8", "--completions=4", "--eval-prompts=6", "--eval-every=2"]


def torchrun(*command: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *command]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_two_nodes_are_one_run(tmp_path):
    """Two torchrun agents that meet on the loopback address, as two nodes would, each with one rank."""
    one = tmp_path / "one"
    run_jobs([{"script": "mgda", "folder": str(one), "ranks": 1, "kill_after": 0, "argv": [*FLAGS, "--out", str(one)]}], tmp_path)
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = [
        subprocess.Popen(
            torchrun(
                "--nnodes=2", "--nproc_per_node=1", f"--node_rank={node}", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}",
                "--rdzv_id=test", "--local_addr=127.0.0.1", "algos/mgda.py", *FLAGS, "--out", str(tmp_path / "two"),
            ),
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for node in (0, 1)
    ]  # fmt: skip
    printed = [agent.communicate(timeout=240)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], printed
    assert sum("objective" in text for text in printed) == 1  # one verdict, from rank 0
    for row, other in zip(read_metrics(one), read_metrics(tmp_path / "two"), strict=True):
        assert other == pytest.approx(row, rel=1e-4, abs=1e-5)


def test_a_mistake_on_any_rank_is_said_once_and_stops_all(tmp_path):
    """A reward that fails on the last completions only, which rank 1 scores; and a flag that all ranks refuse."""
    (tmp_path / "broken.py").write_text(
        "import os\n\n\ndef bad(completions, **kwargs):\n    if os.environ['RANK'] == '1':\n        raise RuntimeError('no luck')\n"
        "    return [0.0] * len(completions)\n"
    )
    for flags, message in (
        (["--rewards", f"{tmp_path / 'broken.py'}:bad"], "no luck"),
        (["--prompts=6"], "--prompts 6 must be divisible by --mini-batches 2 times the 2 ranks"),
    ):
        done = subprocess.run(
            torchrun("--standalone", "--nproc_per_node=2", "algos/linear.py", *FLAGS, *flags, "--out", str(tmp_path / "run")),
            cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode != 0
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(said) == 1, done.stderr
        assert message in said[0]
