"""Run folders written by hand, whose truth is known."""

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
    args = {"script": "ctwa", "objectives": names, "seed": 1, "estimator": "grpo", "model": "testbed", "dataset": "arithmetic"}
    (folder / "args.json").write_text(json.dumps(args | {"out": str(folder)} | flags))
    count = len(next(iter(evaluations.values())))
    rows = []
    for step in range(every * (count - 1) + 1):
        row = {"step": step}
        if step > 0:
            row |= {f"{key}/{name}": 1 / len(names) for key in ("weight", "weight_share") for name in names}
            row |= {f"cov/{name}": math.sin(step + k) / 10 for k, name in enumerate(names)} | {"loss/kl": step / 1000, "loss/policy": None}
        if step % every == 0:
            held = {name: values[step // every] for name, values in evaluations.items()}
            for key, part in (("eval", 1), ("eval/greedy", 0.5)):
                row |= {f"{key}/{name}": value * part for name, value in held.items()}
                row |= {f"{key}/{name}_se": se for name in names}
                row |= {f"{key}/length": 30 - step / 10, f"{key}/length_se": 0.3}
        rows.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(rows))
    return folder


def write_predicted_run(folder: Path, laws: list[float], evals: list[float], signal: float = 0.8, cov: float = 0.1) -> Path:
    """A run of two objectives, `hard` with the given predictions per step and `easy` without any, evaluated every two steps."""
    folder.mkdir(parents=True)
    names = ["hard", "easy"]
    args = {"script": "linear", "objectives": names, "seed": 1, "completions": 4, "steps": len(laws), "estimator": "grpo", "lr": 1e-4}
    (folder / "args.json").write_text(json.dumps(args))
    rows, lines = [], []
    for step in range(len(laws) + 1):
        row = {"step": step}
        if step % 2 == 0:
            for key in ("eval", "eval/greedy"):
                row |= {f"{key}/hard": evals[step // 2], f"{key}/easy": 0.5, f"{key}/length": 20.0}
                row |= {f"{key}/{name}_se": 0.01 for name in (*names, "length")}
        if step:
            row |= {"law/hard": laws[step - 1], "law/easy": 0.0, "law/rate": 0.5, "law/nats": 0.1}
            for name, value in zip(names, (cov, 0.0), strict=True):
                row |= {f"cov/{name}": value, f"cov_active/{name}": value, f"signal/{name}": signal, f"reward/{name}": 0.5}
                row |= {f"weight/{name}": 0.5, f"weight_share/{name}": 0.5}
            kept = {"rewards": [[1, 0], [0, 1], [1, 1], [0, 1]], "lengths": [9, 5, 9, 5], "advantages": [1.0, -1.0, 0.5, -0.5]}
            lines.append({"step": step} | kept)
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "statistics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
