"""Several ranks: one run on 1, 2 or 4 of them, killed or not, and what they do together."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from common import ranks
from common.errors import UserError
from common.model import full_parameters, load_model
from support.models import CPU, random_model
from support.running import (
    ROOT,
    as_flags,
    assert_same_run,
    call,
    from_the_command_line,
    on_ranks,
    read_metrics,
    steps_of,
    weights_of,
)
from testbed.arithmetic import base_path, problems

SMALL = {"prompts": 8, "completions": 3, "max_new_tokens": 24, "steps": 2}
SMALL |= {"eval_prompts": 5, "eval_every": 2, "checkpoint_every": 2, "lr": 3e-4}


TORCHRUNS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict:
    """Flags of small runs, on few prompts: a rank takes less long to begin."""
    file = tmp_path_factory.mktemp("data") / "few.jsonl"
    rows = [*zip(*problems("train").values(), strict=True)][:60]
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in rows]
    file.write_text("\n".join(lines))
    return SMALL | {"dataset": str(file), "answer_check": "exact"}


@pytest.fixture(scope="module")
def ranked(tmp_path_factory, small):
    """Runs on several ranks that tests look at: ranked(2, "mgda", steps=3) is a folder."""

    @functools.cache
    def folder(count: int, name: str, kill_at: str = "", **flags) -> Path:
        out = tmp_path_factory.mktemp(name) / "run"
        words = as_flags(**small | flags | {"out": out})
        kill = out / kill_at if kill_at else None
        done = call(from_the_command_line, name, *words, ranks=count, kill_at=kill)
        assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr
        return out

    return folder


@pytest.mark.parametrize(
    ("name", "count", "flags"),
    [
        ("linear", 4, {"estimator": "grpo", "steps": 1}),
        ("ctwa", 2, {"steps": 4}),
        ("mgda", 2, {}),
        ("ratchet", 2, {"lr": 1e-3}),
        ("linear", 2, {"lr": 3e-3, "lora_rank": 3}),  # ranks hold two rows of A, and one
    ],
)
def test_any_number_of_ranks_is_one_run(name, count, flags, small, ranked, trained):
    one, several = trained(name, **small | flags), ranked(count, name, **flags)
    for row, other in zip(*map(read_metrics, (one, several)), strict=True):
        assert other == pytest.approx(row, rel=2e-4, abs=2e-5)
    start, alone, together = map(
        weights_of, (base_path("fragile"), one / "model", several / "model")
    )
    for key in start:
        moved = (alone[key] - start[key]).abs().max()  # far more than this tolerance
        assert moved > 1e-4 or ("lora_rank" in flags and "proj" not in key)
        torch.testing.assert_close(together[key], alone[key], rtol=0, atol=1e-5)


def test_a_killed_run_of_two_ranks_goes_on(ranked):
    """To the last bit, and with half a line in its log."""
    whole = ranked(2, "ctwa", steps=4)
    killed = ranked(2, "ctwa", steps=4, kill_at="checkpoints/step_000002")
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "rewa')
    on_ranks(2, from_the_command_line, "ctwa", "--resume", killed)
    assert_same_run(killed, whole)


@pytest.mark.parametrize("count", [1, 2])
def test_bfloat16_changes_speed_and_memory_alone(count, ranked):
    """Weights and optimizer are float32; it samples and is exported as it computes."""
    rough = ranked(count, "mgda", compute_dtype="bfloat16", steps=1)
    assert 1e-4 < read_metrics(rough)[1]["sampler/gap"] < 0.1  # rounding, and nothing worse
    files = sorted(rough.glob("checkpoints/*/rank_*.pt"))
    parts = [torch.load(file, weights_only=True) for file in files]
    assert {tensor.dtype for part in parts for tensor in part.values()} == {torch.float32}
    for name, tensor in load_file(rough / "model/model.safetensors").items():
        whole = torch.cat([part[f"policy.{name}"] for part in parts])
        assert torch.equal(tensor, whole.bfloat16())
    assert len(parts) == count


# --- what ranks do together ---


def test_a_group_of_one_rank_is_made_where_it_is_asked_for(monkeypatch):
    """Also inside a run of torchrun's, whose environment it inherits; an address alone, which a
    cluster's job script may export, is no torchrun."""
    own = {name: value for name, value in os.environ.items() if name not in TORCHRUNS}
    monkeypatch.setattr(os, "environ", own)
    os.environ["MASTER_ADDR"] = "node1"
    assert ranks.start(single=False) == CPU
    assert not dist.is_initialized()
    os.environ |= {"RANK": "0", "WORLD_SIZE": "2"}
    del os.environ["MASTER_ADDR"]
    for single in (False, True):
        ranks.start(single)
        assert dist.is_initialized() == single
        assert (ranks.rank(), ranks.count()) == (0, 1)
        assert ranks.together(lambda: 3) == [3]
        assert ranks.on_first(lambda: "x") == "x"
        tensor = torch.ones(2)
        assert ranks.all_sum(tensor).tolist() == [1, 1]
        assert ranks.all_sum(tensor) is not tensor
        with pytest.raises(UserError, match="no"):
            ranks.together(lambda: (_ for _ in ()).throw(OSError("no")))
        ranks.stop()


