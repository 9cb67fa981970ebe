"""Draw runs as a reader of a paper wants them: one panel per objective, what moved it below, every line named at its end."""

import os
from dataclasses import dataclass
from pathlib import Path

from analysis.runs import Run
from analysis.verdict import change_of
from common.errors import UserError

# Okabe and Ito's palette without its yellow, which vanishes on white paper. Lines beyond the seventh repeat the colours, dashed.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
GREY = "#777777"
STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "pdf.fonttype": 42,  # text stays text in a PDF; many venues refuse the default, Type 3
}
LABEL_SIZE = 7.5  # points; the labels at the line ends
COLUMN = 2.05  # inches; the width of a panel without its labels
ROW = 1.75  # inches; the height of a panel
# Flags that do not change what is learned: runs that differ only in these and in the seed are repetitions of one another.
BOOKKEEPING = {"seed", "out", "resume", "checkpoint_every", "tensorboard", "wandb", "trust_remote_code", "micro_batch_tokens"}


@dataclass
class _Line:
    """Runs that are repetitions of one another, drawn in one colour, and the words at the end of their line."""

    runs: list[Run]
    label: str
    colour: str
    dashes: str


def draw(runs: list[Run], out: Path) -> None:
    """Write one picture of the runs to `out`, whose suffix is .png (150 dpi) or .pdf. An existing file is replaced, whole or not at all.

    One run: held-out objectives with a band of one standard error, greedy decoding dotted; below them length, weight shares, covariance.
    Several: a line for each setting, the mean over its seeds with the seeds as thin lines; weight share and covariance of each objective
    below it. Raises `UserError` when the suffix is another or the folder cannot be written.
    """
