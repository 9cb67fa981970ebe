"""Padded batches of prompts and completions, and their division among ranks and micro-batches."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from common import ranks

NOT_YET: Any = None
SHARE = 1 / 3  # of the tokens: what reading prompts once must save to be worth a second pass

Completions = tuple[list[list[int]], list[list[float]]]  # token ids, and their log-probabilities


@dataclass(frozen=True)
class Sampled:
    """What rewards and checks need of B completions beside tensors."""

    ids: list[list[int]]  # token ids, the end-of-sequence token included
    texts: list[str]
    columns: dict[str, list]  # the dataset's, a value per completion
    logp: Tensor  # [B, T] under the sampler
    version: int  # the training step whose weights sampled
    truncated: float  # share of the completions that were cut off


@dataclass(frozen=True)
class Batch:
    """B completions with their prompts. A prompt's G completions stand in adjacent rows.

    Prompts are padded on the left and completions on the right, so that all completions begin in
    one column.
    """

    prompts: Tensor  # [B, L] token ids
    prompt_mask: Tensor  # [B, L] 1 on tokens, 0 on padding
    completions: Tensor  # [B, T] token ids, the end-of-sequence token included
    mask: Tensor  # [B, T] float, 1 on sampled tokens, 0 on padding
    # these three once `with_logprobs` gave them
    old_logp: Tensor = NOT_YET  # [B, T] under the policy that sampled
    ref_logp: Tensor = NOT_YET  # [B, T] under the reference model
    token_weight: Tensor = NOT_YET  # [B, T] how much a token's loss counts
    prompt_of: Tensor | None = None  # [B] its prompt's number, where prompts are read once
    rows: Tensor = NOT_YET  # [b] of a micro-batch: the rows of the whole batch that it holds
    sampled: Sampled = NOT_YET  # of the whole batch

    @property
    def lengths(self) -> Tensor:
        """Completion lengths in tokens, [B] float."""
        return self.mask.sum(1)

    def with_logprobs(self, old_logp: Tensor, ref_logp: Tensor, tis_cap: float) -> "Batch":
        """With these, [B, T] each. tis_cap: weigh a token with min(trainer's / sampler's
        probability, tis_cap); 0 weighs all alike."""
        tis = (old_logp - self.sampled.logp).exp().clamp(max=tis_cap) if tis_cap else 1
        return replace(self, old_logp=old_logp, ref_logp=ref_logp, token_weight=self.mask * tis)

    def select(self, rows: Tensor) -> "Batch":
        """The given rows [b], cut to the longest prompt and completion among them."""
        prompt_mask, mask = self.prompt_mask[rows], self.mask[rows]
        start = prompt_mask.size(1) - int(prompt_mask.sum(1).max())
        end = int(mask.sum(1).max())
        per_token = ("completions", "mask", "old_logp", "ref_logp", "token_weight")
        given = {name: getattr(self, name) for name in per_token if getattr(self, name) is not None}
        return Batch(
            prompts=self.prompts[rows, start:],
            prompt_mask=prompt_mask[:, start:],
            prompt_of=None if self.prompt_of is None else self.prompt_of[rows],
            rows=rows,
            **{name: tensor[rows, :end] for name, tensor in given.items()},
        )


def table(rows: list[list], padding: float, device, left: bool = False) -> Tensor:
    """Lists of numbers as one tensor, padded on the right or on the left to the longest."""
    width = max(map(len, rows))
    fill = [[padding] * (width - len(row)) for row in rows]
    pairs = zip(fill, rows, strict=True) if left else zip(rows, fill, strict=True)
    return torch.tensor([one + other for one, other in pairs], device=device)


def pad_left(rows: list[list[int]], pad_id: int, device) -> tuple[Tensor, Tensor]:
    """Prompts, lists of token ids, as (ids, mask), [B, L] each."""
    ones = [[1] * len(row) for row in rows]
    return table(rows, pad_id, device, left=True), table(ones, 0, device, left=True)


def pad(prompts: list[list[int]], completions: list[list[int]], pad_id: int, device="cpu") -> Batch:
    """A `Batch` of B prompts and their B completions (lists of token ids, none of them empty)."""
    mask = table([[1.0] * len(row) for row in completions], 0.0, device)
    return Batch(*pad_left(prompts, pad_id, device), table(completions, pad_id, device), mask)


def is_first(prompt_of: Tensor) -> Tensor:
    """Whether a row is the first of its prompt, where a prompt's rows are adjacent. [b] -> [b]."""
    return torch.cat([prompt_of.new_ones(1), prompt_of.diff()]) != 0


def micro_batches(batch: Batch, rows: Tensor, max_tokens: int) -> list[Batch]:
    """This rank's share of the rows [b], in micro-batches of at most max_tokens padded tokens each
    (one row may exceed it alone).

    Rows are sorted by length, so that little is padding. Shares are contiguous, so that whole
    prompts stay on one rank; every rank gets equally many micro-batches, as a sharded model needs.
    Prompts are read once only where that saves SHARE of the tokens of all rows, on all ranks alike;
    then a prompt's rows stay together, and its tokens count once.
    """
    sizes = torch.stack([batch.prompt_mask.sum(1), batch.lengths.long()], 1).cpu()  # [B, 2]
    if batch.prompt_of is not None:
        saved = sizes[rows.cpu(), 0][~is_first(batch.prompt_of[rows]).cpu()].sum()
        if saved < SHARE * sizes[rows.cpu()].sum():
            batch = replace(batch, prompt_of=None)
    count = ranks.count()
    shares = [rows[ranks.share(len(rows), rank, count)] for rank in range(count)]
    plans = [_cut(share, sizes, batch.prompt_of, max_tokens) for share in shares]
    most = max(map(len, plans))
    own = plans[ranks.rank()]
    while len(own) < most:
        longest = max(range(len(own)), key=lambda i: len(own[i]))
        half = len(own[longest]) // 2
        own[longest : longest + 1] = [own[longest][:half], own[longest][half:]]
    return [batch.select(part) for part in own]


def _cut(rows: Tensor, sizes: Tensor, prompt_of: Tensor | None, max_tokens: int) -> list[Tensor]:
    rows = rows[sizes[rows].sum(1).argsort(stable=True)]
    of = torch.arange(len(rows)) if prompt_of is None else prompt_of[rows].cpu()
    # prompts by their longest row, each with all its rows
    longest = torch.zeros(len(sizes), dtype=torch.long)
    longest = longest.scatter_reduce_(0, of, sizes[rows].sum(1), "amax")
    order = (longest[of] * len(sizes) + of).argsort(stable=True)
    rows, first = rows[order], is_first(of[order]).tolist()
    chunks, start, prompts, widest = [], 0, 0, (0, 0)  # widest: longest prompt and completion
    for end, size in enumerate(sizes[rows].tolist()):
        prompts, widest = prompts + first[end], tuple(map(max, widest, size))
        padded = prompts * widest[0] + (end + 1 - start) * widest[1]
        if end > start and padded > max_tokens:
            chunks.append(rows[start:end])
            start, prompts, widest = end, 1, size
    return [*chunks, rows[start:]]


def mini_batches(prompts: int, group_size: int, count: int, generator) -> list[Tensor]:
    """Shuffle the prompts and deal them into `count` mini-batches; a prompt's completions stay
    together. Returns `count` index tensors [prompts / count * group_size] into a `Batch`."""
    order = torch.randperm(prompts, generator=generator)
    groups = torch.arange(prompts * group_size).view(prompts, group_size)
    return [groups[chunk].flatten() for chunk in order.view(count, -1)]
