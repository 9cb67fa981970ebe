"""Weights that came in few bits, computed with in bfloat16: the same to the bit before a step, and moved by it as far as --lr says."""

import pytest
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from study import rounding
from study.rounding import gains
from common.batch import pad
from common.checkpoint import load_checkpoint, save_checkpoint
from common.model import full_parameters, load_model, load_whole, token_logprobs
from integrations.export import export
from integrations.rounding import HALF, badly_spread, spread_evenly
from support.models import SHAPE
from testbed.arithmetic import tokenizer

CPU = torch.device("cpu")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def midway(weights: torch.Tensor) -> torch.Tensor:
    """Each weight in the middle between its bfloat16 number and the next one outwards."""
    return (weights.bfloat16().float().view(torch.int32) + HALF).view(torch.float32)


# --- tensors ---


def awkward() -> torch.Tensor:
    """Many sizes, both signs, zeros, powers of two, the largest and the smallest numbers, ties, and those of float16."""
    many = torch.randn(2000, generator=generator()) * 10.0 ** torch.randint(-30, 30, (2000,), generator=generator())
    special = [0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 2.0**-126, 2.0**-133, -(2.0**-140), 3.3e38, -1e-45]
    return torch.cat([many, midway(many), many.clamp(-6e4, 6e4).half().float(), torch.tensor(special)])


def test_the_copies_are_the_same_to_the_bit():
    weights = awkward()
    spread = spread_evenly(weights, generator())
    assert torch.equal(spread.bfloat16().view(torch.int16), weights.bfloat16().view(torch.int16))
    assert badly_spread(spread)[0] == 0
    assert torch.equal(spread[weights == 0], weights[weights == 0])
    assert (spread != weights)[weights.bfloat16() != 0].float().mean() > 0.99
    assert torch.equal(spread, spread_evenly(weights, generator()))  # the seed decides
    assert not torch.equal(weights, spread)  # nor is the argument changed
    assert torch.equal(weights.view(torch.int32), awkward().view(torch.int32))


@pytest.mark.parametrize("value", [1.0, -1.0, 1.5, 0.3, -0.007, 1.99609375])  # a power of two has neighbours at two distances
@pytest.mark.parametrize("sign", [1, -1])
def test_a_small_step_moves_the_copies_by_its_size_on_average(value, sign):
    weights = torch.full((1_000_000,), value).bfloat16().float()
    step = sign * abs(value) * 2**-12  # a sixteenth to a 32nd of the distance to the next number
    spread = spread_evenly(weights, generator())
    assert spread.bfloat16().float().equal(weights)
    assert badly_spread(spread)[0] == 0  # a million draws: both ends of the range would be among them
    moved = (spread + step).bfloat16().double() - weights.double()
    assert moved.mean().item() == pytest.approx(step, rel=0.03)
    assert (weights + step).bfloat16().float().equal(weights)  # as they came none moves
    tipped = (midway(weights) + step).bfloat16().float() - midway(weights).bfloat16().float()
    assert tipped.abs().mean() > 10 * abs(step) or not tipped.any()  # and from the middle all, or none


def test_what_is_counted():
    numbers = torch.tensor([1.0, -0.5, 3.0, 0.0, -0.0])  # three are bfloat16, zeros apart
    assert badly_spread(numbers) == (0, 3)
    assert badly_spread(midway(numbers)[:3]) == (3, 0)
    assert badly_spread(torch.tensor([0.1, 0.7])) == (0, 0)
    assert badly_spread(torch.tensor([1.0, 1 + 2**-8, 1 + 2**-9], dtype=torch.float16)) == (1, 1)
    assert badly_spread(torch.tensor([0.1, 0.7], dtype=torch.bfloat16)) == (0, 2)


# --- models ---


