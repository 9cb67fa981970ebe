"""Padding, masks, log-probabilities and sampling against plain full forward passes of tiny random models."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from common.batch import micro_batches, micro_rows, mini_batches, pad
from common.errors import UserError
from common.model import token_logprobs, token_logprobs_no_grad
from common.rollout import TransformersEngine
from common.seeds import derive, generator
from support.models import SHAPE
from testbed.arithmetic import tokenizer

FAMILIES = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
}


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    made = FAMILIES[request.param]().double().eval()
    for parameter in made.parameters():  # far from uniform, so that a wrong position or mask shows
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def random_lists(count: int, low: int, high: int, seed: int) -> list[list[int]]:
    source = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (count,), generator=source)
    return [torch.randint(3, 72, (int(n),), generator=source).tolist() for n in lengths]


def plain_logprobs(model, prompt: list[int], completion: list[int], temperature: float) -> torch.Tensor:
    """One sequence, no padding, no mask, all logits."""
    logits = model(torch.tensor([prompt + completion])).logits[0].double() / temperature
    places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return torch.stack([logits[place].log_softmax(-1)[token] for place, token in zip(places, completion, strict=True)])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_an_unpadded_forward(model, temperature):
    prompts, completions = random_lists(6, 2, 9, 1), random_lists(6, 1, 12, 2)
    batch = pad(prompts, completions, pad_id=0)
    whole = token_logprobs(model, batch, temperature)
    cut = token_logprobs_no_grad(model, batch, temperature, max_tokens=40)
    assert whole.shape == batch.mask.shape
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        expected = plain_logprobs(model, prompt, completion, temperature)
        torch.testing.assert_close(whole[row, : len(completion)], expected)
        torch.testing.assert_close(cut[row, : len(completion)].double(), expected, rtol=1e-5, atol=1e-5)
        assert (whole[row, len(completion) :] == 0).all()
        assert (cut[row, len(completion) :] == 0).all()


def test_padding_tokens_get_no_gradient_and_change_nothing(model):
    prompts, completions = random_lists(4, 2, 9, 3), random_lists(4, 1, 12, 4)
    one, other = pad(prompts, completions, pad_id=0), pad(prompts, completions, pad_id=5)
    assert torch.equal(token_logprobs(model, one, 1.0), token_logprobs(model, other, 1.0))


def test_pad_and_select_agree_with_the_lists():
    prompts, completions = random_lists(7, 1, 9, 5), random_lists(7, 1, 12, 6)
    batch = pad(prompts, completions, pad_id=0)
    before = [t.clone() for t in (batch.prompts, batch.prompt_mask, batch.completions, batch.mask)]
    rows = torch.tensor([4, 0, 6])
    small, direct = batch.select(rows), pad([prompts[i] for i in rows], [completions[i] for i in rows], pad_id=0)
    for name in ("prompts", "prompt_mask", "completions", "mask"):
        assert torch.equal(getattr(small, name), getattr(direct, name)), name
    assert batch.lengths.tolist() == [len(c) for c in completions]
    small.mask.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, (batch.prompts, batch.prompt_mask, batch.completions, batch.mask), strict=True))


@pytest.mark.parametrize("budget", [1, 30, 100, 10**6])
def test_micro_batches_partition_the_rows_within_the_budget(budget):
    prompts, completions = random_lists(20, 1, 9, 7), random_lists(20, 1, 30, 8)
    batch = pad(prompts, completions, pad_id=0)
    rows = torch.tensor([3, 17, 5, 2, 11, 19, 0])
    parts = micro_rows(batch, rows, budget)
    assert sorted(torch.cat(parts).tolist()) == sorted(rows.tolist())
    for part in parts:
        small = batch.select(part)  # what the forward pass gets: long prompts and long completions of different rows meet in it
        assert len(part) == 1 or small.prompts.numel() + small.completions.numel() <= budget


def test_a_micro_batch_carries_what_belongs_to_its_rows():
    batch = pad(random_lists(6, 1, 9, 7), random_lists(6, 4, 30, 8), pad_id=0)
    old, ref, weight = torch.rand(3, *batch.mask.shape)
    seen = []
    for micro in micro_batches(batch.with_logprobs(old, ref, weight), torch.tensor([5, 0, 3, 2]), 60):
        width = micro.mask.size(1)
        for tensor, whole in ((micro.old_logp, old), (micro.ref_logp, ref), (micro.token_weight, weight), (micro.mask, batch.mask)):
            assert torch.equal(tensor, whole[micro.rows, :width])
        seen += micro.rows.tolist()
    assert sorted(seen) == [0, 2, 3, 5]


def test_mini_batches_keep_groups_whole_and_cover_all():
    dealt = mini_batches(prompts=6, group_size=4, count=3, generator=generator(1))
    assert sorted(torch.cat(dealt).tolist()) == list(range(24))
    for rows in dealt:
        assert len(rows) == 8
        assert all((group // 4 == group[0] // 4).all() for group in rows.view(2, 4))
    assert any(not torch.equal(a, b) for a, b in zip(dealt, mini_batches(6, 4, 3, generator(2)), strict=True))


# --- sampling ---


def engine_of(model) -> TransformersEngine:
    return TransformersEngine(model, tokenizer())


def test_greedy_equals_the_argmax_of_full_forwards(model):
    prompts = random_lists(5, 2, 9, 9)
    sampled = engine_of(model).generate(prompts, 1, 10, 0.0, seeds=[0] * 5)[0]
    for prompt, completion in zip(prompts, sampled, strict=True):
        text = list(prompt)
        for token in completion:
            assert token == int(model(torch.tensor([text])).logits[0, -1].argmax())
            text.append(token)
        assert len(completion) == 10 or completion[-1] == 1
        assert 1 not in completion[:-1]


def test_a_completion_depends_on_its_prompt_and_seed_alone(model):
    """Not on the batch, on padding, nor on the order: so resuming, and any division over ranks, repeats it."""
    prompts = random_lists(5, 2, 9, 10)
    seeds = [derive(1, 1, i) for i in range(5)]
    together = engine_of(model).generate(prompts, 3, 12, 1.0, seeds)[0]
    for i in (4, 2, 0):
        assert engine_of(model).generate([prompts[i]], 3, 12, 1.0, [seeds[i]])[0] == together[3 * i : 3 * i + 3]
    assert engine_of(model).generate(prompts, 3, 12, 1.0, [s + 1 for s in seeds])[0] != together
    assert together[0] != together[1]  # one prompt's completions differ


def test_samples_follow_the_model_at_the_temperature(model):
    prompt, temperature, count = [5, 9, 30], 0.8, 20_000
    expected = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    first = torch.tensor([c[0] for c in engine_of(model).generate([prompt], count, 1, temperature, [7])[0]])
    observed = torch.bincount(first, minlength=72) / count
    deviation = (observed - expected) / (expected * (1 - expected) / count).sqrt().clamp(min=1e-9)
    assert deviation[expected > 1e-3].abs().max() < 5
    assert observed[expected < 1e-9].sum() == 0


def test_a_config_that_was_saved_without_cache_samples_the_same(model):
    """As those are that were trained with activation checkpointing."""
    engine = TransformersEngine(model, tokenizer())
    expected = engine.generate([[5, 6, 7]], 2, 6, 1.0, [3])
    model.config.use_cache = False
    assert engine.generate([[5, 6, 7]], 2, 6, 1.0, [3]) == expected


def test_every_stop_token_ends_a_completion(model):
    model.generation_config.eos_token_id = [1, 20, 21]
    completions = engine_of(model).generate([[5, 9]], 200, 30, 1.0, [3])[0]
    ends = {c[-1] for c in completions if len(c) < 30}
    assert ends <= {1, 20, 21}
    assert len(ends) > 1
    assert all(not {1, 20, 21} & set(c[:-1]) for c in completions)


def test_broken_weights_are_named(model):
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        engine_of(model).generate([[5, 9]], 2, 3, 1.0, [3])


def test_derived_seeds_are_distinct_and_repeatable():
    seeds = {derive(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512
    assert derive(1, 2, 3) == derive(1, 2, 3)
    assert derive(1, 2) != derive(2, 1)
