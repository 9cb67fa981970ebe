"""The figures of docs/figures: the paper's at testbed scale, and those of docs/results.md and
docs/realmodel.md. Nothing is trained.

    python -m study.figures 1 [2 ... 8 | readme | records | records-field | words | all]
    python -m study.figures ctwa [linear ...]         # of a script's page: beside linear

Most are drawn from the evaluations that docs/results keeps. Figures 2 to 5 take more of a run than
these, and need run folders: docs/results.md has the commands that make them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Literal

import pandas as pd
import tyro
from PIL import Image

from common.curves import DASHES, picture
from common.errors import plain_errors, require
from common.runs import Run, read_rows
from study.results import DOCS, NAMES, RUN, base, kept, metrics
from tools.leaderboard import iqm, load_finished
from tools.scripts import algorithms

THREE = ["testbed", "testbed:wavering", "testbed:robust"]
README = ["linear", "ctwa", "ratchet"]
FIELD = ["gdpo", "gd2po", "dvao", "sa_mrpo", "rvpo", "gated", "upgrad"]

Lines = dict[str, pd.DataFrame]  # by label: values, a row per step and a column per seed
Panels = dict[str, Lines]  # by title


@dataclass
class Args:
    figures: tyro.conf.Positional[tuple[str, ...]]
    """numbers or names of figures, or all"""
    runs: tuple[str, ...] = ()
    """figures 2 to 5: run folders, or results folders; default: those of docs/results.md"""
    kind: Literal["png", "pdf"] = "png"
    """of the files"""
    out: Path = DOCS / "figures"
    """folder of the pictures, which is there; one of the same name is replaced"""


def seeds(rows: pd.DataFrame, column: str, smooth: int = 1) -> pd.DataFrame:
    """A column of the rows of one setting as [step, seed], means of so many steps."""
    table = rows.dropna(subset=column).pivot(index="step", columns="seed", values=column)
    return table.rolling(smooth, 1, center=True).mean()


def objectives(rows: pd.DataFrame, prefix: str = "", smooth: int = 1) -> Lines:
    return {name: seeds(rows, prefix + name, smooth) for name in NAMES}


def by_script(rows: pd.DataFrame, column: str) -> Lines:
    return {script: seeds(own, column) for script, own in rows.groupby("script")}


def draw(panels: Panels, across: int, words: str, out: Path, sharey: bool | str = True) -> None:
    """Small multiples, `across` in a row: each seed thin, their interquartile mean thick, and
    dashed the level at which the first of the lines started, before training."""
    down = math.ceil(len(panels) / across)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    with picture(out, 1.9 * across + 0.5, 1.5 * down + 1) as figure:
        grid, drawn = figure.subplots(down, across, sharex=True, sharey=sharey, squeeze=False), {}
        for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
            axes.set_title(title)
            axes.grid(alpha=0.3)
            for label, values in lines.items():
                n = labels.index(label)
                pen = {"color": f"C{n}", "linestyle": DASHES[n % len(DASHES)]}
                for seed in values:
                    axes.plot(values[seed].dropna(), linewidth=0.5, alpha=0.6, **pen)
                mean = values.apply(lambda row: float(iqm(row.dropna())), axis=1)
                (drawn[label],) = axes.plot(mean, **pen)
            first = next(iter(lines.values()))
            if first.index[0] == 0:
                axes.axhline(first.iloc[0, 0], color="0.5", linewidth=0.8, linestyle="--")
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        figure.supxlabel("step")
        title = f"{words}; thin: a seed, thick: mean of their middle half"
        figure.legend(drawn.values(), drawn, title=title, loc="outside upper left", ncols=across)


# --- from docs/results ---


def curves(models: Sequence[str], estimator: str = "reinforce", scripts: Sequence = ()) -> Panels:
    """A panel per base and script, the study's or those named."""
    scripts = scripts or kept("curves.csv")["script"].unique()
    rows = kept("curves.csv", "field.csv").query("estimator == @estimator and script in @scripts")
    groups = rows.query("model in @models").groupby(["model", "script"], sort=False)
    return {f"{base(model)}\n{script}": objectives(own) for (model, script), own in groups}


def records(scripts: Sequence[str]) -> Panels:
    """A row per objective, a column per base, a line per script."""
    rows = kept("curves.csv", "field.csv").query("estimator == 'reinforce' and script in @scripts")
    bases = list(rows.groupby("model", sort=False))
    return {
        f"{base(model)}\n{name}": by_script(own, name) for name in NAMES for model, own in bases
    }


def beside_linear(script: str) -> Panels:
    """A panel per objective on the default base, with linear's seeds and the script's."""
    rows = kept("curves.csv", "field.csv").query("estimator == 'reinforce' and model == 'testbed'")
    return {
        name: {each: seeds(rows.query("script == @each"), name) for each in ("linear", script)}
        for name in NAMES
    }


