"""Draw a run into its `curves.png`: what became of each objective, and what moved it."""

import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from common.errors import told_as
from common.runs import Run
from common.verdict import change_of

STYLE = {"font.size": 8, "axes.titlesize": 8, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"text.parse_math": False, "pdf.fonttype": 42}  # names are text, and text stays text
DASHES = ("-", "--", "-.")  # so that lines differ without colour, and equal ones are all seen


@contextmanager
def picture(out: Path, width: float, height: float):
    """A matplotlib figure, width and height in inches: drawn in the block, written as it ends.

    `out` ends in .png or .pdf, and is replaced whole or not at all. Raises `UserError`, whatever
    went wrong: no picture is worth a run.
    """
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    with told_as(f"the picture {out} cannot be written"):
        try:
            from matplotlib import figure, style  # here: training must not wait for it

            with style.context(["default", STYLE]):
                drawn = figure.Figure((width, height), layout="constrained")
                yield drawn
                drawn.savefig(temporary, dpi=150)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)


def draw(run: Run, out: Path) -> None:
    """Draw a run: each objective and the response length on the held-out prompts, each objective's
    share of the weights and its covariance with what the update weighed the completions with.

    Raises `UserError` where there is no verdict on the run, or like `picture`.
    """
    names = run.objectives
    columns = (len(names) + 4) // 2  # two rows hold a panel per objective, and three more
    with picture(out, 2.7 * columns, 5.3) as figure:
        for k, name in enumerate([*names, "length"]):
            panel, change = figure.add_subplot(2, columns, k + 1), change_of(run, name)
            panel.set_title(
                f"{name}\nheld-out {change.start:.3g} → {change.end:.3g} {change.status}",
                weight="bold" if change.status == "degraded" else "normal",
            )
            steps, means = run.series(f"eval/{name}")
            errors = np.array(run.series(f"eval/{name}_se")[1])
            pen: dict = {"color": f"C{k}" if name in names else "black"}
            panel.plot(steps, means, label="sampled", **pen)
            panel.plot(*run.series(f"eval/greedy/{name}"), ":", label="greedy", **pen)
            panel.axhline(change.start, linestyle="--", linewidth=0.6, label="start", **pen)
            panel.fill_between(
                steps, means - errors, means + errors, alpha=0.2, label="± 1 standard error", **pen
            )
            from_zero(panel)
        weights = figure.add_subplot(2, columns, k + 2, title="share of the weights")
        covariance = figure.add_subplot(2, columns, k + 3, title="covariance with the update")
        covariance.axhline(color="grey", linewidth=0.5)
        for k, name in enumerate(names):
            pen = {"color": f"C{k}", "linestyle": DASHES[k % 3]}
            weights.plot(*run.series(f"weight_share/{name}"), label=name, **pen)
            covariance.plot(*run.series(f"cov/{name}"), linewidth=0.25, **pen)
            covariance.plot(*smooth(run, f"cov/{name}"), **pen)
        from_zero(weights)
        figure.supxlabel("step")
        figure.legend(
            handles=[*panel.lines, *panel.collections, *weights.lines],
            title=f"{run.name[-50:]}\n{(run.args['model'] + ' on ' + run.args['dataset'])[-50:]}",
            loc="outside upper left",
            ncols=columns + 2,
        )


def from_zero(panel) -> None:
    """Have a panel's scale reach from 0 to 1, further for more than that, less for small values,
    with some room above what is drawn."""
    low, high = panel.get_ylim()
    panel.set_ylim(min(low, 0), max(1.03 * high, high > 0.25))


def smooth(run: Run, key: str) -> tuple[list[int], list]:
    """A metric's series, the mean over a 25th of the run's steps on either side."""
    steps, values = run.series(key)
    half = len(steps) // 25
    return steps, [np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(steps))]