@pytest.fixture
def group():
    """A process group of this process alone, with which a policy is sharded and computes in bfloat16."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def stored(folder, kind: str) -> str:
    """A random model whose weights are as one would find them: `bfloat16` on disk, or a tenth of them `midway`."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | {"hidden_size": 64, "intermediate_size": 192}, tie_word_embeddings=True)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.1)
        if kind == "midway":
            tenth = torch.rand(parameter.shape) < 0.1
            parameter.data = torch.where(tenth, midway(parameter.data), parameter.data)
    model = model.bfloat16() if kind == "bfloat16" else model
    export(model, tokenizer(), folder, torch.bfloat16 if kind == "bfloat16" else torch.float32)
    return str(folder)


BATCH = pad([[5, 9, 30], [7, 8], [40, 41, 42, 43]], [[3, 4, 5, 6, 1], [8, 9, 1], [12, 50, 33, 2, 8, 1]], 0)


@pytest.mark.parametrize(("kind", "trap"), [("bfloat16", "dead"), ("midway", "jumps")])
def test_a_step_of_a_policy_gains_what_its_rate_says(kind, trap, tmp_path, group):
    model = stored(tmp_path / "model", kind)
    plain = load_whole(model, CPU)
    masters = {name: tensor.clone() for name, tensor in full_parameters(load_model(model, CPU, compute=torch.bfloat16), torch.float32)}
    assert all(masters[name].bfloat16().equal(parameter.bfloat16()) for name, parameter in plain.named_parameters())
    ((predicted, measured),) = gains(masters, plain, BATCH, (5e-6,))
    assert measured == pytest.approx(predicted, rel=0.15)
    ((predicted, measured),) = gains(masters, plain, BATCH, (5e-6,), torch.float32)
    assert measured == pytest.approx(predicted, rel=0.05)  # no rounding at all
    ((predicted, measured),) = gains({name: p.detach() for name, p in plain.named_parameters()}, plain, BATCH, (5e-6,))
    assert measured < predicted / 4 if trap == "dead" else measured > predicted * 2


def test_the_benchmark_prints_a_row_for_each_way_of_storing_and_rate(tmp_path, capsys):
    rounding.main(rounding.Args(model=stored(tmp_path / "model", "bfloat16"), lr=(1e-4, 1e-3), prompts=2))
    exact, small, head, *rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert {len(row) for row in rows} == {len(head)}
    assert exact[0].startswith("computed with in float32: lr 0.0001, ")
    assert small[0].startswith("computed with in float32: lr 0.001, ")
    assert [row[0] for row in rows] == ["float32", "float32", "float16", "float16", "bfloat16", "bfloat16"]
    assert {row[2] for row in rows if row[0] != "float16"} == {"100.0%"}
    assert [row[3] for row in rows] == ["0.0001", "0.001"] * 3


def test_what_does_not_compute_in_bfloat16_keeps_its_weights(tmp_path, group):
    model = stored(tmp_path / "model", "midway")
    plain = dict(load_whole(model, CPU).named_parameters())
    for policy in (load_model(model, CPU, compute=torch.float32), load_model(model, CPU, compute=torch.bfloat16, frozen=True)):
        for name, tensor in full_parameters(policy, torch.float32):
            wanted = plain[name] if next(policy.parameters()).dtype == torch.float32 else plain[name].bfloat16().float()
            assert torch.equal(tensor, wanted)


def test_the_exported_model_and_a_resumed_one_are_not_touched(tmp_path, group):
    model = stored(tmp_path / "model", "bfloat16")
    policy = load_model(model, CPU, compute=torch.bfloat16)
    export(policy, tokenizer(), tmp_path / "out", torch.bfloat16)
    before, after = (dict(load_whole(str(folder), CPU).named_parameters()) for folder in (model, tmp_path / "out"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    token_logprobs(policy, BATCH, 1.0).sum().backward()
    optimizer.step()
    trained = {name: tensor.clone() for name, tensor in full_parameters(policy, torch.float32)}
    save_checkpoint(tmp_path, 1, policy, optimizer, {})
    resumed = load_model(model, CPU, compute=torch.bfloat16)
    load_checkpoint(tmp_path, resumed, torch.optim.AdamW(resumed.parameters(), lr=1e-3))
    assert all(torch.equal(tensor, trained[name]) for name, tensor in full_parameters(resumed, torch.float32))
