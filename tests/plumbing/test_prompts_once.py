"""A prompt that is read once for all its completions: the same log-probabilities and gradients, fewer tokens, the same on any rank."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from common import ranks
from common.batch import SHARE, micro_batches, micro_rows, pad
from common.model import token_logprobs, token_logprobs_no_grad
from integrations.probe import check_architecture
from support.models import SHAPE
from support.running import read_metrics, train

# Mistral and Gemma 2 with windows that are shorter than the prompts below
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=72, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, sliding_window=5, final_logit_softcapping=None)),
}
P, G = 4, 3


def model(name: str):
    torch.manual_seed(0)
    made = MODELS[name]().double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def a_batch(longest: int = 9, prompt: int = 12, seed: int = 0):
    """P prompts of up to 12 tokens and G completions each, of up to `longest`."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(n: int) -> list[int]:
        return torch.randint(3, 70, (n,), generator=draw).tolist()

    prompts = [tokens(prompt - 2 * i) for i in range(P)]
    lengths = torch.randint(1, longest + 1, (P * G,), generator=draw).tolist()
    apart = pad([p for p in prompts for _ in range(G)], [tokens(n) for n in lengths], 0)
    return apart, replace(apart, prompt_of=torch.arange(P).repeat_interleave(G))


@pytest.mark.parametrize("longest", [9, 1])
@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_and_gradients_are_those_of_every_row_by_itself(name, longest):
    made, (apart, once) = model(name), a_batch(longest)
    seen = []
    for batch in (apart, once, once.select(torch.tensor([3, 4, 5, 9, 11]))):
        made.zero_grad()
        logp = token_logprobs(made, batch, 0.8)
        (logp * torch.arange(1.0, logp.size(1) + 1)).sum().backward()
        seen.append([logp.detach(), *(p.grad.clone() for p in made.parameters())])
    close = {"rtol": 1e-9, "atol": 1e-9} if name == "gpt2" else {"rtol": 1e-3, "atol": 1e-4}  # the others' norms compute in float32
    torch.testing.assert_close(seen[1], seen[0], **close)
    rows = apart.select(torch.tensor([3, 4, 5, 9, 11]))
    torch.testing.assert_close(seen[2][0], token_logprobs(made, rows, 0.8).detach(), **close)


def tokens_read(made, batch, **limits) -> int:
    """Positions that pass through the first layer."""
    read, layer = [], next(m for m in made.modules() if type(m).__name__ in made._no_split_modules)
    hook = layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[:2].numel()))
    token_logprobs_no_grad(made, batch, 0.8, **limits)
    hook.remove()
    return sum(read)


def test_a_prompt_is_read_once_where_that_saves_enough():
    made, (apart, once) = model("llama"), a_batch()
    assert tokens_read(made, apart, max_tokens=10**6) == apart.prompts.numel() + apart.completions.numel()
    assert tokens_read(made, once, max_tokens=10**6) == P * once.prompts.size(1) + len(once.mask) * (once.completions.size(1) - 1)
    short, marked = a_batch(longest=40, prompt=8)
    saved = (G - 1) * sum(8 - 2 * i for i in range(P)) / (short.prompt_mask.sum() + short.mask.sum())
    assert saved < SHARE
    assert tokens_read(made, marked, max_tokens=10**6) == tokens_read(made, short, max_tokens=10**6)
    assert all(micro.prompt_of is None for micro in micro_batches(marked, torch.arange(P * G), 60))


@pytest.mark.parametrize("budget", [1, 40, 70, 10**6])
@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_micro_batches_partition_the_rows_within_the_budget(budget, count, monkeypatch):
    """A prompt's tokens count once in a micro-batch, its rows are adjacent, and every rank has equally many micro-batches."""
    _, batch = a_batch()
    order = torch.cat([torch.arange(G) + G * p for p in (2, 0, 3, 1)])
    plans = []
    for rank in range(count):
        monkeypatch.setattr(ranks, "count", lambda: count)
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        try:
            plans.append(micro_rows(batch, order, budget))
        except ValueError:
            assert budget < 40
            return
    assert torch.cat([part for plan in plans for part in plan]).sort().values.equal(torch.arange(P * G))
    assert len({len(plan) for plan in plans}) == 1
    for part in (part for plan in plans for part in plan):
        numbers = batch.prompt_of[part].tolist()
        assert len(set(numbers)) == sum(a != b for a, b in zip([None, *numbers], numbers, strict=False))
        micro = batch.select(part)
        padded = len(set(numbers)) * micro.prompts.size(1) + micro.completions.numel()
        assert len(part) == 1 or padded <= max(budget, 40)


def test_who_cannot_read_a_prompt_once_is_found_out(monkeypatch):
    """A model whose layers are checkpointed keeps no keys; a cache that selects other rows gives other log-probabilities."""
    from transformers import DynamicCache

    made = model("llama").float()
    assert check_architecture("m", made, None, torch.float32)
    select = DynamicCache.batch_select_indices
    with monkeypatch.context() as broken:
        broken.setattr(DynamicCache, "batch_select_indices", lambda cache, rows: select(cache, rows.flip(0)))
        assert not check_architecture("m", made, None, torch.float32)
        broken.setattr(DynamicCache, "batch_select_indices", None)
        assert not check_architecture("m", made, None, torch.float32)
    made.checkpointed = [made.model.layers[0]]
    assert not check_architecture("m", made, None, torch.float32)


def test_a_run_with_long_prompts_learns_the_same(tmp_path, monkeypatch):
    """Prompts with an example before the question; a policy and a reference that read them once, and row by row."""
    rows = "".join(f'{{"prompt": "{"1+1=2; " * 8}{i}+{i % 7}=", "answer": "{i + i % 7}"}}\n' for i in range(40))
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text(rows)
    flags = {"dataset": str(tmp_path / "data"), "steps": 2, "max_new_tokens": 12, "lr": 1e-3, "micro_batch_tokens": 400}
    once, apart = [], []
    for share, found in ((SHARE, once), (2.0, apart)):
        monkeypatch.setattr("common.batch.SHARE", share)
        train("linear", tmp_path / f"run-{share}", **flags)
        found += read_metrics(tmp_path / f"run-{share}")[1:]
    for one, other in zip(once, apart, strict=True):
        for key in ("reward/conciseness", "loss/policy", "loss/kl", "grad/norm", "law/nats", "sampler/gap"):
            assert one[key] == pytest.approx(other[key], rel=2e-3, abs=2e-5), key
    assert any(one["grad/norm"] != other["grad/norm"] for one, other in zip(once, apart, strict=True))  # two ways of adding up
