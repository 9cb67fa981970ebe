"""Rewards of completions, each rank its share of them, and held-out means of every objective, sampled and greedy."""

from collections.abc import Callable
from math import hypot

import torch
from torch import Tensor

import rewards
from common import ranks
from common.batch import Batch
from common.rollout import sample
from common.seeds import derive
from common.setup import Data


def score(
    objectives: dict[str, Callable], texts: list[str], ids: list[list[int]], columns: dict[str, list], mean_length: float, answer_check: str
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


def evaluate(
    engine, data: Data, objectives: dict[str, Callable], mean_length: float | None, batch_size: int, max_new_tokens: int, temperature: float
) -> tuple[dict[str, float], list[dict]]:
    """One completion per held-out prompt at `temperature` and one greedy; (metrics, the first sampled completions with their rewards).
    Prompts and seeds stay the same throughout a run and across runs.

    mean_length: what `conciseness` compares with, in tokens; None takes the sampled completions' own mean, as before training. Keeping
    that value for the whole run gives conciseness a yardstick that does not move, unlike the training reward's running mean.
    batch_size: completions at a time. Metrics: eval/<objective> and eval/length, each with its standard error eval/<...>_se, and the same
    as eval/greedy/<...>. Collective.
    """
    metrics, samples, prompts = {}, [], data.held_out
    for prefix, heat in (("eval/", temperature), ("eval/greedy/", 0.0)):
        ids = []
        for start in range(0, len(prompts), batch_size):
            part = prompts.ids[start : start + batch_size]
            seeds = [derive(0, start + i) for i in range(len(part))]
            ids += sample(engine, part, 1, max_new_tokens, heat, seeds).ids
        texts = data.tokenizer.batch_decode(ids, skip_special_tokens=True)
        lengths = Tensor([len(row) for row in ids])
        if mean_length is None:
            mean_length = lengths.mean().item()
        scores = score(objectives, texts, ids, prompts.columns, mean_length, data.answer_check)
        for name, values in [*zip(objectives, scores.T, strict=True), ("length", lengths)]:
            metrics[prefix + name] = values.mean().item()
            if len(values) > 1:
                metrics[f"{prefix}{name}_se"] = values.std().item() / len(values) ** 0.5
        if heat > 0:
            shown = zip(prompts.columns["prompt"][:4], texts, scores.tolist(), strict=False)
            samples = [{"prompt": p, "completion": t, **dict(zip(objectives, s, strict=True))} for p, t, s in shown]
    return metrics, samples


def fell(first: dict[str, float], row: dict[str, float], name: str) -> bool:
    """Whether an objective's held-out mean lies below its first one by more than two standard errors of the difference. first, row: the
    metrics of two evaluations."""
    noise = hypot(first[f"eval/{name}_se"], row[f"eval/{name}_se"])
    return row[f"eval/{name}"] < first[f"eval/{name}"] - 2 * noise
