"""A few tokens through a model that has just been loaded: does its architecture do what sampling and training ask for?"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from common.batch import Batch, pad
from common.errors import UserError
from common.model import token_logprobs
from integrations.model_checks import first_line

PROMPTS, COMPLETIONS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15]], [[20, 21, 22], [23, 24, 25]]


@torch.no_grad()
def check_architecture(model: str, policy: nn.Module, sampler: nn.Module | None, compute: torch.dtype) -> bool:
    """Refuse an architecture whose log-probabilities change with left padding or with later tokens, or that has no key-value cache which
    can be repeated, selected from and continued. Measured, not looked up: by a name one knows the architectures of today.

    sampler: the whole model that samples, None where that is not transformers. compute: dtype of activations. Collective. Raises UserError
    naming --model. Returns whether a prompt can be read once for all its completions: not where layers are checkpointed, which then keep no
    keys and values, nor where that gives other log-probabilities.
    """
    vocabulary = policy.config.get_text_config().vocab_size
    prompts, completions = ([[token % vocabulary for token in row] for row in rows] for rows in (PROMPTS, COMPLETIONS))
    try:
        batch = pad(prompts, completions, 0, policy.device)
        padded = token_logprobs(policy, batch, 1.0)
        alone = token_logprobs(policy, pad(prompts[1:], [completions[1][:-1]], 0, policy.device), 1.0)
        found = {"without padding and later tokens": (alone, padded[1:, :-1])}
        if sampler:
            found["with its cache"] = (_by_cache(sampler, batch), padded[:, :2])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an architecture that knows no attention mask, position, cache or lm_head says so in its own way
        raise _refusal(model, policy, first_line(error)) from error
    if not padded.isfinite().all():
        raise UserError(f"--model {model}: its log-probabilities are not finite, so its weights are broken; download them again")
    for how, (one, other) in found.items():
        if not _alike(one, other, compute):
            raise _refusal(model, policy, f"{how} its log-probabilities are {(one - other).abs().mean():.2g} nats away")
    if getattr(policy, "checkpointed", ()):
        return False
    batch = pad([p for p in prompts for _ in range(2)], [*completions, *completions[::-1]], 0, policy.device)
    each = token_logprobs(policy, batch, 1.0)
    try:
        once = token_logprobs(policy, replace(batch, prompt_of=torch.tensor([0, 0, 1, 1], device=policy.device)), 1.0)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a cache that cannot be selected from, or be gone on with by several tokens
        return False
    return _alike(once, each, compute)


def _alike(one: Tensor, other: Tensor, compute: torch.dtype) -> bool:
    """Whether log-probabilities are equal but for rounding, which is a small part of the numbers themselves; the gap of a wrong cache or
    position is a large one."""
    gap, size = (one - other).abs().mean().item(), other.abs().mean().item()
    return gap <= (1e-3 + 1e-4 * size if compute == torch.float32 else 0.1 + 0.05 * size)


def _by_cache(sampler: nn.Module, batch: Batch) -> Tensor:
    """The first two tokens' log-probabilities as TransformersEngine has them: the prompts are read once, repeated, and two rows go on in
    another order. [2, 2]."""
    mask = batch.prompt_mask
    output = sampler(batch.prompts, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=True, logits_to_keep=1)
    cache, order = output.past_key_values, torch.tensor([1, 0], device=mask.device)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(2 * order)
    tokens, mask = batch.completions[order], torch.cat([mask, mask.new_ones(2, 1)], 1)[order]
    first, position = output.logits[order, -1], mask.sum(1, keepdim=True) - 1
    output = sampler(tokens[:, :1], attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True)
    logits = torch.stack([first, output.logits[:, -1]], 1).float()
    return logits.log_softmax(-1).gather(2, tokens[:, :2, None]).squeeze(2)[order]


def _refusal(model: str, policy: nn.Module, why: str) -> UserError:
    kind = type(policy).__name__.removeprefix("FSDP")
    return UserError(f"--model {model}: {kind} is not supported ({why}); give a decoder-only transformer, such as a Llama or a Qwen")
