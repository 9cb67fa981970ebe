"""The scripts with --engine vllm on a CPU: they train in step with the trainer's weights, resume,
and stop when the weights are stale.

Each run is a process of its own, because vLLM starts once per process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
import wide

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("vllm", reason="the vLLM environment only: requirements-vllm-cpu.txt")
SIZE = ["--prompts=8", "--completions=8", "--eval-prompts=32", "--eval-every=4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(wide.write(tmp_path_factory.mktemp("wide")))


def run(*command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_follows_the_weights_and_samples_as_transformers_does(model, tmp_path):
    """Six steps of CTWA: the gap after every sync, resuming after four of them, and rewards beside
    those of the other engine."""
    flags = ["algos/ctwa.py", "--model", model, *SIZE, "--lr=3e-4", "--checkpoint-every=2"]
    for engine in ("vllm", "transformers"):
        done = run(*flags, "--steps=6", f"--engine={engine}", "--out", str(tmp_path / engine))
        assert done.returncode == 0, done.stderr
    rows, others = metrics(tmp_path / "vllm"), metrics(tmp_path / "transformers")
    assert max(row["sampler/gap"] for row in rows[1:]) < 1e-4
    assert (
        min(row["loss/kl"] for row in rows[3:]) > 1e-4
    )  # the policy did move away from its start, and the sampler with it
    for name in ("accuracy", "conciseness", "clarity"):
        # 384 completions each, of 48 prompts; five standard errors of a mean of 0s and 1s that are
        # alike within prompts
        ours, theirs = (
            mean(row[f"reward/{name}"] for row in table[1:]) for table in (rows, others)
        )
        assert abs(ours - theirs) < 0.18, (name, ours, theirs)
        assert abs(rows[0][f"eval/{name}"] - others[0][f"eval/{name}"]) < 5 * (2 * 0.25 / 32) ** 0.5
        assert rows[0][f"eval/greedy/{name}"] == pytest.approx(
            others[0][f"eval/greedy/{name}"], abs=1.5 / 32
        )  # at most one tie

    done = run(*flags, "--steps=4", "--engine=vllm", "--out", str(tmp_path / "part"))
    assert done.returncode == 0, done.stderr
    done = run("algos/ctwa.py", "--resume", str(tmp_path / "part"), "--steps=6")
    assert done.returncode == 0, done.stderr
    for row, whole in zip(metrics(tmp_path / "part"), rows, strict=True):
        for key in row.keys() - {key for key in row if key.startswith(("time/", "sampler/"))}:
            assert row[key] == pytest.approx(whole[key], rel=1e-4, abs=1e-5), (row["step"], key)


def test_adapters_reach_the_sampler_merged(model, tmp_path):
    pytest.importorskip("peft")
    flags = ["algos/linear.py", "--model", model, *SIZE, "--lr=3e-3", "--steps=4", "--lora-rank=4"]
    done = run(*flags, "--engine=vllm", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    rows = metrics(tmp_path / "run")
    assert max(row["sampler/gap"] for row in rows[1:]) < 1e-4
    assert rows[4]["loss/kl"] > 1e-4


STALE = """
import sys
sys.path.insert(0, {root!r})
from algos import linear
from common import launch
from common.vllm_engine import VLLMEngine

sync = VLLMEngine.sync
def stale(self, model, version):
    if version == 0:
        sync(self, model, version)
    self.version = version  # claims the new weights and keeps the first
VLLMEngine.sync = stale
sys.argv[0] = "linear"
launch.run(linear.main, linear.Args)
"""


def test_the_canary_stops_a_sampler_with_stale_weights(model, tmp_path):
    flags = [
        "--model",
        model,
        "--engine=vllm",
        *SIZE,
        "--lr=1e-3",
        "--steps=6",
        "--out",
        str(tmp_path / "run"),
    ]
    done = run("-c", STALE.format(root=str(ROOT)), *flags)
    assert done.returncode == 2, done.stderr
    assert "error: step 3: the sampler's log-probabilities" in done.stderr
    assert "old weights" in done.stderr
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[1]["sampler/gap"] < 1e-4 < 1e-2 < rows[2]["sampler/gap"]
