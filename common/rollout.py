"""Engines that sample completions. An engine has `stop_ids`, `sync(model, version)` and `generate(...)`, and so has any that joins."""

import torch
from torch import Tensor, nn

from common.errors import UserError


class TransformersEngine:
    """Samples with the training model itself through its key-value cache, on any device.

    Against `model.generate`: a prompt is read once for its G completions, and finished completions leave the batch, which on the testbed
    doubles the tokens per second (benchmarks/sampling.py). A token is chosen by one uniform number, drawn from its prompt's own seed and
    inverted through the distribution, so a completion depends on its prompt and seed alone: not on the batch it stands in.
    """

    def __init__(self, model: nn.Module, tokenizer) -> None:
        self.model, self.pad_id, self.version = model, tokenizer.pad_token_id, 0
        stops = model.generation_config.eos_token_id  # a chat model may have several: end of turn, end of text
        stops = stops if isinstance(stops, list) else [stops]
        self.stop_ids = {tokenizer.eos_token_id, *(s for s in stops if s is not None)}

    def sync(self, model: nn.Module, version: int) -> None:
        """Take the trainer's weights; here they are the same tensors, so only the version is recorded."""
        self.model, self.version = model, version

    @torch.inference_mode()
    def generate(
        self, prompts: list[list[int]], completions: int, max_new_tokens: int, temperature: float, seeds: list[int]
    ) -> list[list[int]]:
        """Sample `completions` token lists for each prompt: prompt by prompt, adjacent, each ending with its stop token if it reached one.

        prompts: token ids. temperature: 0 is greedy; no top-p and no top-k, which would sample from another distribution than the one that
        is trained. seeds: one per prompt. Raises UserError if the model's logits are not finite.
        """
        device = self.model.device
        longest = max(map(len, prompts))
        ids = torch.tensor([[self.pad_id] * (longest - len(p)) + p for p in prompts], device=device)  # [P, L]
        attention = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        uniforms = torch.cat([torch.rand(completions, max_new_tokens, generator=torch.Generator().manual_seed(s)) for s in seeds])
        uniforms, stop_ids = uniforms.to(device), torch.tensor(sorted(self.stop_ids), device=device)

        output = self.model(ids, attention_mask=attention, position_ids=(attention.cumsum(1) - 1).clamp(min=0), logits_to_keep=1)
        cache = output.past_key_values
        cache.batch_repeat_interleave(completions)
        logits = output.logits[:, -1].repeat_interleave(completions, 0)  # [B, V]
        attention = attention.repeat_interleave(completions, 0)
        position = attention.sum(1)  # [B] of the next token
        padded = bool((attention == 0).any())

        rows = torch.arange(len(logits), device=device)  # the completions still being written
        tokens = torch.zeros(len(logits), max_new_tokens, dtype=torch.long, device=device)
        lengths = torch.zeros(len(logits), dtype=torch.long, device=device)
        for t in range(max_new_tokens):
            chosen = _choose(logits, temperature, uniforms[rows, t])
            tokens[rows, t], lengths[rows] = chosen, t + 1
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
            )
            logits, position = output.logits[:, -1], position + 1
        return [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]


def _choose(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """The token at which the cumulative distribution passes the uniform number; at temperature 0 the most likely. [B,V], [B] -> [B]."""
    if not torch.isfinite(logits).all():
        raise UserError("the model's logits are not finite: the weights have diverged or are broken; lower --lr or check --model")
    if temperature == 0:
        return logits.argmax(-1)
    # float64: in float32 the cumulative sum over a large vocabulary loses its small probabilities
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    target = uniform.double() * cumulative[:, -1]
    return torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1).clamp(max=logits.size(-1) - 1)


ENGINES = {"transformers": TransformersEngine}
