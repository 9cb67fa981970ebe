"""Padded batches of prompts and completions, and their division among ranks and micro-batches. Nothing here changes its arguments."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common import ranks

SHARE = 1 / 3  # of the tokens: below it, the second pass and the cache cost about what the first one saves


@dataclass(frozen=True)
class Batch:
    """B completions with their prompts. A prompt's G completions stand in adjacent rows.

    Prompts are padded on the left and completions on the right, so that the two meet and every completion begins in one column.
    """

    prompts: Tensor  # [B, L] token ids
    prompt_mask: Tensor  # [B, L] 1 on prompt tokens, 0 on padding
    completions: Tensor  # [B, T] token ids, the end-of-sequence token included
    mask: Tensor  # [B, T] float, 1 on sampled tokens (the end-of-sequence token included), 0 on padding
    old_logp: Tensor | None = None  # [B, T] under the policy that sampled
    ref_logp: Tensor | None = None  # [B, T] under the reference model
    token_weight: Tensor | None = None  # [B, T] how much a token's loss counts: the mask, but for truncated importance sampling
    prompt_of: Tensor | None = None  # [B] a number for each prompt, where the trainer reads it once for all its completions
    rows: Tensor | None = None  # [b] of a micro-batch: which rows of the whole batch it holds
    sampled: "Sampled | None" = None  # of a whole batch that was sampled, not of its parts

    @property
    def lengths(self) -> Tensor:
        """Completion lengths in tokens, [B] float."""
        return self.mask.sum(1)

    def with_logprobs(self, old_logp: Tensor, ref_logp: Tensor, token_weight: Tensor) -> "Batch":
        """The batch with these, [B, T] each."""
        return replace(self, old_logp=old_logp, ref_logp=ref_logp, token_weight=token_weight)

    def select(self, rows: Tensor) -> "Batch":
        """The given rows, cut to the longest prompt and completion among them. rows: [b] indices; returns new tensors."""
        prompt_mask, mask = self.prompt_mask[rows], self.mask[rows]
        longest_prompt, longest = int(prompt_mask.sum(1).max()), int(mask.sum(1).max())
        start = prompt_mask.size(1) - longest_prompt
        return Batch(
            prompts=self.prompts[rows, start:],
            prompt_mask=prompt_mask[:, start:],
            completions=self.completions[rows, :longest],
            mask=mask[:, :longest],
            old_logp=None if self.old_logp is None else self.old_logp[rows, :longest],
            ref_logp=None if self.ref_logp is None else self.ref_logp[rows, :longest],
            token_weight=None if self.token_weight is None else self.token_weight[rows, :longest],
            prompt_of=None if self.prompt_of is None else self.prompt_of[rows],
            rows=rows,
        )


@dataclass(frozen=True)
class Sampled:
    """What rewards and checks need of B completions beside tensors."""

    ids: list[list[int]]  # token ids, the end-of-sequence token included
    texts: list[str]
    columns: dict[str, list]  # the dataset's, a value per completion
    logp: Tensor  # [B, T] under the sampler
    version: int  # the training step whose weights sampled
    truncated: float  # share of the completions that were cut off


def pad(prompts: list[list[int]], completions: list[list[int]], pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Make a `Batch` of B prompts and their B completions (lists of token ids; a completion has at least one token)."""
    longest_prompt, longest = max(map(len, prompts)), max(map(len, completions))
    return Batch(
        prompts=torch.tensor([[pad_id] * (longest_prompt - len(p)) + p for p in prompts], device=device),
        prompt_mask=torch.tensor([[0] * (longest_prompt - len(p)) + [1] * len(p) for p in prompts], device=device),
        completions=torch.tensor([c + [pad_id] * (longest - len(c)) for c in completions], device=device),
        mask=torch.tensor([[1.0] * len(c) + [0.0] * (longest - len(c)) for c in completions], device=device),
    )


def right_pad(rows: list[list[float]], like: Tensor) -> Tensor:
    """Numbers per token, such as the sampler's log-probabilities, in the shape, dtype and on the device of `like` [B, T]; 0 on padding."""
    width = like.size(1)
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows], dtype=like.dtype, device=like.device)


