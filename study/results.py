"""The tables of docs/results.md, from every evaluation of every run that docs/results keeps.

    python -m study.results                                        # the tables anew
    python -m study.results --runs results/study                   # and these runs into curves.csv
    python -m study.results --runs results/field --into field.csv  # of the scripts that came later

A start is the evaluation before the first step, an end the mean of the last three. Standard errors
are those of shares of 256 problems, taken as independent; a change counts beyond two of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import tyro

from common.errors import plain_errors, require
from common.flags import RunFlags
from common.runs import Run, write_whole
from common.verdict import NOISE
from tools.leaderboard import LAST, load_finished, markdown

DOCS = Path(__file__).resolve().parents[1] / "docs"
RUN = ["model", "dataset", "estimator", "script", "seed"]  # columns that tell a run apart
NAMES = ["accuracy", "conciseness", "clarity"]
BASES = [
    "testbed",
    *(f"testbed:{name}" for name in ("wavering", "robust", "fragile-gpt2", "fragile3")),
]
PROMPTS = RunFlags.eval_prompts  # held-out problems of every run of the study


@dataclass
class Args:
    runs: tuple[str, ...] = ()
    """run folders, or results folders, to add to what is kept; a run that is there is replaced"""
    into: Literal["curves.csv", "field.csv"] = "curves.csv"
    """the file in docs/results that they go to"""


# --- reading ---


def metrics(runs: Sequence[Run], flags: Sequence[str] = RUN) -> pd.DataFrame:
    """The rows of metrics.jsonl of all runs with their `path` and these flags; what was evaluated
    goes by its name alone, as in curves.csv.

    Raises UserError where two runs agree in all flags: they would count as repetitions.
    """
    every = []
    several = [str(run.path) for run in runs if run.args.get("eval_samples", 1) > 1]
    told = "errors are those of one completion a problem, and --eval-samples had more"
    require(not several, f"--runs {', '.join(several)}: {told}")
    for run in runs:
        about = {flag: str(run.args[flag]) for flag in flags}
        every.append(pd.DataFrame(run.rows).assign(**about, path=str(run.path)))
    rows = pd.concat(every, ignore_index=True).astype({"seed": int})
    twice = rows.loc[rows.duplicated([*flags, "step"]), "path"].unique()
    require(not len(twice), f"--runs: other runs have the flags and the seed of {', '.join(twice)}")
    return rows.rename(columns=lambda key: key.removeprefix("eval/"))


def kept(*names: str) -> pd.DataFrame:
    """The evaluations in these files of docs/results: RUN, `step`, every objective's mean, a share
    of PROMPTS that was rounded, and `length` in tokens."""
    rows = in_order(pd.concat([pd.read_csv(DOCS / "results" / name) for name in names]))
    return rows.assign(**(rows[NAMES] * PROMPTS).round() / PROMPTS)


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Models from the most fragile on, REINFORCE before GRPO, then scripts, seeds and steps."""
    columns = ["model", "estimator", "script", "seed", "step"]
    rows = rows.assign(model=pd.Categorical(rows["model"], BASES))
    return rows.sort_values(columns, ascending=[True, False, True, True, True])


def merged(old: pd.DataFrame, new: pd.DataFrame, run: Sequence[str] = RUN) -> pd.DataFrame:
    """Both, in the columns of the old; a run of both, by the columns `run`, is the new one's."""
    of_both = pd.MultiIndex.from_frame(old[run]).isin(pd.MultiIndex.from_frame(new[run]))
    return pd.concat([old[~of_both], new])[old.columns]


# --- what became of each run ---


