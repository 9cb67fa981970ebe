"""Several ranks: the same mathematics on 1, 2 and 4 of them, runs that are killed and resumed, and what the ranks do together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.running import NAMES, ROOT, policy_of, read_metrics, run_script
from testbed.arithmetic import base_path

SMALL = {"prompts": 8, "completions": 3, "max_new_tokens": 24, "eval_prompts": 5, "eval_every": 6, "checkpoint_every": 2}


def job(script: str, folder: Path, ranks: int, kill_after: int = 0, **flags) -> dict:
    argv = [f"--{k.replace('_', '-')}={v}" for k, v in (SMALL | flags | {"out": folder}).items()]
    return {"script": script, "folder": str(folder), "ranks": ranks, "kill_after": kill_after, "argv": argv}


def run_jobs(jobs: list[dict], folder: Path) -> None:
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = run_script(str(ROOT / "tests" / "support" / "forked_ranks.py"), str(folder / "jobs.json"))
    assert done.returncode == 0, done.stdout + done.stderr


FULL = {"ratchet": {"warmup": 1}}  # steps of full length, beside which rounding is small
FOUR = ("linear", "mgda")  # one gradient of the model, and one for each objective; so are all others made, by the same parts
KILLED = ("ctwa", "mgda")  # one that remembers weights between steps; test_loop.py stops all that remember something, on one rank
# an estimator knows of no rank: the scripts take turns
CASES = [(name, ("reinforce", "grpo")[i % 2]) for i, name in enumerate(NAMES)]


@pytest.mark.parametrize(("name", "estimator"), CASES)
def test_any_number_of_ranks_is_one_run_and_a_killed_run_resumes(name, estimator, tmp_path):
    """2 steps on 1 rank and on 2, for two scripts also on 4; two take 4 steps on 2 ranks, once killed with SIGKILL after step 2."""
    flags = {"estimator": estimator} | FULL.get(name, {})
    jobs = [job(name, tmp_path / str(ranks), ranks, steps=2, **flags) for ranks in ((1, 4) if name in FOUR else (1,))]
    jobs.append(job(name, tmp_path / "2", 2, steps=4 if name in KILLED else 2, **flags))
    if name in KILLED:
        jobs.append(job(name, tmp_path / "killed", 2, kill_after=2, steps=4, **flags))
    run_jobs(jobs, tmp_path)
    start = load_file(base_path("fragile") / "model.safetensors")
    rows, parameters, advantages = after_two_steps(tmp_path / "1", 0)
    assert min((parameters[k] - start[k]).abs().max() for k in start) > 3e-5  # steps are larger than the tolerance below
    for ranks in (2, 4) if name in FOUR else (2,):
        for rank in range(ranks):
            others, trained, seen = after_two_steps(tmp_path / str(ranks), rank)
            torch.testing.assert_close(seen, advantages, rtol=0, atol=1e-5)
        for row, other in zip(rows, others, strict=True):
            both = row.keys() & other.keys()  # a longer run is not evaluated at step 2
            assert {k: other[k] for k in both} == pytest.approx({k: row[k] for k in both}, rel=1e-4, abs=1e-5)
            assert any(key.startswith("weight/") for key in both) == (row["step"] > 0)
        assert trained.keys() == parameters.keys()
        assert max((trained[k] - parameters[k]).abs().max() for k in trained) < 1e-5
    if name not in KILLED:
        return
    whole, killed = tmp_path / "2", tmp_path / "killed"
    assert [row["step"] for row in read_metrics(killed)] == list(range(5))
    assert read_metrics(killed) == read_metrics(whole)  # to the last bit
    for file in ("model/model.safetensors", "completions.jsonl", "training_completions.jsonl", "statistics.jsonl"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes()


def after_two_steps(run: Path, rank: int) -> tuple[list[dict], dict[str, torch.Tensor], list[torch.Tensor]]:
    """Metrics of steps 0 to 2, parameters after step 2, and what the rank took for the advantages (CTWA: also W) in these steps."""
    rows, seen = read_metrics(run), torch.load(f"{run}.rank{rank}.pt", weights_only=True)
    return rows[:3], policy_of(run / "checkpoints" / "step_000002"), seen[: len(seen) * 2 // (len(rows) - 1)]


def test_bfloat16_and_activation_checkpointing_change_speed_and_memory_alone(tmp_path):
    """On one rank and on two: the same run up to the precision of bfloat16, weights and optimizer in float32, exported as it computes."""
    jobs = []
    for ranks in (1, 2):
        for kind, flags in (("exact", {}), ("kept", {}), ("rough", {"compute_dtype": "bfloat16"})):
            jobs.append(job("mgda", tmp_path / f"{kind}-{ranks}", ranks, steps=1, prompts=4, max_new_tokens=16, **flags))
            jobs[-1]["argv"] += [] if kind == "exact" else ["--activation-checkpointing"]
    run_jobs(jobs, tmp_path)
    for ranks in (1, 2):
        exact, kept, rough = ((read_metrics(tmp_path / f"{kind}-{ranks}")) for kind in ("exact", "kept", "rough"))
        for row, other in zip(exact, kept, strict=True):
            assert other == pytest.approx(row, rel=1e-5, abs=1e-6)
        assert 1e-4 < rough[1]["sampler/gap"] < 0.1  # rounding in bfloat16, and nothing worse
        for name in ("accuracy", "conciseness", "clarity"):
            assert rough[0][f"eval/{name}"] == pytest.approx(exact[0][f"eval/{name}"], abs=0.41)  # two of five completions at most
        saved = policy_of(tmp_path / f"rough-{ranks}" / "checkpoints" / "step_000001")
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
        exported = load_file(tmp_path / f"rough-{ranks}" / "model" / "model.safetensors")
        assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
        assert all(torch.equal(exported[name], saved[name].bfloat16()) for name in exported)


def test_one_rank_has_a_group_of_its_own_also_inside_another():
    """A process that runs a second one, which inherits its environment: both have a group of one rank and neither a port."""
    code = (
        "import os, subprocess, sys, torch; sys.path.insert(0, '.'); from common import ranks; ranks.start(single=True); "
        "assert ranks.count() == 1 and ranks.all_sum(torch.ones(2)).tolist() == [1, 1] and ranks.together(lambda: 5) == [5]; "
        "sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1], '']) if len(sys.argv) == 3 else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, code, "again"], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_address_alone_is_no_torchrun():
    """A job script may export it for other programs; torchrun gives each process a rank as well."""
    code = "import sys, torch; sys.path.insert(0, '.'); from common import ranks; ranks.start(single=False); assert ranks.count() == 1"
    alone = {key: value for key, value in environment().items() if key not in ("RANK", "WORLD_SIZE")} | {"MASTER_ADDR": "node1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- started by torchrun, as a user does ---

FLAGS = ["--steps=2", "--prompts=8", "--completions=4", "--eval-prompts=6", "--eval-every=2"]


def torchrun(*command: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *command]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_two_nodes_are_one_run_and_stop_together(tmp_path):
    """Two torchrun agents that meet on the loopback address, as two nodes would, each with one rank. Then Ctrl-C in both terminals:
    torchrun and its rank get it, and torchrun passes it on."""
    one, two = tmp_path / "one", tmp_path / "two"
    run_jobs([{"script": "mgda", "folder": str(one), "ranks": 1, "kill_after": 0, "argv": [*FLAGS, "--out", str(one)]}], tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = [
        subprocess.Popen(
            torchrun(
                "--nnodes=2", "--nproc_per_node=1", f"--node_rank={node}", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}",
                "--rdzv_id=test", "--local_addr=127.0.0.1", "algos/mgda.py", *FLAGS, "--steps=50", "--out", str(two),
            ),
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )
        for node in (0, 1)
    ]  # fmt: skip
    metrics, deadline = two / "metrics.jsonl", time.time() + 240
    while (not metrics.exists() or metrics.read_bytes().count(b"\n") < 3) and time.time() < deadline and agents[0].poll() is None:
        time.sleep(0.1)
    for agent in agents:
        if agent.poll() is None:  # else what it printed says why
            os.killpg(agent.pid, signal.SIGINT)
    printed = "".join(agent.communicate(timeout=240)[0] for agent in agents)
    rows = read_metrics(two)
    last = rows[-1]["step"]
    assert printed.count(f"stopped by SIGINT after step {last} of 50") == 1, printed  # by rank 0
    assert (two / f"checkpoints/step_{last:06d}/manifest.json").exists()
    for row, other in zip(read_metrics(one), rows[:3], strict=True):
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
        (["--promts=6"], "Unrecognized options: --promts=6"),
    ):
        done = run_script("algos/linear.py", *FLAGS, *flags, "--out", str(tmp_path / "run"), ranks=2)
        assert done.returncode != 0
        assert done.stderr.count(message) == 1, done.stderr