def micro_batches(batch: Batch, rows: Tensor, max_tokens: int) -> list[Batch]:
    """This rank's share of the rows [b] as micro-batches of at most max_tokens padded tokens each: see `micro_rows`.

    Their prompts are read once only where that saves SHARE of the tokens of all rows, on all ranks alike.
    """
    if batch.prompt_of is not None:
        prompts, firsts = batch.prompt_mask.sum(1)[rows], is_first(batch.prompt_of[rows])
        saved, tokens = prompts[~firsts].sum(), prompts.sum() + batch.lengths[rows].sum()
        batch = batch if saved >= SHARE * tokens else replace(batch, prompt_of=None)
    return [batch.select(part) for part in micro_rows(batch, rows, max_tokens)]


def is_first(prompt_of: Tensor) -> Tensor:
    """Whether a row is the first of its prompt, where a prompt's rows are adjacent. [b] -> [b] bool."""
    return torch.cat([prompt_of.new_ones(1), prompt_of.diff()]) != 0


def micro_rows(batch: Batch, rows: Tensor, max_tokens: int) -> list[Tensor]:
    """This rank's share of the rows, cut into micro-batches of at most max_tokens padded tokens each (one row may exceed it alone).

    A micro-batch is as wide as its longest prompt and its longest completion together (`Batch.select`). Rows are sorted by length first,
    so that little of it is padding; where prompts are read once, a prompt's rows stay together and its tokens count once. A rank's share
    is contiguous, so that whole prompts stay on one rank where their number divides by that of ranks; every rank gets equally many
    micro-batches, as a sharded model needs.
    rows: [b] indices, the same on all ranks; returns index tensors. Raises ValueError if some ranks would have no row.
    """
    sizes = torch.stack([batch.prompt_mask.sum(1), batch.lengths.long()], 1).cpu()  # [B, 2] of prompt and completion
    count = ranks.count()
    plans = [_cut(rows[ranks.share(len(rows), rank, count)], sizes, batch.prompt_of, max_tokens) for rank in range(count)]
    most = max(map(len, plans))
    if len(rows) // count < most:
        raise ValueError(f"{len(rows)} rows cannot be divided into {most} micro-batches on each of {count} ranks")
    own = plans[ranks.rank()]
    while len(own) < most:
        longest = max(range(len(own)), key=lambda i: len(own[i]))
        half = len(own[longest]) // 2
        own[longest : longest + 1] = [own[longest][:half], own[longest][half:]]
    return own


def _cut(rows: Tensor, sizes: Tensor, prompt_of: Tensor | None, max_tokens: int) -> list[Tensor]:
    rows = rows[sizes[rows].sum(1).argsort(stable=True)]
    prompt_of = torch.arange(len(rows)) if prompt_of is None else prompt_of[rows].cpu()
    longest = torch.zeros(len(sizes), dtype=torch.long).scatter_reduce_(0, prompt_of, sizes[rows].sum(1), "amax")
    order = (longest[prompt_of] * len(sizes) + prompt_of).argsort(stable=True)  # prompts by their longest row, each with all its rows
    rows, first = rows[order], is_first(prompt_of[order]).tolist()
    chunks, start, prompts, prompt, completion = [], 0, 0, 0, 0
    for end, (next_prompt, next_completion) in enumerate(sizes[rows].tolist()):
        prompts, prompt, completion = prompts + first[end], max(prompt, next_prompt), max(completion, next_completion)
        if end > start and prompts * prompt + (end + 1 - start) * completion > max_tokens:
            chunks.append(rows[start:end])
            start, prompts, prompt, completion = end, 1, next_prompt, next_completion
    return [*chunks, rows[start:]]


def mini_batches(prompts: int, group_size: int, count: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffle the prompts and deal them into `count` mini-batches; a prompt's completions stay together.

    Returns `count` index tensors [prompts / count * group_size] into the rows of a `Batch`.
    """
    order = torch.randperm(prompts, generator=generator)
    groups = torch.arange(prompts * group_size).view(prompts, group_size)
    return [groups[chunk].flatten() for chunk in order.view(count, -1)]