def base(model: str) -> str:
    return model.removeprefix("testbed:").replace("testbed", "fragile")


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line per run: its base, whether accuracy improved, was kept or lost (↑ = ↓), the step from
    which on all objectives lie above their starts (nan: never), accuracy's lowest evaluation and
    what that is from its start."""
    found = []
    for (model, _, _, script, _), run in rows.groupby(RUN, sort=False):
        values, start, end = run[NAMES], run[NAMES].iloc[0], run[NAMES].iloc[-LAST:].mean()

        def beyond(now, start=start):
            """The change in units of what counts."""
            variances = start * (1 - start) + now * (1 - now)
            return (now - start) / (NOISE * np.sqrt(variances / (PROMPTS - 1)))

        above = (beyond(values) > 1).all(axis=1)[::-1].cummin()  # from here to the last evaluation
        moved, lowest = beyond(end)["accuracy"], values["accuracy"].min()
        line = {"base": f"`{base(model)}`", "script": f"`{script}`", "lowest": lowest}
        line |= {"accuracy": "↑" if moved > 1 else "↓" if moved < -1 else "="}
        line |= {"reached": run["step"][above].min(), "dip": lowest - start["accuracy"]}
        found.append(line)
    return pd.DataFrame(found)


# --- the tables ---


def by_base(runs: pd.DataFrame) -> str:
    """A row per script: of all runs how many lost accuracy, beat every start for good, and never
    had accuracy more than .05 below its start; per base what became of accuracy in how many runs,
    and its lowest evaluation in any. Scripts of most bases first, of these the fewest losses."""

    def cell(own: pd.DataFrame) -> str:
        counts = own["accuracy"].value_counts()
        signs = " ".join(f"{counts[sign]}{sign}" for sign in "↑=↓" if sign in counts)
        return f"{signs} {own['lowest'].min():.2f}"

    runs = runs.assign(
        lost=runs["accuracy"] == "↓", up=runs["reached"].notna(), kept=runs["dip"] >= -0.05
    )
    of = runs.groupby("script")
    order = of.agg({"base": "nunique", "lost": "mean", "up": "mean"})
    order = order.sort_values(["base", "lost", "up"], ascending=[False, True, False]).index
    cells = {key: cell(own) for key, own in runs.groupby(["script", "base"])}
    table = pd.Series(cells).unstack()[runs["base"].unique()].fillna("–")
    heads = {"lost": "accuracy lost", "up": "all three up", "kept": "kept all the way"}
    for name in reversed(heads):
        told = of[name].sum().astype(str) + "/" + of.size().astype(str)
        table.insert(0, heads[name], told)
    return markdown(table.loc[order].reset_index(names="script"))


def ends(rows: pd.DataFrame) -> str:
    """A row per script: where each run ended in accuracy, by seeds, its lowest evaluation in any,
    and the range of the others' ends. The highest mean accuracy first."""
    runs = rows.groupby(["script", "seed"])
    last = runs[NAMES].apply(lambda run: run.iloc[-LAST:].mean()).groupby("script")
    table = last["accuracy"].agg(lambda own: ", ".join(own.map("{:.2f}".format))).to_frame()
    table["lowest"] = rows.groupby("script")["accuracy"].min().map("{:.2f}".format)
    for name in NAMES[1:]:
        own = last[name]
        table[name] = own.min().map("{:.2f}".format) + "–" + own.max().map("{:.2f}".format)
    order = last["accuracy"].mean().sort_values(ascending=False).index
    return markdown(table.loc[order].reset_index().assign(script=[f"`{name}`" for name in order]))


def put(page: Path, mark: str, text: str) -> None:
    """Write a text between a page's marks `<!-- MARK: begin -->` and `<!-- MARK: end -->`."""
    begin, end = (f"<!-- {mark}: {edge} -->" for edge in ("begin", "end"))
    before, rest = page.read_text(encoding="utf-8").split(begin)
    write_whole(page, f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def main(args: Args) -> None:
    if args.runs:
        new = metrics(load_finished(args.runs)[0]).dropna(subset="length")
        both = in_order(merged(kept(args.into), new))
        both.to_csv(DOCS / "results" / args.into, index=False, float_format="%.5g")
    rows = kept("curves.csv", "field.csv")
    put(DOCS / "results.md", "bases", by_base(summary(rows)))
    fragile = rows.query("model == 'testbed' and estimator == 'reinforce'")
    put(DOCS / "results.md", "ends", ends(fragile))
    print("wrote docs/results.md")


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__.splitlines()[0]))
