"""How well does the covariance law predict? Predicted against measured, between evaluations.

    python -m study.law [--runs results/study ...] [--write]

Prints the tables of docs/interference.md, or writes them there, and draws law.png: measured over
predicted, by the score and by the move, and what is left unexplained over the size of a step. Give
it runs of several --lr to see where first order ends; what is not a table by --lr is of the lowest.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

from common.curves import picture
from common.errors import plain_errors, require
from common.runs import Run
from common.verdict import NOISE
from study.results import DOCS, put
from tools import explain
from tools.leaderboard import load_finished, markdown


@dataclass
class Args:
    runs: tuple[str, ...] = ("results/study",)
    """run folders, or results folders of bench"""
    out: Path = DOCS / "figures"
    """folder of the picture"""
    write: bool = False
    """put the tables into docs/interference.md"""


def intervals(run: Run) -> pd.DataFrame:
    """explain's intervals of every objective, with the mean size of a step in `nats`. Of a run
    whose steps tell no move, none."""
    each = [explain.intervals(run, name).assign(objective=name) for name in run.objectives]
    nats = pd.Series(run.series("law/nats")[1], dtype=float).mean()
    about = {"script": f"`{run.args['script']}`", "lr": run.args["lr"], "path": str(run.path)}
    return pd.concat(each).assign(nats=nats, **about).dropna(subset=["move", "score"])


def judged(found: pd.DataFrame) -> dict[str, str]:
    """Of both predictions the right signs among the changes beyond noise and the error, the root
    mean square of what is left unexplained over that of the change: 1 is as good as predicting no
    change."""
    cells, measured = {}, found["measured"]
    beyond = measured.abs() > NOISE * found["se"]
    for key in ("move", "score"):
        told = found[key]
        cells[f"by the {key}: sign"] = f"{(told * measured > 0)[beyond].sum()}/{beyond.sum()}"
        cells[f"{key}: error"] = f"{unexplained(found, key):.2f}"
    return cells


def unexplained(found: pd.DataFrame, key: str) -> float:
    left = found["measured"] - found[key]
    return ((left**2).sum() / (found["measured"] ** 2).sum()) ** 0.5


def by_setting(found: pd.DataFrame) -> str:
    lines = []
    for (script, lr), own in found.groupby(["script", "lr"]):
        nats = own.drop_duplicates("path")["nats"]
        line = {"algorithm": script, "lr": f"{lr:g}"}
        lines.append(line | {"nats a step": f"{nats.mean():.2f}"} | judged(own))
    return markdown(pd.DataFrame(lines))


def by_objective(found: pd.DataFrame) -> str:
    """Noise: the error of a perfect prediction, from the standard errors; an upper estimate, since
    evaluations share their prompts."""
    lines = []
    for name, own in found.groupby("objective", sort=False):
        noise = ((own["se"] ** 2).sum() / (own["measured"] ** 2).sum()) ** 0.5
        lines.append({"objective": name, "noise": f"{noise:.2f}"} | judged(own))
    return markdown(pd.DataFrame(lines))


def draw(found: pd.DataFrame, out: Path) -> None:
    """Measured over predicted of the lowest rate; the unexplained part over the size of a step, a
    point per algorithm and rate."""
    usual, settings = found[found["lr"] == found["lr"].min()], found.groupby(["script", "lr"])
    with picture(out, 10, 3.6) as figure:
        *both, last = figure.subplots(1, 3)
        for panel, key, mark in zip(both, ("score", "move"), "xo", strict=True):
            for name, own in usual.groupby("objective", sort=False):
                panel.plot(own[key], own["measured"], ".", markersize=3, label=name)
            panel.axline((0, 0), slope=1, color="0.5")
            panel.set(title=f"by the {key}", xlabel="predicted change", ylabel="measured change")
            panel.legend()
            sizes, errors = settings["nats"].mean(), settings.apply(unexplained, key)
            last.plot(sizes, errors, mark, color="black", fillstyle="none", label=f"by the {key}")
        last.axhline(1, color="0.5", linestyle="--", label="as good as predicting no change")
        last.set(title="unexplained part of the change", xlabel="size of a step, nats")
        last.legend()


def main(args: Args) -> None:
    """Print or write the tables, draw the picture. Raises UserError where no run tells a move."""
    found = pd.concat(map(intervals, load_finished(args.runs)[0]))
    require(not found.empty, "--runs: in none of them is a step's move known (--mini-batches 1)")
    usual = found[found["lr"] == found["lr"].min()]
    for mark, text in {"law": by_setting(found), "objectives": by_objective(usual)}.items():
        print(text, end="\n\n")
        if args.write:
            put(DOCS / "interference.md", mark, text)
    draw(found, args.out / "law.png")


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__.splitlines()[0]))
