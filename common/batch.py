"""Padded batches of prompts and completions, and their split into micro-batches. Pure: nothing here changes its arguments."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B completions with their prompts. A prompt's G completions stand in adjacent rows.

    Prompts are padded on the left and completions on the right, so that the two meet and every completion begins in one column.
    """

    prompts: Tensor  # [B, L] token ids
    prompt_mask: Tensor  # [B, L] 1 on prompt tokens, 0 on padding
    completions: Tensor  # [B, T] token ids, the end-of-sequence token included
    mask: Tensor  # [B, T] float, 1 on sampled tokens (the end-of-sequence token included), 0 on padding

    @property
    def lengths(self) -> Tensor:
        """Completion lengths in tokens, [B] float."""
        return self.mask.sum(1)

    def select(self, rows: Tensor) -> "Batch":
        """The given rows, cut to the longest prompt and completion among them. rows: [b] indices; returns new tensors."""
        prompt_mask, mask = self.prompt_mask[rows], self.mask[rows]
        longest_prompt, longest = int(prompt_mask.sum(1).max()), int(mask.sum(1).max())
        start = prompt_mask.size(1) - longest_prompt
        return Batch(self.prompts[rows, start:], prompt_mask[:, start:], self.completions[rows, :longest], mask[:, :longest])


def pad(prompts: list[list[int]], completions: list[list[int]], pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Make a `Batch` of B prompts and their B completions (lists of token ids; a completion has at least one token)."""
    longest_prompt, longest = max(map(len, prompts)), max(map(len, completions))
    return Batch(
        prompts=torch.tensor([[pad_id] * (longest_prompt - len(p)) + p for p in prompts], device=device),
        prompt_mask=torch.tensor([[0] * (longest_prompt - len(p)) + [1] * len(p) for p in prompts], device=device),
        completions=torch.tensor([c + [pad_id] * (longest - len(c)) for c in completions], device=device),
        mask=torch.tensor([[1.0] * len(c) + [0.0] * (longest - len(c)) for c in completions], device=device),
    )


def micro_batches(batch: Batch, rows: Tensor, max_tokens: int) -> list[Tensor]:
    """Split rows into micro-batches of at most max_tokens padded tokens each (one row may exceed it alone).

    Rows are sorted by length first, so that little of a micro-batch is padding. rows: [b] indices; returns index tensors.
    """
    lengths = (batch.prompt_mask.sum(1) + batch.lengths)[rows].cpu()
    order = lengths.argsort(stable=True)
    chunks, start = [], 0
    sizes = lengths[order].tolist()
    for end in range(1, len(sizes) + 1):
        # sorted, so the newest row is the longest: it sets the padded width of the micro-batch
        if end == len(sizes) or (end + 1 - start) * sizes[end] > max_tokens:
            chunks.append(rows[order[start:end]])
            start = end
    return chunks


def mini_batches(prompts: int, group_size: int, count: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffle the prompts and deal them into `count` mini-batches; a prompt's completions stay together.

    Returns `count` index tensors [prompts / count * group_size] into the rows of a `Batch`.
    """
    order = torch.randperm(prompts, generator=generator)
    groups = torch.arange(prompts * group_size).view(prompts, group_size)
    return [groups[chunk].flatten() for chunk in order.view(count, -1)]
