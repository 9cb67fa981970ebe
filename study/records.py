"""One number for the record: the steps a script takes until every objective has beaten its start, and what accuracy fell to on the way.

python -m study.records [--write] [--figure docs/figures/records.png]

From docs/results/curves.csv and docs/results/field.csv, every evaluation of every run that is kept. An objective has beaten its start at
the first evaluation from which on, to the last one, it lies above its first value by two standard errors of the difference. --write puts
the table into docs/results.md; --figure draws held-out rewards of some scripts on every base, every run a line.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import tyro

from tools.curves import write_figure
from tools.looks import START, STYLE, Key, algorithm_look, draw_keys
from common.verdict import NOISE
from study.differing_lines import put
from study.results import evaluations, in_order
from common.errors import plain_errors, require
from common.flags import RunFlags
from rewards import OBJECTIVES

ROOT = Path(__file__).resolve().parents[1]
DATA, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "results.md"
MARKS = ("<!-- records: begin -->", "<!-- records: end -->")
PROMPTS = RunFlags.eval_prompts  # held-out problems of every run of the study


@dataclass
class Args:
    write: bool = False
    """put the table into docs/results.md instead of printing it"""
    figure: str = ""
    """a .png or .pdf to draw, replaced if it exists"""
    scripts: tuple[str, ...] = ("linear", "ctwa", "pama", "ratchet")
    """the scripts in it"""
    estimator: Literal["reinforce", "grpo"] = "reinforce"
    """the runs in it"""


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
    found: dict = defaultdict(lambda: defaultdict(list))
    for (model, _, estimator, script, _), own in evaluations(texts).items():
        found[model, estimator][script].append(record([int(step) for step in own["step"]], {name: own[name] for name in OBJECTIVES}))
    return found


def table(found: dict) -> str:
    """Markdown: a row per script, those of most bases first, of these the one with most runs with all objectives beaten, of equals the one
    whose accuracy fell least. In each cell the runs that got there, the median of their steps, and the lowest accuracy of any run, with
    what that is from its start."""
    settings = sorted(found, key=lambda key: in_order({"args": {"model": key[0], "estimator": key[1]}}))
    scripts = sorted({script for runs in found.values() for script in runs})
    lines = []
    for script in scripts:
        every, cells, bases = [], [], set()
        for setting in settings:
            runs = found[setting].get(script, [])
            every += runs
            bases |= {setting[0]} if runs else set()
            reached = [run.steps for run in runs if run.steps is not None]
            worst = min(runs, key=lambda run: run.change, default=None)
            steps = f", {median(reached):g} steps" if reached else ""
            cells.append(f"{len(reached)}/{len(runs)}{steps}, {worst.lowest:.2f} ({worst.change:+.2f})" if worst else "–")
        share = sum(run.steps is not None for run in every) / len(every)
        kept = sum(run.change >= -0.05 for run in every)
        head = [f"`python run.py {script}`", f"{share:.0%} of {len(every)}", f"{kept / len(every):.0%}"]
        lines.append((-len(bases), -share, -kept / len(every), "| " + " | ".join(head + cells) + " |"))
    columns = [f"`{model.removeprefix('testbed:').replace('testbed', 'fragile')}` {estimator.upper()}" for model, estimator in settings]
    heads = ["command", "all beaten", "accuracy kept all the way", *columns]
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *(line for *_, line in sorted(lines))])


def draw(runs: dict, args: Args, out: Path) -> None:
    """A column per base, a row per objective, a thin line per run; `runs` as `evaluations` has them. Raises UserError for another
    kind of file, and where one of the scripts has no run."""
    require(out.suffix in (".png", ".pdf"), f"--figure {out}: a figure is a .png or a .pdf")
    chosen = {(model, script, seed): own for (model, _, how, script, seed), own in runs.items() if how == args.estimator}
    missing = [script for script in args.scripts if script not in {script for _, script, _ in chosen}]
    require(not missing, f"--scripts {' '.join(missing)}: no such run with {args.estimator} in docs/results")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = {key: own for key, own in chosen.items() if key[1] in args.scripts}
    models = sorted({model for model, *_ in chosen}, key=lambda model: in_order({"args": {"model": model, "estimator": args.estimator}}))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        size = (0.5 + 1.9 * len(models), 1.0 + 1.35 * len(OBJECTIVES))
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(OBJECTIVES), len(models), squeeze=False, sharex=True, sharey=True)
        figure.subplots_adjust(left=0.55 / size[0], right=0.99, top=1 - 0.68 / size[1], bottom=0.42 / size[1], wspace=0.12, hspace=0.15)
        for (model, script, _), own in chosen.items():
            look, column = algorithm_look(script), models.index(model)
            for row, name in enumerate(OBJECTIVES):
                line = {"linewidth": 0.9, "alpha": 0.85, "markevery": (1 + args.scripts.index(script), 5), "label": script}
                panels[row][column].plot(own["step"], own[name], **line, **look.pen, **look.points | {"markersize": 3})
                if all(other.get_label() != "_start" for other in panels[row][column].lines):
                    panels[row][column].axhline(own[name][0], label="_start", **START)
        for row, name in enumerate(OBJECTIVES):
            panels[row][0].set_ylabel(name)
            panels[row][0].set_ylim(-0.03, 1.03)
        for column, model in enumerate(models):
            panels[0][column].set_title(model.removeprefix("testbed:").replace("testbed", "fragile"), pad=4)
            panels[-1][column].set_xlabel("step", labelpad=2)
        words = f"Held-out rewards, {args.estimator}, every run a line."
        figure.text(0.1 / size[0], 1 - 0.1 / size[1], words, va="top", color="#444444", fontsize=STYLE["axes.labelsize"])
        draw_keys(figure, 0.1, 0.34, [*(Key(script, algorithm_look(script)) for script in args.scripts), Key("start", kind="start")])
        write_figure(figure, out)


def main(args: Args) -> None:
    """Print the table, or write it into the page; draw the figure that is asked for."""
    texts = [(DATA / name).read_text(encoding="utf-8") for name in ("curves.csv", "field.csv")]
    if args.figure:
        draw(evaluations(texts), args, Path(args.figure))
        print(f"wrote {args.figure}")
    put(table(records(texts)), PAGE, MARKS, args.write)


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__))
