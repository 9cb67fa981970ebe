"""Sampling completions: the engines, the division of prompts among ranks, and the canary that compares sampler with trainer.

An engine has
    `stop_ids`  token ids that end a completion, which it includes;
    `version`   the training step whose weights it samples with, -1 before the first sync;
    `device`    where a batch of its completions goes: the trainer's;
    `prompts_once`  whether the trainer may read a prompt once for all its completions, see `Batch.prompt_of`;
    `share`     (which share of the prompts this rank samples, of how many);
    `sync(model, version)`  takes the trainer's weights; collective, and the only way in which weights reach a sampler;
    `generate(prompts, completions, max_new_tokens, temperature, seeds)`  token lists and their log-probabilities, on this rank alone.
"""

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common import ranks
from common.batch import Batch, Sampled, pad, right_pad
from common.errors import UserError
from common.model import full_parameters, load_config, load_whole
from integrations.model_checks import files_of, loading
from integrations.pretrained import model_path
from prompts import Prompts


@dataclass(frozen=True)
class Rollout:
    """The completions of a batch of prompts, prompt by prompt, the same on every rank."""

    ids: list[list[int]]  # B token lists, each ending with its stop token if it reached one
    logprobs: list[list[float]]  # of every token under the sampler, at its temperature
    version: int  # of the weights that sampled


