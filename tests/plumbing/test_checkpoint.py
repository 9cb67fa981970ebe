"""Checkpoints: complete, exact on any number of ranks, safe to load, and never lost to a disk that
is full or a file that is damaged."""

import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from common import ranks
from common.checkpoint import load_checkpoint, save_checkpoint
from common.errors import UserError
from support.running import on_ranks, steps_of


class Policy(nn.Module):
    """A tied language model, with parameters that two ranks cannot share evenly, one without a
    gradient, a frozen one and a buffer."""

    device = torch.device("cpu")

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 33}
        self.lm = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))
        self.odd, self.gain, self.idle = (nn.Parameter(torch.randn(n)) for n in (3, 1, 20_000))
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)  # as in every file
        self.register_buffer("seen", torch.randn(2))

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.lm(ids).logits
        return logits.square().mean() * self.gain.sum() + self.odd.square().sum()


def build(seed: int, **settings) -> tuple[Policy, torch.optim.Optimizer]:
    """A policy, sharded where there are several ranks, and its fresh AdamW of two groups."""
    policy = Policy(seed)
    if dist.is_initialized():
        for module in (*policy.lm.model.layers, policy):
            fully_shard(module)
    own = [p for p in policy.parameters() if p.requires_grad]
    groups = [{"params": own[:5]}, {"params": own[5:], "weight_decay": 0.0}]
    return policy, torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1, **settings)


