"""`python run.py plot`: the picture of a run, or of several in one, and each run's verdict."""

import json
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import numpy as np
import tyro

from common.curves import DASHES, draw, from_zero, picture, smooth
from common.errors import require
from common.runs import Run, load_run
from common.verdict import verdict

USAGE = "RUN [RUN ...] [--out FILE]"
# Flags that leave what is learned alone: runs that agree in all others repeat one setting.
BOOKKEEPING = {"seed", "out", "resume", "checkpoint_every", "keep_safe", "log_completions", "track"}
BOOKKEEPING |= {"trust_remote_code", "micro_batch_tokens"}
FACTS = ("estimator", "model", "dataset")  # of an experiment, whatever the algorithm


@dataclass
class Args:
    runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
    """run folders, finished or still running"""
    out: str = ""
    """the picture, .png or .pdf, replaced if it exists; default: a single run's curves.png, else
    ./comparison.png"""


def main(argv: list[str]) -> None:
    """curves of one run, or of several in one picture, and each run's verdict"""
    args = tyro.cli(Args, prog="python run.py plot", description=main.__doc__, args=argv)
    require(bool(args.runs), "plot: which run? python run.py plot RUN [RUN ...]")
    paths = {Path(path).resolve(): path for path in args.runs}  # a run given twice is one run
    runs = [load_run(path) for path in paths.values()]
    out = Path(args.out or ("comparison.png" if runs[1:] else runs[0].path / "curves.png"))
    told = f"--out {out}: a picture is a .png or a .pdf, in a folder that is there"
    require(out.suffix in (".png", ".pdf") and out.parent.is_dir(), told)
    for run in runs:
        print(f"{run.path}\n{textwrap.indent(verdict(run), '  ')}\n")
    replaced = out.exists()
    if runs[1:]:
        compare(runs, out)
    else:
        draw(runs[0], out)
    print(f"{'replaced' if replaced else 'wrote'} {out}")


def compare(runs: list[Run], out: Path) -> None:
    """Draw several runs, a line per setting, the mean of its runs with each run thin behind it: the
    objectives on the held-out prompts, and below each its share of the weights and its covariance
    with the update; then the response length and the KL divergence from the start.

    Raises `UserError` like `picture`.
    """
    settings = group_settings(runs)
    # not from "_" on, which keeps a line out of matplotlib's legend
    labels = [f"{name[-50:].lstrip('_')} (mean of {len(group)})" for name, group in settings]
    names = dict.fromkeys(name for run in runs for name in run.objectives)
    kinds = {"eval": "held-out ", "weight_share": "weight of ", "cov": "covariance of "}
    columns = [{f"{kind}/{name}": words + name for kind, words in kinds.items()} for name in names]
    columns.append({"eval/length": "response length", "loss/kl": "KL from the start"})
    width = 2.4 * len(columns)
    fit = max(1, int(width / (0.065 * max(map(len, labels)) + 0.6)))  # inches: of a letter, a line
    with picture(out, width, 6.5 + 0.17 * len(labels) / fit) as figure:
        for column, panels in enumerate(columns):
            for row, (key, title) in enumerate(panels.items()):
                place = row * len(columns) + column + 1
                panel = figure.add_subplot(3, len(columns), place, title=title)
                noisy = key.startswith(("cov", "loss"))
                for k, (_, group) in enumerate(settings):
                    pen = {"color": f"C{k}", "linestyle": DASHES[k % 3]}
                    series = [smooth(run, key) if noisy else run.series(key) for run in group]
                    for each in series:
                        panel.plot(*each, linewidth=0.4, alpha=0.6, **pen)
                    panel.plot(*_mean(series), label=labels[k], **pen)
                if noisy:
                    panel.axhline(color="grey", linewidth=0.5)
                else:
                    from_zero(panel)
        figure.supxlabel("step")
        facts = [{str(run.args.get(fact))[-30:] for run in runs} for fact in FACTS]
        title = " · ".join(values.pop() for values in facts if len(values) == 1)
        known = panel.get_legend_handles_labels()
        figure.legend(*known, title=title, loc="outside upper left", ncols=fit)


def _mean(series: list) -> tuple[list[int], list[float]]:
    """The mean of several runs' steps and values, at the steps that all of them have reached."""
    tables = [dict(zip(*each, strict=True)) for each in series]
    steps = sorted(set.intersection(*map(set, tables)))
    return steps, [fmean(table[step] for table in tables) for step in steps]


def group_settings(runs: list[Run]) -> list[tuple[str, list[Run]]]:
    """Runs by setting, under a name that tells it from the others: its script and the flags that
    differ from the script's other runs or, if there is much to tell, the folder of its first run.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        flags = {flag: value for flag, value in run.args.items() if flag not in BOOKKEEPING}
        groups.setdefault(json.dumps(flags, sort_keys=True), []).append(run)
    named = []
    for group in groups.values():
        first = group[0]
        alike = [run for run in runs if run.args["script"] == first.args["script"]]
        label = first.args["script"]
        for flag, value in first.args.items():
            others = runs if flag in FACTS else alike
            if flag not in BOOKKEEPING and any(run.args.get(flag) != value for run in others):
                label += f" {flag} {plain(value)}"
        named.append((label if len(label) <= 32 else str(first.path), group))
    return named


def plain(value) -> str:
    """A flag's value as it is typed."""
    if isinstance(value, list):
        return " ".join(map(plain, value))
    return number(value) if isinstance(value, float) else str(value)


def number(value: float, digits: int | None = None, sign: str = "") -> str:
    """A number as all tables print it, with so many digits behind the point; without `digits`, as
    it is typed: 0.05, 2, 3e-5. From a million on, and as it is typed below a thousandth, with an
    exponent: 1e30 takes no line of digits, and 1e-4 stands beside 3e-5. sign: "+" shows it always.
    """
    large, small = 1e6 <= abs(value) < math.inf, 0 < abs(value) < 1e-3
    if large or (small and digits is None):
        rounded = value if digits is None else float(f"{value:.{digits}e}")
        told = np.format_float_scientific(rounded, trim="-", sign=bool(sign), exp_digits=1)
        return told.replace("e+", "e")
    return str(value).removesuffix(".0") if digits is None else f"{value:{sign}.{digits}f}"