def sample(engine, prompts: list[list[int]], completions: int, max_new_tokens: int, temperature: float, seeds: list[int]) -> Rollout:
    """Sample `completions` completions of every prompt: each rank (or tensor-parallel group) its share of the prompts, whole ones.

    prompts: token ids, the same on every rank. temperature: 0 is greedy; no top-p and no top-k, which would sample from another
    distribution than the one that is trained. seeds: one per prompt. Collective. Raises UserError, on every rank, if an engine does.
    """
    index, shares = engine.share
    own = ranks.share(len(prompts), index, shares)
    parts = ranks.together(lambda: engine.generate(prompts[own], completions, max_new_tokens, temperature, seeds[own]))
    parts = parts[:: ranks.count() // shares]  # ranks of one tensor-parallel group have sampled the same
    return Rollout([i for ids, _ in parts for i in ids], [p for _, logprobs in parts for p in logprobs], engine.version)


def roll_out(engine, tokenizer, prompts: Prompts, completions: int, max_new_tokens: int, temperature: float) -> Batch:
    """Sample the completions of a training step's prompts, as `sample` does, and pad them: B = P * G rows, the same on every rank."""
    found = sample(engine, prompts.ids, completions, max_new_tokens, temperature, prompts.seeds)
    batch = pad([p for p in prompts.ids for _ in range(completions)], found.ids, tokenizer.pad_token_id, engine.device)
    sampled = Sampled(
        ids=found.ids,
        texts=tokenizer.batch_decode(found.ids, skip_special_tokens=True),
        columns=prompts.repeat(completions),
        logp=right_pad(found.logprobs, batch.mask),
        version=found.version,
        truncated=sum(len(i) == max_new_tokens and i[-1] not in engine.stop_ids for i in found.ids) / len(found.ids),
    )
    numbers = torch.arange(len(prompts.ids), device=engine.device).repeat_interleave(completions)
    return replace(batch, sampled=sampled, prompt_of=numbers if engine.prompts_once else None)


def make_engine(
    name: str,
    model: str,
    tokenizer,
    device: torch.device,
    dtype: torch.dtype,
    max_length: int,
    seed: int,
    trust_remote_code: bool = False,
    vllm_tp: int = 1,
    vllm_memory: float = 0.4,
    vllm_sleep: bool = False,
):
    """The engine by its name in --engine, with the weights of `model` until its first sync. Collective.

    dtype: of the sampler's weights and activations. max_length: of a prompt and its completion, in tokens. Built before the policy:
    vLLM measures the free memory when it starts.
    """
    if name == "transformers":
        return TransformersEngine(model, tokenizer, device, dtype, trust_remote_code)
    from integrations.vllm_engine import VLLMEngine

    stops = stop_tokens(model, tokenizer, trust_remote_code)
    return VLLMEngine(model_path(model), stops, max_length, dtype, seed, vllm_tp, vllm_memory, vllm_sleep, trust_remote_code)


def stop_tokens(model: str, tokenizer, trust_remote_code: bool = False) -> set[int]:
    """The ids that end a completion: the tokenizer's, and those of the model's generation config (end of turn, end of text)."""
    from transformers import GenerationConfig

    with loading(model, "its generation config could not be read"):
        try:
            stops = GenerationConfig.from_pretrained(files_of(model_path(model))["pretrained_model_name_or_path"]).eos_token_id
        except OSError:  # a model without the file
            stops = load_config(model, trust_remote_code).get_text_config().eos_token_id
    return _stops(stops, tokenizer)


def _stops(stops: int | list[int] | None, tokenizer) -> set[int]:
    return {tokenizer.eos_token_id, *(s for s in (stops if isinstance(stops, list) else [stops]) if s is not None)}


class TransformersEngine:
    """Samples with the Hugging Face model through its key-value cache, on any device.

    A policy that is whole on this rank samples itself. A sharded one would gather every layer for every token; so each rank has a whole
    copy in the compute dtype beside it, and syncs it.
    Against `model.generate`: a prompt is read once for its G completions, and finished completions leave the batch, which on the testbed
    doubles the tokens per second (study/sampling.py). A token is chosen by one uniform number, drawn from its prompt's own seed and
    inverted through the distribution, so a completion depends on its prompt and seed alone: not on the batch it stands in.
    """

    prompts_once = False  # until `check_architecture` has found that the policy can

    def __init__(self, model: str | nn.Module, tokenizer, device: torch.device | None = None, dtype=torch.float32, trust_remote_code=False):
        """model: a name as in --model, whose weights come with the first sync, or a whole model to sample with."""
        if isinstance(model, str):
            self.stop_ids = stop_tokens(model, tokenizer, trust_remote_code)
            self.copies = dist.is_initialized()
            self.model = load_whole(model, device, trust_remote_code, dtype).requires_grad_(False) if self.copies else None
        else:
            self.stop_ids, self.copies, self.model = _stops(model.generation_config.eos_token_id, tokenizer), False, model
        self.pad_id, self.version, self.share = tokenizer.pad_token_id, -1, (ranks.rank(), ranks.count())

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def sync(self, model: nn.Module, version: int) -> None:
        """Take the trainer's weights: copied parameter by parameter into this rank's copy, or the model itself where it is whole."""
        if self.copies:
            own = dict(self.model.named_parameters())
            for name, whole in full_parameters(model, next(iter(own.values())).dtype):
                own.pop(name).copy_(whole)
            if own:
                raise RuntimeError(f"the sampler has parameters that the policy lacks: {', '.join(own)}")
        else:
            self.model = model
        self.version = version

    @torch.inference_mode()
    def generate(
        self, prompts: list[list[int]], completions: int, max_new_tokens: int, temperature: float, seeds: list[int]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Token lists and the log-probabilities of their tokens at this temperature (at 0, greedy, those at 1). See `sample`.

        Raises UserError if the model's logits are not finite.
        """
        if not prompts:
            return [], []
        device = self.model.device
        longest = max(map(len, prompts))
        ids = torch.tensor([[self.pad_id] * (longest - len(p)) + p for p in prompts], device=device)  # [P, L]
        attention = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        uniforms = torch.cat([torch.rand(completions, max_new_tokens, generator=torch.Generator().manual_seed(s)) for s in seeds])
        uniforms, stop_ids = uniforms.to(device), torch.tensor(sorted(self.stop_ids), device=device)

        # asked for, because a config that was saved for training may say not to
        cached = {"use_cache": True, "logits_to_keep": 1}
        output = self.model(ids, attention_mask=attention, position_ids=(attention.cumsum(1) - 1).clamp(min=0), **cached)
        cache = output.past_key_values
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
                rows, chosen, position, attention = rows[kept], chosen[kept], position[kept], attention[kept]
                cache.batch_select_indices(kept)
            attention = torch.cat([attention, attention.new_ones(len(rows), 1)], 1)
            output = self.model(
                chosen[:, None],
                attention_mask=attention if padded else None,  # without padding the attention kernel is faster unmasked
                position_ids=position[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            logits, position = output.logits[:, -1], position + 1
        lengths = lengths.tolist()
        return tuple([row[:length] for row, length in zip(table.tolist(), lengths, strict=True)] for table in (tokens, logprobs))


def _choose(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The token at which the cumulative distribution passes the uniform number; at temperature 0 the most likely; and its log-probability.

    logits [B, V], uniform [B] -> [B], [B].
    """
    if not torch.isfinite(logits).all():
        raise UserError("the model's logits are not finite: the weights have diverged or are broken; lower --lr or check --model")
    # float64: in float32 the cumulative sum over a large vocabulary loses its small probabilities
    probabilities = (logits.double() / (temperature or 1.0)).softmax(-1)
    if temperature == 0:
        chosen = logits.argmax(-1)
    else:
        cumulative = probabilities.cumsum(-1)
        target = uniform.double() * cumulative[:, -1]
        chosen = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1).clamp(max=logits.size(-1) - 1)
    return chosen, probabilities.gather(1, chosen[:, None]).squeeze(1).log().float()


class Canary:
    """Compares the sampler's log-probabilities with the trainer's, on the first rollout after every sync, and stops a run that drifts.

    A sampler that kept old weights, or samples from another distribution than the one trained, shows in no reward and in no loss: only
    here. In float32 the two differ by rounding; in bfloat16 by about .01 to .02 nats, because their kernels differ.
    """

    def __init__(self, limit: float, compute: torch.dtype) -> None:
        """limit: mean absolute gap, in nats, that must not be passed twice in a row; 0 takes 1e-3 in float32 and .1 in other dtypes."""
        self.limit, self.strikes = limit or (1e-3 if compute == torch.float32 else 0.1), 0

    def check(self, step: int, batch: Batch, trainer: Tensor) -> dict[str, float]:
        """The gaps to log. step: the training step; trainer [B, T]: log-probabilities under the policy that the sampler should be.

        Raises UserError at the second mean gap in a row that is above the limit or NaN, RuntimeError if a sync was left out.
        """
        version, mask = batch.sampled.version, batch.mask
        if version != step - 1:
            raise RuntimeError(f"the sampler has the weights of step {version}, not of step {step - 1}: engine.sync was left out")
        gap = (trainer - batch.sampled.logp).abs() * mask
        mean = (gap.sum() / mask.sum()).item()
        self.strikes = 0 if mean <= self.limit else self.strikes + 1
        if self.strikes == 2:
            raise UserError(
                f"step {step}: the sampler's log-probabilities are {mean:.2g} nats away from the trainer's, above --max-logp-gap "
                f"{self.limit:g} for the second time (it should have the weights of step {version}). Usual causes: the sampler has old "
                "weights (sync failed, or its layers keep a packed copy), its prefix cache was not reset, its temperature, top-p, top-k or "
                "dtype differ from the trainer's, or it computes this architecture otherwise (its cache, padding, routing or lm_head)"
            )
        return {"sampler/gap": mean, "sampler/gap_max": gap.max().item(), "sampler/version": version}