def train(policy: Policy, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        policy(torch.arange(12).view(2, 6) + step).backward()
        optimizer.step()
    policy.seen += steps


def contents(policy: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """A copy of every parameter, buffer and optimizer state, whole."""
    found = dict(policy.state_dict())
    for name, parameter in policy.named_parameters():
        own = optimizer.state.get(parameter, {})
        found |= {f"{name}: {field}": value for field, value in own.items()}
    whole = {k: t.full_tensor() if isinstance(t, DTensor) else t for k, t in found.items()}
    return {name: tensor.clone() for name, tensor in whole.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def save(run: Path, step: int, policy, optimizer, state: dict | None = None, kept=None) -> None:
    save_checkpoint(run, step, policy, optimizer, state or {"step": step}, kept)


def two_checkpoints(run: Path) -> tuple[dict[str, Tensor], Path]:
    """A run with checkpoints of steps 1 and 2: what the first holds, the folder of the second."""
    policy, optimizer = build(1)
    train(policy, optimizer)
    save(run, 1, policy, optimizer)
    first = contents(policy, optimizer)
    train(policy, optimizer)
    save(run, 2, policy, optimizer)
    return first, run / "checkpoints/step_000002"


@pytest.mark.parametrize("settings", [{}, {"amsgrad": True}, {"fused": True}])
def test_a_resumed_run_is_bit_for_bit_the_one_that_was_not_stopped(settings, tmp_path):
    policy, optimizer = build(1, **settings)
    train(policy, optimizer, 3)
    state = {"a": [1, 2.5, None, "x"], "b": {"c": torch.arange(3.0)}, "empty": {}}
    save(tmp_path, 3, policy, optimizer, state)
    saved = contents(policy, optimizer)
    train(policy, optimizer, 2)
    other, fresh = build(2, **settings)
    fresh.param_groups[0]["lr"] = 0.5
    step, loaded = load_checkpoint(tmp_path, other, fresh)
    assert (step, str(loaded)) == (3, str(state))
    written = torch.load(tmp_path / "checkpoints/step_000003/rank_0.pt", weights_only=True)
    assert "policy.frozen" not in written
    assert_same(contents(other, fresh), saved)
    assert other.lm.lm_head.weight is other.lm.model.embed_tokens.weight
    assert [group["lr"] for group in fresh.param_groups] == [0.5, 1e-2]  # the loader's
    fresh.param_groups[0]["lr"] = 1e-2
    train(other, fresh, 2)
    assert_same(contents(other, fresh), contents(policy, optimizer))


def test_an_optimizer_without_a_step_stays_so(tmp_path):
    """As after a first step that was skipped: one step too many would change its correction."""
    policy, optimizer = build(1)
    save(tmp_path, 1, policy, optimizer)
    other, fresh = build(2)
    load_checkpoint(tmp_path, other, fresh)
    assert_same(contents(other, fresh), contents(policy, optimizer))
    assert not fresh.state


def test_the_last_two_are_kept_and_what_a_killed_run_left_is_replaced(tmp_path):
    policy, optimizer = build(1)
    for name in ("step_000002.tmp", "step_000003"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "state.pt").write_bytes(b"half")
    for step in (1, 2, 3):
        save(tmp_path, step, policy, optimizer)
    assert steps_of(tmp_path) == [2, 3]
    assert load_checkpoint(tmp_path, policy, optimizer) == (3, {"step": 3})
    for step in (4, 5):
        save(tmp_path, step, policy, optimizer, kept=2)
    assert steps_of(tmp_path) == [2, 4, 5]
    assert load_checkpoint(tmp_path, policy, of=2) == (2, {"step": 2})
    for step in (999_999, 1_000_000):
        save(tmp_path, step, policy, optimizer)
    assert load_checkpoint(tmp_path, policy, optimizer)[0] == 1_000_000


def test_a_checkpoint_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    written, replace = [], os.replace

    def renamed(source, target):
        written.append(({p.name for p in Path(source).iterdir()}, Path(target).exists()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", renamed)
    save(tmp_path, 1, *build(1))
    assert written == [({"state.pt", "rank_0.pt"}, False)]


@pytest.mark.parametrize("file", ["rank_0.pt", "state.pt"])
def test_a_damaged_file_is_told_and_the_checkpoint_before_it_used(file, tmp_path, capsys):
    """Missing, empty, cut short, or something else."""
    first, folder = two_checkpoints(tmp_path)
    whole = (folder / file).read_bytes()
    for damaged in (None, b"", whole[: len(whole) // 2], whole[:-9], b"?" * len(whole)):
        (folder / file).write_bytes(damaged or b"")
        if damaged is None:
            (folder / file).unlink()
        policy, optimizer = build(2)
        assert load_checkpoint(tmp_path, policy, optimizer) == (1, {"step": 1})
        assert_same(contents(policy, optimizer), first)
        assert "step_000002 cannot be read" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "checkpoints/step_000001")
    with pytest.raises(UserError, match="--resume .*no readable checkpoint"):
        load_checkpoint(tmp_path, *build(2))


class Payload:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("file", ["rank_0.pt", "state.pt"])
def test_code_in_a_checkpoint_is_refused_and_never_run(file, tmp_path):
    _, folder = two_checkpoints(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/step_000001")
    torch.save({"layout": Payload(tmp_path / "mark")}, folder / file)
    with pytest.raises(UserError, match="no readable checkpoint"):
        load_checkpoint(tmp_path, *build(2))
    assert not (tmp_path / "mark").exists()


def test_the_state_comes_to_the_device_that_is_asked_for(tmp_path, monkeypatch):
    policy, optimizer = build(1)
    with monkeypatch.context() as patch:  # what torch writes for a tensor on that GPU
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
        save(tmp_path, 1, policy, optimizer, {"weights": torch.ones(3)})
    _, state = load_checkpoint(tmp_path, policy, optimizer)
    assert torch.equal(state["weights"], torch.ones(3))
    save(tmp_path, 2, policy, optimizer, {"weights": torch.ones(3)})
    _, state = load_checkpoint(tmp_path, policy, optimizer, device="meta")  # as from CPU to GPU
    assert state["weights"].device.type == "meta"


@pytest.mark.parametrize("odd", [None, nn.Parameter(torch.zeros(4))])
def test_another_models_checkpoint_is_refused(odd, tmp_path, capsys):
    policy, optimizer = build(1)
    save(tmp_path, 1, policy, optimizer)
    policy.odd = odd
    with pytest.raises(UserError, match="--resume"):
        load_checkpoint(tmp_path, policy, torch.optim.AdamW(policy.parameters()))
    assert "odd" in (told := capsys.readouterr().out) or "another model" in told


# --- two ranks ---


def from_two_to_two(folder: str) -> None:
    """And back to one, and from one to two."""
    ranks.start(single=False)
    run, one = Path(folder, "two"), Path(folder, "one")
    policy, optimizer = build(1)
    train(policy, optimizer, 3)
    local = policy.lm.model.embed_tokens.weight.to_local()
    assert local.numel() < 33 * 16  # it is sharded, and unevenly
    save(run, 3, policy, optimizer, {"log_weights": torch.arange(3.0)})
    saved = contents(policy, optimizer)
    train(policy, optimizer, 2)
    other, fresh = build(2)
    assert load_checkpoint(run, other, fresh)[0] == 3
    assert_same(contents(other, fresh), saved)
    train(other, fresh, 2)
    assert_same(contents(other, fresh), contents(policy, optimizer))
    other, fresh = build(2)
    assert load_checkpoint(one, other, fresh) == (3, {"seen": [7, None]})
    assert_same(contents(other, fresh), torch.load(one / "whole.pt", weights_only=True))
    if ranks.rank() == 0:
        torch.save(saved, Path(folder, "two.pt"))
    ranks.stop()


def a_fault_of_one_rank_is_all_ranks(folder: str) -> None:
    """One that cannot read makes all use the checkpoint before; one that cannot write stops all,
    and spoils nothing. The limit on a file's size is the system's own."""
    ranks.start(single=False)
    run = Path(folder, "damaged")
    first, _ = two_checkpoints(run)
    read, last = torch.load, ranks.rank() == 1

    def fails(file, **options):
        if last and "000002" in str(file):
            raise OSError("no such device")
        return read(file, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", fails)
        policy, optimizer = build(2)
        assert load_checkpoint(run, policy, optimizer) == (1, {"step": 1})
    assert_same(contents(policy, optimizer), first)
    free = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    for limited in (0, 1):
        if ranks.rank() == limited:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8000, free[1]))
        with pytest.raises(UserError, match=r"step_000003 cannot be written.*--resume"):
            save(run, 3, policy, optimizer)
        resource.setrlimit(resource.RLIMIT_FSIZE, free)
        assert load_checkpoint(run, *build(2))[0] == 2
    ranks.stop()


def test_two_ranks_write_and_read(tmp_path):
    policy, optimizer = build(1)
    train(policy, optimizer, 3)
    save(tmp_path / "one", 3, policy, optimizer, {"seen": [7, None]})
    torch.save(contents(policy, optimizer), tmp_path / "one/whole.pt")
    on_ranks(2, from_two_to_two, tmp_path)
    policy, optimizer = build(2)
    step, state = load_checkpoint(tmp_path / "two", policy, optimizer)
    assert (step, state["log_weights"].tolist()) == (3, [0, 1, 2])
    assert_same(contents(policy, optimizer), torch.load(tmp_path / "two.pt", weights_only=True))


def test_a_fault_of_one_rank(tmp_path):
    on_ranks(2, a_fault_of_one_rank_is_all_ranks, tmp_path)
