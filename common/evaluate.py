"""Held-out means of every objective, sampled and greedy, on prompts and seeds that stay the same throughout a run and across runs."""

from collections.abc import Callable

from torch import Tensor

from common.rollout import sample
from common.scoring import score
from common.seeds import derive
from common.setup import Data


def evaluate(
    engine,
    data: Data,
    objectives: dict[str, Callable],
    mean_length: float | None,
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
) -> tuple[dict[str, float], list[dict]]:
    """One completion per held-out prompt at `temperature` and one greedy; (metrics, the first sampled completions with their rewards).

    mean_length: what `conciseness` compares with, in tokens; None takes the sampled completions' own mean, as before training. Keeping
    that value for the whole run gives conciseness a yardstick that does not move, unlike the training reward's running mean.
    batch_size: completions at a time. Metrics: eval/<objective> and eval/length, each with its standard error eval/<...>_se, and
    eval/greedy/<...>. Collective.
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
            if heat > 0 and len(values) > 1:
                metrics[f"{prefix}{name}_se"] = values.std().item() / len(values) ** 0.5
        if heat > 0:
            shown = zip(prompts.columns["prompt"][:4], texts, scores.tolist(), strict=False)
            samples = [{"prompt": p, "completion": t, **dict(zip(objectives, s, strict=True))} for p, t, s in shown]
    return metrics, samples