def test_a_mistake_on_any_rank_is_said_once_and_stops_all(small, tmp_path):
    """A reward that fails on what rank 1 scores; and flags that all ranks refuse."""
    (tmp_path / "broken.py").write_text(
        "import os\ndef bad(completions, **kwargs):\n"
        "    assert os.environ['RANK'] == '0', 'no luck'\n"
        "    return [0.0] * len(completions)\n"
    )
    usual = as_flags(**small | {"out": tmp_path / "run"})
    for flags, message in (
        (["--rewards", f"{tmp_path / 'broken.py'}:bad"], "no luck"),
        (["--prompts=6"], "--prompts 6 must be divisible by --mini-batches 2 times the 2 ranks"),
        (["--promts=6"], "Unrecognized options: --promts=6"),
    ):
        done = call(from_the_command_line, "linear", *usual, *flags, ranks=2)
        assert done.returncode == 2
        assert done.stderr.count(message) == 1, done.stderr


def test_torchruns_ranks_are_one_run_and_stop_together(tmp_path, small, trained):
    """Ctrl-C in the terminal: torchrun and its ranks get it, and torchrun passes it on."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "algos/mgda.py"]
    agent = subprocess.Popen(
        [*command, *as_flags(**small | {"steps": 50, "eval_every": 50, "out": run})],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    metrics, deadline = run / "metrics.jsonl", time.time() + 240
    while time.time() < deadline and agent.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") > 2:
            os.killpg(agent.pid, signal.SIGINT)
            break
        time.sleep(0.1)
    printed = agent.communicate(timeout=240)[0]
    rows = read_metrics(run)
    last = rows[-1]["step"]
    assert printed.count(f"stopped by SIGINT after step {last} of 50") == 1, printed  # by rank 0
    assert steps_of(run)[-1] == last
    for row, other in zip(read_metrics(trained("mgda", **small)), rows[:3], strict=True):
        both = {key: row[key] for key in row.keys() & other.keys()}
        assert {key: other[key] for key in both} == pytest.approx(both, rel=2e-4, abs=2e-5)


def digest(folder: str, count: str) -> None:
    """Of all the weights that a model computing in bfloat16 begins with, to the last bit."""
    ranks.start(single=True)
    policy = load_model(f"{folder}/llama", CPU, False, torch.bfloat16)
    parts = [tensor.view(torch.int32) for _, tensor in full_parameters(policy, torch.float32)]
    Path(folder, f"digest{count}").write_text(str(sum(part.long().sum() for part in parts)))
    ranks.stop()


def test_one_rank_begins_with_the_weights_of_two(tmp_path):
    random_model("llama").bfloat16().save_pretrained(tmp_path / "llama")
    for count in (1, 2):
        on_ranks(count, digest, tmp_path, count)
    assert (tmp_path / "digest1").read_text() == (tmp_path / "digest2").read_text()