def words() -> Panels:
    rows = pd.read_csv(DOCS / "results" / "words.csv")
    return {
        f"{name}\n{f'steps of {cap:g} nats' if cap else 'steps as --lr has them'}": by_script(
            own, name
        )
        for cap, own in rows.groupby("cap", sort=False)
        for name in ("accuracy", "units", "sentence")
    }


# --- from runs ---


def weights(runs: Sequence[Run]) -> Panels:
    """CTWA: its weights, their shares, the covariance missing to the targets, held-out rewards."""
    rows = metrics(runs).query("script == 'ctwa' and estimator == 'reinforce' and model in @THREE")
    bases = list(rows.groupby("model"))
    told = {"weight/": "weight", "weight_share/": "share", "ctwa/deficit/": "missing covariance"}
    return {
        f"{base(model)}\n{words}": objectives(own, prefix)
        for prefix, words in {**told, "": "held-out reward"}.items()
        for model, own in bases
    }


def covariances(runs: Sequence[Run]) -> Panels:
    """Of advantage and reward within prompts, mean of nine steps. With gradients weighed, no score
    of a completion says what the update does."""
    rows = metrics(runs).query("model == 'testbed' and estimator == 'reinforce'")
    groups = rows.query("script not in ['mgda', 'gradnorm', 'nash_mtl']").groupby("script")
    return {script: objectives(own, "cov/", smooth=9) for script, own in groups}


def targets(runs: Sequence[Run]) -> Panels:
    rows = metrics(runs, [*RUN, "cov_targets"])
    return {told: objectives(own) for told, own in rows.groupby("cov_targets", sort=False)}


def cosines(gram: list[list[float]]) -> dict[str, float]:
    """Of the objectives' gradients, from their inner products [K,K] between two halves of a batch:
    G_ij / sqrt(G_ii G_jj), cut at 1.5; none where noise makes a G_ii negative."""
    found = {}
    for i, j in combinations(range(len(NAMES)), 2):
        if min(gram[i][i], gram[j][j]) > 0:
            cosine = gram[i][j] / math.sqrt(gram[i][i] * gram[j][j])
            found[f"{NAMES[i]}, {NAMES[j]}"] = max(-1.5, min(cosine, 1.5))
    return found


def conflict(runs: Sequence[Run]) -> Panels:
    """Cosines of the objectives' gradients above their held-out rewards; a line per script."""
    lines = [
        {"path": str(run.path), "step": line["step"], **cosines(line["gram"])}
        for run in runs
        for line in read_rows(run.path / "gradients.jsonl")
    ]
    rows = metrics(runs).merge(pd.DataFrame(lines), how="left")
    titles = [*rows.filter(like=", ").columns, *NAMES]
    return {title: by_script(rows, title) for title in titles}


# What draws a figure, how many panels stand in a row, what it is of, and, where it takes runs, the
# folder that they are in by default.
FIGURES: dict[str, tuple[Callable[..., Panels], int, str, str]] = {
    "figure-1": (lambda: curves(THREE), 5, "Held-out rewards, REINFORCE", ""),
    "figure-6": (lambda: curves(["testbed:fragile3"]), 5, "Held-out rewards, three steps", ""),
    "figure-7": (lambda: curves(["testbed:fragile-gpt2"]), 5, "Held-out rewards, GPT-2", ""),
    "figure-8": (lambda: curves(THREE, "grpo"), 5, "Held-out rewards, GRPO", ""),
    "figure-readme": (lambda: curves(["testbed"], scripts=README), 3, "Held-out rewards", ""),
    "records": (lambda: records([*README, "pama"]), 5, "Held-out rewards, REINFORCE", ""),
    "records-field": (lambda: records(FIELD), 5, "Held-out rewards, REINFORCE", ""),
    "words": (words, 3, "SmolLM2-135M, word problems: a step's rewards", ""),
    **{
        script: (partial(beside_linear, script), 3, "Held-out rewards", "")
        for script in algorithms()
    },
    "figure-2": (weights, 3, "CTWA", "results/study"),
    "figure-3": (covariances, 4, "Covariance of advantage and reward", "results/study"),
    "figure-4": (targets, 4, "Held-out rewards, CTWA by its targets", "results/targets"),
    "figure-5": (conflict, 3, "Cosines of gradients; held-out rewards", "results/gradients"),
}


def main(args: Args) -> None:
    """Draw figures, those that take runs last. Raises UserError where one has none."""
    asked = [name if name in FIGURES else f"figure-{name}" for name in args.figures]
    names = list(FIGURES) if "all" in args.figures else asked
    require(names and set(names) <= set(FIGURES), f"which figure? {', '.join(FIGURES)}, or all")
    for name in names:
        make, across, told, folder = FIGURES[name]
        out = args.out / f"{name}.{args.kind}"
        runs = [load_finished(args.runs or [folder])[0]] if folder else []
        draw(make(*runs), across, told, out, "row" if folder else True)
        if args.kind == "png" and out.exists():  # a palette takes a third of the room
            Image.open(out).quantize(64).save(out, optimize=True)
        print(f"wrote {out}", flush=True)


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__.splitlines()[0]))
