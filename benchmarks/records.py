"""One number for the record: the steps a script takes until every objective has beaten its start, and what accuracy fell to on the way.

python -m benchmarks.records [--write]

From docs/results/curves.csv and docs/results/field.csv, every evaluation of every run that is kept. An objective has beaten its start at
the first evaluation from which on, to the last one, it lies above its first value by two standard errors of the difference. --write puts
the table into docs/results.md.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

from analysis.verdict import NOISE
from benchmarks.differing_lines import insert
from benchmarks.results import in_order
from common.errors import plain_errors
from common.flags import RunFlags

ROOT = Path(__file__).resolve().parents[1]
DATA, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "results.md"
MARKS = ("<!-- records: begin -->", "<!-- records: end -->")
OBJECTIVES = ("accuracy", "conciseness", "clarity")
PROMPTS = RunFlags.eval_prompts  # held-out problems of every run of the study


@dataclass
class Args:
    write: bool = False
    """put the table into docs/results.md instead of printing it"""


@dataclass(frozen=True)
class Record:
    """Of one run."""

    steps: int | None  # until all objectives had beaten their starts for good; None where they never did
    lowest: float  # held-out accuracy, over all evaluations
    change: float  # the same less accuracy at the start


def beaten_from(steps: Sequence[int], values: Sequence[float]) -> int | None:
    """The evaluation from which on a 0/1 reward lies above its first mean beyond noise to the end; None where it does not at the end."""
    start, since = values[0], None
    for step, value in zip(steps[:0:-1], values[:0:-1], strict=True):
        noise = NOISE * math.sqrt((start * (1 - start) + value * (1 - value)) / (PROMPTS - 1))
        if value - start <= noise:
            break
        since = step
    return since


def record(steps: Sequence[int], values: dict[str, Sequence[float]]) -> Record:
    """values: every objective's evaluations at `steps`, the first one before training."""
    since = [beaten_from(steps, own) for own in values.values()]
    accuracy = values[OBJECTIVES[0]]
    return Record(None if None in since else max(since), min(accuracy), min(accuracy) - accuracy[0])


def records(texts: Sequence[str]) -> dict[tuple[str, str], dict[str, list[Record]]]:
    """Files like curves.csv -> by (base, estimator), every script's runs in the order of their seeds."""
    runs = defaultdict(list)
    for row in (row for text in texts for row in csv.DictReader(text.splitlines())):
        runs[row["model"], row["estimator"], row["script"], int(row["seed"])].append(row)
    found: dict = defaultdict(lambda: defaultdict(list))
    for (model, estimator, script, _), rows in sorted(runs.items()):
        values = {name: [float(row[name]) for row in rows] for name in OBJECTIVES}
        found[model, estimator][script].append(record([int(row["step"]) for row in rows], values))
    return found


def table(found: dict) -> str:
    """Markdown: a row per script, most runs with all objectives beaten first, of equals the one whose accuracy fell least; in each cell
    the runs that got there, the median of their steps, and the lowest accuracy of any run, with what that is from its start."""
    settings = sorted(found, key=lambda key: in_order({"args": {"model": key[0], "estimator": key[1]}}))
    scripts = sorted({script for runs in found.values() for script in runs})
    lines = []
    for script in scripts:
        every, cells = [], []
        for setting in settings:
            runs = found[setting].get(script, [])
            every += runs
            reached = [run.steps for run in runs if run.steps is not None]
            worst = min(runs, key=lambda run: run.change, default=None)
            steps = f", {median(reached):g} steps" if reached else ""
            cells.append(f"{len(reached)}/{len(runs)}{steps}, {worst.lowest:.2f} ({worst.change:+.2f})" if worst else "–")
        share = sum(run.steps is not None for run in every) / len(every)
        kept = sum(run.change >= -0.05 for run in every)
        head = [f"`python run.py {script}`", f"{share:.0%} of {len(every)}", f"{kept / len(every):.0%}"]
        lines.append((-share, -kept / len(every), "| " + " | ".join(head + cells) + " |"))
    bases = [f"`{model.removeprefix('testbed:').replace('testbed', 'fragile')}` {estimator.upper()}" for model, estimator in settings]
    heads = ["command", "all beaten", "accuracy kept all the way", *bases]
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *(line for *_, line in sorted(lines))])


def main(args: Args) -> None:
    """Print the table, or write it into the page."""
    text = table(records([(DATA / name).read_text(encoding="utf-8") for name in ("curves.csv", "field.csv")]))
    if args.write:
        insert(PAGE, text, MARKS)
        print(f"wrote {PAGE.relative_to(ROOT)}")
    else:
        print(text)


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__))
