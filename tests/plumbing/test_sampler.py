"""Padding, masks, log-probabilities, sampling, micro-batches and the canary: against plain forward
passes of tiny random models, one sequence at a time."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, LlamaConfig

from common import ranks
from common.batch import SHARE, Sampled, is_first, micro_batches, mini_batches, pad
from common.errors import UserError
from common.model import (
    load_model,
    reads_prompts_once,
    token_logprobs,
    token_logprobs_no_grad,
)
from common.rollout import Canary, TransformersEngine, stop_tokens
from common.seeds import derive, generator
from support.models import BASE, CPU, SHAPE, random_model
from support.running import read_metrics, train
from testbed.arithmetic import tokenizer

# Mistral and Gemma 2 with windows that are shorter than the prompts below
KINDS = {"llama": {}, "qwen2": {}, "qwen3": {}, "mistral": {"sliding_window": 5}}
KINDS["gpt2"] = {}  # its positions are absolute: a wrong one shows
KINDS["gemma2"] = {"sliding_window": 5, "final_logit_softcapping": None}
CLOSE = {"rtol": 1e-3, "atol": 1e-4}  # their norms compute in float32


@pytest.fixture(params=KINDS)
def model(request):
    return random_model(request.param, **KINDS[request.param]).double()


@pytest.fixture(scope="module")
def llama():
    return random_model("llama").double()


def lists(count: int, low: int, high: int, seed: int) -> list[list[int]]:
    source = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (count,), generator=source)
    return [torch.randint(3, 72, (int(n),), generator=source).tolist() for n in lengths]


def groups(prompts: int, each: int, prompt: int, longest: int):
    """A batch of prompts of `prompt` tokens and two fewer each, and one that reads them once."""
    asked = [row[: prompt - 2 * i] for i, row in enumerate(lists(prompts, prompt, prompt + 1, 1))]
    said = lists(prompts * each, 1, longest + 1, 2)
    apart = pad([row for row in asked for _ in range(each)], said, 0)
    return apart, replace(apart, prompt_of=torch.arange(prompts).repeat_interleave(each))


# --- Log-probabilities ---


def alone(model, prompt: list[int], completion: list[int], temperature: float) -> torch.Tensor:
    """One sequence, no padding, no mask, all logits."""
    logits = model(torch.tensor([prompt + completion])).logits[0].double() / temperature
    places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    rows = zip(places, completion, strict=True)
    return torch.stack([logits[place].log_softmax(-1)[token] for place, token in rows])


def test_logprobs_equal_an_unpadded_forward(model):
    prompts, completions = lists(6, 2, 9, 1), lists(6, 1, 12, 2)
    batch, other = pad(prompts, completions, 0), pad(prompts, completions, 5)
    whole = token_logprobs(model, batch, 0.7)
    assert torch.equal(whole, token_logprobs(model, other, 0.7))  # whatever the padding token
    cut = token_logprobs_no_grad(model, batch, 0.7, max_tokens=40)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        n, expected = len(completion), alone(model, prompt, completion, 0.7)
        torch.testing.assert_close(whole[row, :n], expected, **CLOSE)
        torch.testing.assert_close(cut[row, :n].double(), expected, **CLOSE)
        assert not whole[row, n:].any()
        assert not cut[row, n:].any()


@pytest.mark.parametrize("longest", [9, 1])
def test_a_prompt_that_is_read_once_gives_the_same(model, longest):
    some = torch.tensor([3, 4, 5, 9, 11])
    apart, once = groups(4, 3, 12, longest)
    seen = []
    for batch in (apart, once):
        model.zero_grad()
        logp = token_logprobs(model, batch, 0.8)
        (logp * torch.arange(1.0, logp.size(1) + 1)).sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        seen.append([logp.detach(), token_logprobs(model, batch.select(some), 0.8), *gradients])
    torch.testing.assert_close(seen[1], seen[0], **CLOSE)


def test_a_prompt_is_read_once_where_that_saves_enough(llama):
    def tokens_read(batch) -> int:
        read, layer = [], llama.model.layers[0]
        hook = layer.register_forward_pre_hook(
            lambda _, inputs: read.append(inputs[0].shape[:2].numel())
        )
        token_logprobs_no_grad(llama, batch, 0.8, max_tokens=10**6)
        hook.remove()
        return sum(read)

    apart, once = groups(4, 3, 12, 9)
    assert tokens_read(apart) == apart.prompts.numel() + apart.completions.numel()
    rest = len(once.mask) * (once.completions.size(1) - 1)
    assert tokens_read(once) == 4 * once.prompts.size(1) + rest
    short, marked = groups(4, 3, 8, 40)
    saved = 2 * sum(8 - 2 * i for i in range(4)) / (short.prompt_mask.sum() + short.mask.sum())
    assert saved < SHARE
    assert tokens_read(marked) == tokens_read(short)


def test_a_model_that_changes_the_logits_of_its_head_is_refused(model):
    """The trainer calls the head itself, chunk by chunk."""
    assert reads_prompts_once("m", model)
    changed = {"cohere": {"logit_scale": 0.5}, "granite": {"logits_scaling": 4.0}, "gemma2": {}}
    for kind, sizes in changed.items():
        made = random_model(kind, **sizes)
        with pytest.raises(UserError, match="--model m cannot be trained: it scales or caps"):
            reads_prompts_once("m", made)


def test_a_model_without_a_cache_of_keys_and_values_is_refused():
    sizes = {"num_hidden_layers": 2, "full_attn_idxs": [1], "conv_L_cache": 3}
    engine = TransformersEngine(random_model("lfm2", **sizes), {1}, 0, CPU)
    with pytest.raises(UserError, match="--engine transformers cannot sample this --model"):
        engine.generate([[5, 6]], 2, 4, 1.0, [1])


def test_who_cannot_read_a_prompt_once_is_found_out(monkeypatch):
    made = random_model("llama")
    assert reads_prompts_once("m", made)
    select = DynamicCache.batch_select_indices
    for broken in (lambda cache, rows: select(cache, rows.flip(0)), None):
        with monkeypatch.context() as patch:
            patch.setattr(DynamicCache, "batch_select_indices", broken)
            assert not reads_prompts_once("m", made)
    with monkeypatch.context() as patch:  # no rank goes on without the others
        patch.setattr("common.ranks.together", lambda work: [work(), False])
        assert not reads_prompts_once("m", made)
    made.checkpointed = [made.model.layers[0]]
    assert not reads_prompts_once("m", made)


def test_a_first_pass_that_fails_is_told_in_one_line():
    made = random_model("llama")
    made.lm_head.weight = torch.nn.Parameter(torch.ones(3, 3))
    with pytest.raises(UserError, match=r"--model m cannot be computed with \(.*shapes"):
        reads_prompts_once("m", made)


# --- Batches ---


def test_a_selection_is_what_its_rows_would_be_alone():
    prompts, completions = lists(7, 1, 9, 5), lists(7, 1, 12, 6)
    batch, rows = pad(prompts, completions, 0), [4, 0, 6]
    small = batch.select(torch.tensor(rows))
    direct = pad([prompts[i] for i in rows], [completions[i] for i in rows], 0)
    for name in ("prompts", "prompt_mask", "completions", "mask"):
        assert torch.equal(getattr(small, name), getattr(direct, name)), name
    assert batch.lengths.tolist() == [len(row) for row in completions]


@pytest.mark.parametrize("budget", [1, 60, 150, 10**6])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("once", [False, True])
def test_micro_batches_partition_the_rows_within_the_budget(budget, count, once, monkeypatch):
    """Every rank takes whole prompts and as many micro-batches as the others; where prompts are
    read once, their rows stay together and their tokens count once."""
    batch = groups(4, 3, 12, 9)[once]
    old, ref = torch.rand(2, *batch.mask.shape)
    sampled = Sampled([], [], {}, torch.zeros_like(batch.mask), 0, 0.0)
    batch = replace(batch, sampled=sampled).with_logprobs(old, ref, 0.0)
    order = torch.cat([torch.arange(3) + 3 * p for p in (2, 0, 3, 1)])
    monkeypatch.setattr(ranks, "count", lambda: count)
    plans = []
    for rank in range(count):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        plans.append(micro_batches(batch, order, budget))
    assert len({len(plan) for plan in plans}) == 1
    for rank, plan in enumerate(plans):
        own = torch.cat([micro.rows for micro in plan]).tolist()
        assert sorted(own) == sorted(order.view(count, -1)[rank].tolist())
        for micro in plan:
            width = micro.mask.size(1)
            for name, whole in (("old_logp", old), ("ref_logp", ref), ("mask", batch.mask)):
                assert torch.equal(getattr(micro, name), whole[micro.rows, :width])
            prompts = int(is_first(micro.prompt_of).sum()) if once else len(micro.rows)
            assert not once or prompts == len(micro.prompt_of.unique())
            padded = prompts * micro.prompts.size(1) + micro.completions.numel()
            assert padded <= budget or len(micro.rows) == 1


def test_micro_batches_are_few_and_little_is_padding():
    batch = pad([[5, 6, 7]] * 16, lists(16, 5, 60, 1), 0)
    whole, single, cut = (micro_batches(batch, torch.arange(16), n) for n in (10**6, 1, 160))
    assert (len(whole), len(single)) == (1, 16)
    real = float(batch.mask.sum() + batch.prompt_mask.sum())
    padded = sum(micro.prompts.numel() + micro.completions.numel() for micro in cut)
    assert 1 - real / padded < 0.2 < 1 - real / (batch.prompts.numel() + batch.completions.numel())


def test_mini_batches_keep_groups_whole_and_cover_all():
    dealt = mini_batches(6, 4, 3, generator(1))
    assert sorted(torch.cat(dealt).tolist()) == list(range(24))
    for rows in dealt:
        assert len(rows) == 8
        assert all((group // 4 == group[0] // 4).all() for group in rows.view(2, 4))
    other = mini_batches(6, 4, 3, generator(2))
    assert any(not torch.equal(a, b) for a, b in zip(dealt, other, strict=True))


def test_shares_are_contiguous_even_and_complete():
    for things in (0, 1, 7, 8, 100):
        for shares in (1, 2, 3, 8):
            parts = [list(range(things))[ranks.share(things, i, shares)] for i in range(shares)]
            assert [x for part in parts for x in part] == list(range(things))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


# --- Sampling ---


def engine(model, stops: set[int] = frozenset({1})) -> TransformersEngine:
    made = TransformersEngine(None, set(stops), 0, CPU)
    made.sync(model, 0)
    return made


def test_greedy_is_the_argmax_and_log_probabilities_are_those_of_full_forwards(model):
    prompts = lists(4, 2, 9, 9)
    ids, logp = engine(model).generate(prompts, 1, 10, 0.0, [0] * 4)
    for prompt, completion, found in zip(prompts, ids, logp, strict=True):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        assert completion == logits.argmax(-1).tolist()
        assert len(completion) == 10 or completion[-1] == 1
        assert 1 not in completion[:-1]
        torch.testing.assert_close(
            torch.tensor(found).double(), alone(model, prompt, completion, 1.0), **CLOSE
        )


def test_a_completion_depends_on_its_prompt_and_seed_alone(model):
    """Not on the batch, padding or order: so resuming, and any division over ranks, repeats it."""
    prompts, seeds = lists(5, 2, 9, 10), [derive(1, 1, i) for i in range(5)]
    together = engine(model).generate(prompts, 3, 12, 1.0, seeds)[0]
    for i in (4, 2, 0):
        again = engine(model).generate([prompts[i]], 3, 12, 1.0, [seeds[i]])[0]
        assert again == together[3 * i : 3 * i + 3]
    assert engine(model).generate(prompts, 3, 12, 1.0, [s + 1 for s in seeds])[0] != together
    assert together[0] != together[1]  # one prompt's completions differ


def test_samples_follow_the_model_at_the_temperature(llama):
    prompt, temperature, count = [5, 9, 30], 0.8, 20_000
    expected = (llama(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    drawn = engine(llama).generate([prompt], count, 1, temperature, [7])[0]
    observed = torch.bincount(torch.tensor([row[0] for row in drawn]), minlength=72) / count
    deviation = (observed - expected) / (expected * (1 - expected) / count).sqrt().clamp(min=1e-9)
    assert deviation[expected > 1e-3].abs().max() < 5
    assert observed[expected < 1e-9].sum() == 0


def test_every_stop_token_ends_a_completion(llama):
    drawn = engine(llama, {1, 20, 21}).generate([[5, 9]], 200, 30, 1.0, [3])[0]
    ends = {row[-1] for row in drawn if len(row) < 30}
    assert 1 < len(ends) <= len(ends & {1, 20, 21})
    assert all(not {1, 20, 21} & set(row[:-1]) for row in drawn)


def test_stop_tokens_are_the_tokenizers_and_the_generation_configs(tmp_path):
    assert stop_tokens(str(BASE), tokenizer()) == {1}
    LlamaConfig(**SHAPE | {"eos_token_id": 5}).save_pretrained(tmp_path)
    assert stop_tokens(str(tmp_path), tokenizer()) == {1, 5}  # without a generation config
    GenerationConfig(eos_token_id=[7, 9]).save_pretrained(tmp_path)
    assert stop_tokens(str(tmp_path), tokenizer()) == {1, 7, 9}


def test_broken_weights_are_named():
    made = random_model("llama")
    torch.nn.init.constant_(made.get_input_embeddings().weight, torch.nan)
    with pytest.raises(UserError, match="not finite"):
        engine(made).generate([[5, 9]], 2, 3, 1.0, [3])


# --- The canary ---


def gaps(*values: float) -> list[dict]:
    """Of a canary with the limit .1, at steps whose sampler is so many nats off per token."""
    canary, rows = Canary(0.1, torch.float32), []
    batch = replace(pad([[5]] * 2, [[6, 7, 8]] * 2, 0), mask=torch.tensor([[1.0, 1.0, 0.0]] * 2))
    for step, value in enumerate(values, 1):
        logp = torch.tensor([[value, -value, 99.0]] * 2)  # the last is padding
        sampled = Sampled([[6, 7]] * 2, ["a"] * 2, {}, logp, step - 1, 0.0)
        rows.append(canary.check(step, replace(batch, sampled=sampled), torch.zeros(2, 3)))
    return rows


def test_the_gap_is_a_mean_over_tokens_and_two_in_a_row_stop_the_run():
    found = [row["sampler/gap"] for row in gaps(0.05, 0.2, 0.05, 0.2, 0.0)]
    assert found == pytest.approx([0.05, 0.2, 0.05, 0.2, 0.0])
    with pytest.raises(UserError, match=r"step 3: .*0.3 nats.*--max-logp-gap 0.1"):
        gaps(0.0, 0.2, 0.3)
    with pytest.raises(UserError, match="step 2"):
        gaps(torch.nan, torch.nan)
    assert (Canary(0.0, torch.float32).limit, Canary(0.0, torch.bfloat16).limit) == (1e-3, 0.1)


def test_a_step_that_rounding_hides_is_refused_at_the_start():
    """Completions that differ by .3 nats, with a standard deviation of .2, as their rounding."""
    batch = pad([[5]] * 3, [[6, 7]] * 3, 0)
    logp = torch.tensor([[0.1, 0.1], [-0.1, -0.1], [0.3, -0.3]])

    def check(canary: Canary, step: int) -> dict:
        given = replace(batch, sampled=Sampled([[6, 7]] * 3, ["a"] * 3, {}, logp, step - 1, 0.0))
        return canary.check(step, given, torch.zeros(3, 2))

    def made(desired_kl: float, updates: int = 1) -> Canary:
        return Canary(1.0, torch.float32, desired_kl, updates)

    canary = made(0.03)
    assert check(canary, 1)["sampler/nats"] == pytest.approx(0.2)  # half of .2 squared is .02
    logp *= 2
    assert check(canary, 2)["sampler/nats"] == pytest.approx(0.4)  # only the first check asks
    logp /= 2
    for step in (1, 5):  # the fifth: of a run that goes on elsewhere
        with pytest.raises(UserError, match=r"--desired-kl 0.01 .* 0.2 nats .*well above 0.02"):
            check(made(0.01), step)
    check(made(0.09, 2), 1)  # known from the first of two updates: half of .4 squared
    with pytest.raises(UserError, match="well above 0.08"):
        check(made(0.07, 2), 1)
    check(made(0.0, 2), 1)


def test_a_missing_sync_is_a_fault_of_the_program():
    batch = pad([[5]], [[6]], 0)
    sampled = Sampled([[6]], ["a"], {}, torch.zeros(1, 1), 3, 0.0)
    with pytest.raises(RuntimeError, match="weights of step 3"):
        Canary(1.0, torch.float32).check(5, replace(batch, sampled=sampled), torch.zeros(1, 1))


def test_a_sampler_with_stale_weights_is_stopped(tmp_path, monkeypatch):
    """The engine keeps the weights of the start and claims to have the new ones."""

    def pretend(self, model, version):
        start = self.model or load_model(str(BASE), CPU, False, torch.float32)
        self.model, self.version = start, version

    healthy = train("linear", tmp_path / "healthy", lr=1e-3)
    assert max(row["sampler/gap"] for row in healthy[1:]) < 1e-5
    monkeypatch.setattr(TransformersEngine, "sync", pretend)
    with pytest.raises(UserError, match="step 3: the sampler's log-probabilities"):
        train("linear", tmp_path / "stale", lr=1e-3, steps=5)
    found = [row["sampler/gap"] > 0.01 for row in read_metrics(tmp_path / "stale")[1:]]
    assert found == [False, True]


def test_tis_weighs_tokens_by_the_truncated_ratio(tmp_path, monkeypatch):
    """A sampler whose log-probabilities are .5 too high: every token weighs e^-.5, or the cap."""
    flags = {"steps": 1, "mini_batches": 1, "kl_coef": 0.0, "max_logp_gap": 9.0}
    generate = TransformersEngine.generate

    def shifted(self, *rest):
        ids, logp = generate(self, *rest)
        return ids, [[value + 0.5 for value in row] for row in logp]

    monkeypatch.setattr(TransformersEngine, "generate", shifted)
    for name, caps in (("linear", {2.0: 0.60653, 0.25: 0.25}), ("mgda", {0.25: 0.25})):
        off = train(name, tmp_path / name, **flags)[1]["grad/norm"]
        for cap, factor in caps.items():
            found = train(name, tmp_path / f"{name}-{cap}", tis_cap=cap, **flags)[1]["grad/norm"]
            assert found == pytest.approx(factor * off, rel=1e-3)
