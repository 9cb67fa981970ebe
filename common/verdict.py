"""What became of each objective from the first evaluation to the last, in numbers and in words.

Sampled completions are judged, as in training. What is used afterwards is often the greedy one; so
what rose in samples and fell greedily is not called improved.
"""

import math
from itertools import takewhile
from typing import NamedTuple

from common.errors import require
from common.runs import Run

FLAT_STEPS = 5  # steps without any difference between completions, to speak of a collapse
NOISE = 2.0  # a change counts beyond this many standard errors


class Move(NamedTuple):
    """A held-out mean from one evaluation to another."""

    start: float
    end: float
    change: float
    noise: float  # 2 standard errors of the change, those of the two ends taken as independent
    status: str  # improved or degraded beyond noise, of the length longer or shorter; or unchanged


class Change(NamedTuple):
    """An objective, or the length in tokens, from the first evaluation to the last."""

    name: str
    start: float  # sampled, as are the next four: see Move
    end: float
    change: float
    noise: float
    sampled: str
    greedy: Move
    lowest: Move  # from the start to the lowest evaluation, sampled
    lowest_step: int
    status: str  # as `sampled`, or mixed: improved in samples, degraded under greedy decoding


def verdict(run: Run) -> str:
    """A table and a sentence or two on a run's first and last evaluation, to print.

    Raises `UserError` like `evaluations`.
    """
    rows = evaluations(run)
    if len(rows) == 1:
        return f"Evaluated only once, at step {rows[0]['step']}: nothing to compare yet."
    changes = [change_of(run, name) for name in (*run.objectives, "length")]
    return f"{_table(changes)}\n{_in_words(changes[:-1])}{_collapse(run)}{_safe(run, rows)}"


def evaluations(run: Run) -> list[dict]:
    """The rows of metrics that hold an evaluation. Raises `UserError` where there is none."""
    rows = [row for row in run.rows if "eval/greedy/length_se" in row]
    require(bool(rows), f"{run.path}: no verdict without an evaluation of two or more prompts")
    return rows


def move(first: dict, row: dict, key: str) -> Move:
    """The change of a metric with a standard error from one row of metrics to another."""
    change = row[key] - first[key]
    noise = NOISE * math.hypot(first[f"{key}_se"], row[f"{key}_se"])
    words = ("longer", "shorter") if key.endswith("/length") else ("improved", "degraded")
    status = words[change < 0] if abs(change) > noise else "unchanged"
    return Move(first[key], row[key], change, noise, status)


def fell(first: dict, row: dict, name: str) -> bool:
    """Whether an objective's held-out mean in `row` lies below that in `first` beyond noise."""
    return move(first, row, f"eval/{name}").status == "degraded"


def change_of(run: Run, name: str) -> Change:
    """What became of one objective, or of the length. Raises `UserError` like `evaluations`."""
    rows, key = evaluations(run), f"eval/{name}"
    first, last, low = rows[0], rows[-1], min(rows, key=lambda row: row[key])
    sampled, greedy = move(first, last, key), move(first, last, f"eval/greedy/{name}")
    mixed = (sampled.status, greedy.status) == ("improved", "degraded")
    status = "mixed" if mixed else sampled.status
    return Change(name, *sampled, greedy, move(first, low, key), low["step"], status)


def _safe(run: Run, rows: list[dict]) -> str:
    """Of a run with --keep-safe that did not end at such a step: which checkpoint was kept."""
    held = [row for row in rows if not any(fell(rows[0], row, name) for name in run.objectives)]
    step = held[-1]["step"]  # the start itself has always held
    if not run.args.get("keep_safe") or step == rows[-1]["step"]:
        return ""
    kept = f": `python run.py export {run.path} --step {step}` writes its model"
    kept = kept if step else ", so --keep-safe has kept no checkpoint"
    return f" Step {step} was the last with no objective below its start beyond noise{kept}."


def _collapse(run: Run) -> str:
    """Where training ended with completions that no longer differed in any reward: a sentence."""
    same = takewhile(
        lambda row: all(row.get(f"signal/{name}") == 0 for name in run.objectives),
        reversed(run.rows),
    )
    steps = [row["step"] for row in same]
    if len(steps) < FLAT_STEPS:
        return ""
    return (
        f" From step {steps[-1]} on no prompt's completions differed in any reward: nothing more "
        "was learned; if the policy has collapsed, start again with a lower --lr."
    )


def _in_words(changes: list[Change]) -> str:
    improved, mixed, lost, same = (
        [c.name for c in changes if c.status == status]
        for status in ("improved", "mixed", "degraded", "unchanged")
    )
    risen = [f"{_join(improved)} improved"] if improved else []
    if mixed:
        risen.append(f"{_join(mixed)} rose in samples alone")
    text = "No objective changed beyond noise"
    if lost:
        ends = ", ".join(f"{c.start:.2f} -> {c.end:.2f}" for c in changes if c.name in lost)
        text = f"{_join(lost)} {'were' if lost[1:] else 'was'} degraded ({ends})"
        if risen:
            text += f" while {_join(risen)}: cross-objective interference"
    elif len(changes) == len(improved) > 1:
        number = {2: "Both", 3: "All three"}.get(len(changes), f"All {len(changes)}")
        text = f"{number} objectives improved"
    elif risen:
        if same:
            risen.append(f"{_join(same)} did not change beyond noise")
        text = ", ".join(risen)
    dips = [
        f"{c.name} dipped to {c.lowest.end:.2f} at step {c.lowest_step}"
        for c in changes
        if c.lowest.status == "degraded" != c.sampled
    ]
    if dips:
        text += f"; {_join(dips)} before {'they' if dips[1:] else 'it'} recovered"
    greedy = [
        f"{c.name} {'rose' if c.greedy.change > 0 else 'fell'} "
        f"({c.greedy.start:.2f} -> {c.greedy.end:.2f})"
        for c in changes
        if c.greedy.status not in ("unchanged", c.sampled)
    ]
    return f"{text}. Greedily {_join(greedy)}." if greedy else f"{text}."


def _join(parts: list[str]) -> str:
    return ", ".join([*parts[:-2], " and ".join(parts[-2:])])


def _table(changes: list[Change]) -> str:
    rows = [
        (
            "objective",
            "start",
            "lowest (step)",
            "end",
            "change ± 2 se",
            "verdict",
            "greedy start -> end ± 2 se",
        )
    ]
    for c in changes:
        of = ".1f" if c.name == "length" else ".3f"
        rows.append(
            (
                c.name,
                f"{c.start:{of}}",
                f"{c.lowest.end:{of}} ({c.lowest_step})",
                f"{c.end:{of}}",
                f"{c.change:+{of}} ± {c.noise:{of}}",
                c.status,
                f"{c.greedy.start:{of}} -> {c.greedy.end:{of}} ± {c.greedy.noise:{of}}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<>>>><<", widths, strict=True))
    return "\n".join(line.format(*row).rstrip() for row in rows)
