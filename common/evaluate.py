"""Rewards of completions, each rank its share of them, and held-out means of every objective."""

import torch
from torch import Tensor

import rewards
from common import ranks
from common.data import Prompts
from common.errors import require
from common.rollout import as_texts, sample
from common.seeds import derive


def score(
    objectives: dict, texts: list, ids: list, columns: dict, mean_length: float, answer_check: str
) -> Tensor:
    """Rewards [B, K], on the CPU of every rank; each scores a contiguous share. Collective.

    columns: the dataset's, a value per completion, `prompt` among them. mean_length: in tokens,
    what conciseness compares with. Raises UserError, on every rank, where a reward does.
    """
    own = ranks.share(len(texts), ranks.rank(), ranks.count())
    mine = {name: values[own] for name, values in columns.items()}
    given = (texts[own], ids[own], mine, mean_length, answer_check)
    return torch.cat(ranks.together(lambda: rewards.score(objectives, *given)))


def evaluate(
    engine, tokenizer, prompts: Prompts, objectives: dict, mean_length: float | None, check, args
) -> tuple[dict[str, float], list[dict]]:
    """--eval-samples completions per held-out prompt at --temperature and one greedy; (metrics, the
    first sampled completions with their rewards). Seeds stay the same throughout a run and across
    runs.

    mean_length: what conciseness compares with; None takes the sampled completions' own mean, as
    before training. check: how accuracy compares. Metrics: eval/<objective> and eval/length, means
    over prompts, each with its standard error eval/<...>_se, and the same as eval/greedy/<...>.
    Collective.
    """
    metrics, samples = {}, []
    for prefix, heat, count in (
        ("eval/", args.temperature, args.eval_samples),
        ("eval/greedy/", 0.0, 1),
    ):
        ids, size = [], max(1, args.prompts * args.completions // count)
        for start in range(0, len(prompts), size):
            part = prompts.ids[start : start + size]
            seeds = [derive(0, start + i) for i in range(len(part))]
            ids += sample(engine, part, count, args.max_new_tokens, heat, seeds)[0]
        texts = as_texts(tokenizer, ids)
        lengths = Tensor([len(row) for row in ids])
        mean_length = lengths.mean().item() if mean_length is None else mean_length
        scores = score(objectives, texts, ids, prompts.repeat(count).columns, mean_length, check)
        for name, values in [*zip(objectives, scores.T, strict=True), ("length", lengths)]:
            values = values.view(-1, count).nanmean(1)  # those of a prompt depend on each other
            values = values[~values.isnan()]  # where a reward applies
            told = f"--eval-prompts {len(prompts)}: {name} applies to {len(values)} of them, and a"
            require(len(values) > 1, f"{told} standard error takes two")
            metrics[prefix + name] = values.mean().item()
            metrics[f"{prefix}{name}_se"] = values.std().item() / len(values) ** 0.5
        if heat > 0:
            firsts = scores[::count].tolist()
            shown = zip(prompts.columns["prompt"][:4], texts[::count], firsts, strict=False)
            samples = [as_row(objectives, *one) for one in shown]
    return metrics, samples


def as_row(objectives, prompt: str, completion: str, scores) -> dict:
    """A completion with its rewards, as it stands in the logs."""
    named = dict(zip(objectives, scores, strict=True))
    return {"prompt": prompt, "completion": completion, **named}
