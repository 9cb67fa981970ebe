"""Run folders written by hand, whose truth is known."""

import itertools
import json
import math
from pathlib import Path

NAMES = ("accuracy", "conciseness", "clarity")
GOOD = dict(zip(NAMES, ([0.6, 0.4, 0.9], [0.5, 0.8, 0.9], [0.4, 0.9, 1.0]), strict=True))


def write_run(
    folder: Path, evaluations: dict[str, list[float]], se: float = 0.02, every: int = 10, **flags
) -> Path:
    """A run folder whose held-out values are given, one per evaluation; greedily each is half of
    that. Everything else is plausible and the same for all."""
    folder.mkdir(parents=True)
    names = list(evaluations)
    args = {
        "script": "ctwa",
        "objectives": names,
        "seed": 1,
        "estimator": "grpo",
        "model": "testbed",
        "dataset": "arithmetic",
    }
    (folder / "args.json").write_text(json.dumps(args | {"out": str(folder)} | flags))
    count = len(next(iter(evaluations.values())))
    rows = []
    for step in range(every * (count - 1) + 1):
        row = {"step": step}
        if step > 0:
            row |= {
                f"{key}/{name}": 1 / len(names)
                for key in ("weight", "weight_share")
                for name in names
            }
            row |= {f"cov/{name}": math.sin(step + k) / 10 for k, name in enumerate(names)} | {
                "loss/kl": step / 1000,
                "loss/policy": None,
            }
        if step % every == 0:
            held = {name: values[step // every] for name, values in evaluations.items()}
            for key, part in (("eval", 1), ("eval/greedy", 0.5)):
                row |= {f"{key}/{name}": value * part for name, value in held.items()}
                row |= {f"{key}/{name}_se": se for name in names}
                row |= {f"{key}/length": 30 - step / 10, f"{key}/length_se": 0.3}
        rows.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(rows))
    return folder


def write_predicted_run(
    folder: Path, laws: list[float], evals: list[float], row=(), line=(), **flags
) -> Path:
    """A run of two objectives, `hard` with the given predictions per step and `easy` without any,
    evaluated every two steps. row, line: what the metrics and the statistics of each training step
    have besides; line may be a function of the step."""
    folder.mkdir(parents=True)
    args = {"script": "linear", "objectives": ["hard", "easy"], "rewards": ["a:hard", "a:easy"]}
    args |= {"model": "testbed", "dataset": "arithmetic", "estimator": "grpo", "seed": 1, "lr": 1}
    args |= {"steps": len(laws), "completions": 4, "mini_batches": 2, "epochs": 1}
    usual = {"cov": 0.1, "cov_active": 0.1, "signal": 0.8, "reward": 0.5, "law": 0.0}
    usual |= {"weight": 0.5, "weight_share": 0.5}
    kept = {"rewards": [[1, 1], [0, 0]] * 2, "lengths": [9, 5, 9, 5]}
    kept |= {"advantages": [1.0, -1.0, 0.5, -0.5], "drift": [0.1] * 4, "age": [1] * 4}
    rows, lines = [], []
    for step, law in enumerate([None, *laws]):
        rows.append({"step": step})
        if step % 2 == 0:
            for key, each in itertools.product(("eval", "eval/greedy"), ("hard", "easy", "length")):
                mean = evals[step // 2] if each == "hard" else 0.5
                rows[-1] |= {f"{key}/{each}": mean, f"{key}/{each}_se": 0.01}
        if step:
            for key, value in usual.items():
                rows[-1] |= {f"{key}/hard": value, f"{key}/easy": value}
            rows[-1] |= {"law/hard": law, "law/rate": 0.5, "law/nats": 0.1, **dict(row)}
            lines.append({"step": step} | kept | (line(step) if callable(line) else dict(line)))
            kept["rewards"] = [[1, 0], [0, 1], [1, 1], [0, 1]]  # after the first step
    (folder / "args.json").write_text(json.dumps(args | flags))
    for name, found in (("metrics.jsonl", rows), ("statistics.jsonl", lines)):
        (folder / name).write_text("".join(json.dumps(each) + "\n" for each in found))
    return folder
