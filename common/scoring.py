"""Rewards of completions, each rank its share of them: rewards are plain functions and know of no rank."""

from collections.abc import Callable

import torch
from torch import Tensor

import rewards
from common import ranks
from common.batch import Batch


def score(
    objectives: dict[str, Callable],
    texts: list[str],
    ids: list[list[int]],
    columns: dict[str, list],
    mean_length: float,
    answer_check: str,
) -> Tensor:
    """Rewards [B, K] of B completions, on the CPU of every rank; each rank scores a contiguous share of them.

    A prompt's completions are scored by one rank where the number of prompts divides by that of ranks, as it does in training.
    columns: the dataset's, a value per completion, `prompt` among them. mean_length and answer_check: see rewards.score.
    Collective. Raises UserError, on every rank, where a reward does.
    """
    own = ranks.share(len(texts), ranks.rank(), ranks.count())

    def work() -> Tensor:
        return rewards.score(
            objectives,
            prompts=columns["prompt"][own],
            completions=texts[own],
            completion_ids=ids[own],
            mean_length=mean_length,
            columns={name: values[own] for name, values in columns.items()},
            answer_check=answer_check,
        )

    return torch.cat(ranks.together(work))


def score_batch(objectives: dict[str, Callable], batch: Batch, mean_length: float, answer_check: str) -> Tensor:
    """Rewards [B, K] of a training batch, on its device: see `score`."""
    sampled = batch.sampled
    return score(objectives, sampled.texts, sampled.ids, sampled.columns, mean_length, answer_check).to(batch.mask.device)
