"""Sampling completions, and the canary that compares the sampler with the trainer."""

from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common import ranks
from common.batch import Batch, Completions, Sampled, pad, pad_left, table
from common.data import Prompts
from common.errors import UserError, require, told_as
from common.model import full_parameters, load_config, load_whole
from rewards.answers import THOUGHT_TAG


class Engine(Protocol):
    """What samples completions."""

    device: torch.device
    stop_ids: set[int]  # token ids that end a completion, which it includes
    version: int  # the training step whose weights it samples with, -1 before the first sync
    share: tuple[int, int]  # which share of the prompts this rank samples, of how many
    prompts_once: bool  # whether the trainer may read a prompt once for all its completions

    def sync(self, model: nn.Module, version: int) -> None:
        """Take the trainer's weights. Collective."""

    def generate(
        self, prompts: list, completions: int, max_new_tokens: int, temperature: float, seeds: list
    ) -> Completions:
        """See `sample`; on this rank alone. Greedy ones' log-probabilities are at temperature 1."""


def sample(
    engine: Engine,
    prompts: list,
    completions: int,
    max_new_tokens: int,
    temperature: float,
    seeds: list,
) -> Completions:
    """B token lists, prompt by prompt, and the log-probabilities of their tokens, the same on every
    rank: each has sampled its share of the prompts, whole ones. Collective.

    prompts: token ids. seeds: one per prompt. temperature 0 is greedy; no top-p and no top-k, which
    would sample from another distribution than the one that is trained.
    """
    index, shares = engine.share
    own = ranks.share(len(prompts), index, shares)
    how = (completions, max_new_tokens, temperature, seeds[own])
    parts = ranks.together(lambda: engine.generate(prompts[own], *how))
    parts = parts[:: ranks.count() // shares]  # ranks of one tensor-parallel group sampled the same
    return [i for ids, _ in parts for i in ids], [p for _, logp in parts for p in logp]


def roll_out(engine: Engine, tokenizer, prompts: Prompts, args) -> Batch:
    """The completions of a training step's prompts: B = P * G rows, the same on every rank.
    args: how many of each, how long and how hot."""
    G, most = args.completions, args.max_new_tokens
    ids, logp = sample(engine, prompts.ids, G, most, args.temperature, prompts.seeds)  # ty: ignore
    repeated = prompts.repeat(G)
    batch = pad(repeated.ids, ids, tokenizer.pad_token_id, engine.device)
    cut = sum(len(row) == most and row[-1] not in engine.stop_ids for row in ids)
    sampled = Sampled(
        ids,
        texts=as_texts(tokenizer, ids),
        columns=repeated.columns,
        logp=table(logp, 0.0, engine.device),
        version=engine.version,
        truncated=cut / len(ids),
    )
    numbers = torch.arange(len(prompts), device=engine.device).repeat_interleave(G)
    return replace(batch, sampled=sampled, prompt_of=numbers if engine.prompts_once else None)


def as_texts(tokenizer, ids: list[list[int]]) -> list[str]:
    """Completions as rewards see them: without special tokens, but with the tags of thoughts."""
    added = tokenizer.added_tokens_decoder.items()
    gone = {i for i, token in added if token.special and not THOUGHT_TAG.search(token.content)}
    return tokenizer.batch_decode([[i for i in row if i not in gone] for row in ids])


def make_engine(args, model: str, tokenizer, device, dtype, max_length: int) -> Engine:
    """The engine of --engine; built before the policy: vLLM measures the free memory. model: a
    `model_path`. max_length: of a prompt and its completion, in tokens. Collective."""
    stops = stop_tokens(model, tokenizer, args.trust_remote_code)
    if args.engine == "transformers":
        copy = None
        if dist.is_initialized():
            copy = load_whole(model, device, args.trust_remote_code, dtype).requires_grad_(False)
        return TransformersEngine(copy, stops, tokenizer.pad_token_id, device)
    from common.vllm_engine import VLLMEngine

    return VLLMEngine(args, model, stops, max_length, dtype)


def stop_tokens(model: str, tokenizer, trust_remote_code: bool = False) -> set[int]:
    """The ids that end a completion: the tokenizer's and those of the generation config."""
    from transformers import GenerationConfig

    try:
        stops = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # a model without the file
        stops = load_config(model, trust_remote_code).get_text_config().eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    return {tokenizer.eos_token_id, *(token for token in stops if token is not None)}


class TransformersEngine:
    """Samples with the Hugging Face model through its key-value cache, on any device.

    `copy` is this rank's whole copy of a sharded policy, which it syncs; None: the policy is whole,
    and samples itself. A prompt is read once for its G completions, and
    finished ones leave the batch. A token is chosen by one uniform number from its prompt's own
    seed, so a completion does not depend on the batch it stands in.
    """

    prompts_once = False  # until `reads_prompts_once` has found that the policy can

    def __init__(self, copy, stop_ids: set[int], pad_id: int, device) -> None:
        self.stop_ids, self.pad_id, self.version = stop_ids, pad_id, -1
        self.device, self.share, self.model = device, (ranks.rank(), ranks.count()), copy

    @torch.no_grad()
    def sync(self, model: nn.Module, version: int) -> None:
        """Take the trainer's weights: parameter by parameter, or the model itself."""
        self.model, self.version = self.model or model, version
        if self.model is not model:
            own = dict(self.model.named_parameters())
            for name, whole in full_parameters(model, next(iter(own.values())).dtype):
                own[name].copy_(whole)

    @torch.inference_mode()
    def generate(
        self, prompts: list, completions: int, max_new_tokens: int, temperature: float, seeds: list
    ) -> Completions:
        """Token lists and the log-probabilities of their tokens at this temperature (at 0, greedy,
        those at 1). See `sample`."""
        if not prompts:
            return [], []
        device, model = self.device, self.model
        ids, attention = pad_left(prompts, self.pad_id, device)  # [P, L]
        drawn = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = [torch.rand(completions, max_new_tokens, generator=each) for each in drawn]
        uniforms = torch.cat(drawn).to(device)  # [B, T]
        stop_ids = torch.tensor(sorted(self.stop_ids), device=device)

        positions = (attention.cumsum(1) - 1).clamp(min=0)
        output = model(
            ids, attention_mask=attention, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        with told_as("--engine transformers cannot sample this --model: its cache is another"):
            cache: Any = output.past_key_values
            cache.batch_repeat_interleave(completions)
        logits = output.logits[:, -1].repeat_interleave(completions, 0)  # [B, V]
        attention = attention.repeat_interleave(completions, 0)
        position = attention.sum(1)  # [B] of the next token
        padded = bool((attention == 0).any())

        rows = torch.arange(len(logits), device=device)  # the completions still being written
        tokens = torch.zeros(len(logits), max_new_tokens, dtype=torch.long, device=device)
        logprobs = torch.zeros(len(logits), max_new_tokens, device=device)
        lengths = torch.zeros(len(logits), dtype=torch.long, device=device)
        for t in range(max_new_tokens):
            chosen, logp = _choose(logits, temperature, uniforms[rows, t])
            tokens[rows, t], logprobs[rows, t], lengths[rows] = chosen, logp, t + 1
            going = ~torch.isin(chosen, stop_ids)
            if t == max_new_tokens - 1 or not going.any():
                break
            if not going.all():
                kept = going.nonzero().squeeze(1)
                rows, chosen, position = rows[kept], chosen[kept], position[kept]
                attention = attention[kept]
                cache.batch_select_indices(kept)
            attention = torch.cat([attention, attention.new_ones(len(rows), 1)], 1)
            output = model(
                chosen[:, None],
                attention_mask=attention if padded else None,  # unmasked is faster
                position_ids=position[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            logits, position = output.logits[:, -1], position + 1
        rows = [zip(each.tolist(), lengths.tolist(), strict=True) for each in (tokens, logprobs)]
        return tuple([row[:end] for row, end in each] for each in rows)  # ty: ignore


def _choose(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The token at which the cumulative distribution passes the uniform number (at temperature 0
    the most likely one), and its log-probability. logits [B, V], uniform [B] -> [B], [B]."""
    finite = bool(torch.isfinite(logits).all())
    require(finite, "the model's logits are not finite: lower --lr or check --model")
    # in float32 the cumulative sum over a large vocabulary loses its small probabilities
    probabilities = (logits.double() / (temperature or 1.0)).softmax(-1)
    if temperature == 0:
        chosen = logits.argmax(-1)
    else:
        cumulative = probabilities.cumsum(-1)
        target = (uniform.double() * cumulative[:, -1])[:, None]
        chosen = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return chosen, probabilities.gather(1, chosen[:, None]).squeeze(1).log().float()


class Canary:
    """Compares the sampler's log-probabilities with the trainer's at every step. Old weights in the
    sampler, or another distribution, show in no reward and no loss: only here."""

    def __init__(
        self, limit: float, compute: torch.dtype, desired_kl: float = 0.0, updates: int = 1
    ) -> None:
        """limit: mean absolute gap in nats; 0 takes 1e-3 in float32 and .1 in bfloat16. updates of
        a step: from the first of them its length is known, so rounding counts as often."""
        self.desired_kl, self.updates = desired_kl, updates
        self.limit = limit or (1e-3 if compute == torch.float32 else 0.1)
        self.strikes = 0

    def check(self, step: int, batch: Batch, trainer: Tensor) -> dict[str, float]:
        """The gaps to log: per token, and the standard deviation of a completion's, in nats.
        trainer [B, T]: log-probabilities under the policy. Raises UserError at the second mean gap
        in a row that is above the limit or NaN, and at the first check where rounding hides what a
        step of --desired-kl does: the rate would fall for good."""
        version, mask = batch.sampled.version, batch.mask
        if version != step - 1:
            raise RuntimeError(f"the sampler has the weights of step {version}: a sync is missing")
        gap = (trainer - batch.sampled.logp) * mask
        noise = gap.sum(1).std().item()
        gap = gap.abs()
        mean = (gap.sum() / mask.sum()).item()
        self.strikes = 0 if mean <= self.limit else self.strikes + 1
        if self.strikes == 2:
            raise UserError(
                f"step {step}: the sampler's log-probabilities are {mean:.2g} nats away from the "
                f"trainer's, above --max-logp-gap {self.limit:g} for the second time: it has old "
                "weights, or computes or samples this model otherwise than the trainer"
            )
        found = {"sampler/gap": mean, "sampler/gap_max": gap.max().item()}
        told = f"--desired-kl {self.desired_kl:g} cannot be measured: with the same weights a"
        told += f" completion has {noise:.2g} nats more or less in the trainer than in the sampler"
        floor = (noise * self.updates) ** 2 / 2
        hidden, self.desired_kl = 0 < self.desired_kl <= floor, 0.0  # asked once
        require(not hidden, f"{told}: --compute-dtype float32, or one well above {floor:.2g}")
        return found | {"sampler/nats": noise}
