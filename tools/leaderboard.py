"""The table of `bench` and `sweep`: finished runs, anybody's, with intervals over their seeds.
Nothing is trained. The statistics are those of Agarwal et al. (2021), "Deep Reinforcement Learning
at the Edge of the Statistical Precipice"."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import groupby
from math import prod
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from common.errors import UserError, require, told_as
from common.runs import Run, load_run, write_whole
from common.verdict import NOISE, change_of, evaluations
from tools.plot import BOOKKEEPING, compare, group_settings, number

LAST = 3  # evaluations whose mean is a run's end
# Runs that differ in one of these do not compare: what is measured, on what, after how long.
SETTING = ("model", "dataset", "estimator", "steps", "eval_split")
MEASURE = ("objectives", "rewards", "answer_check", "eval_prompts", "temperature")
MEASURE += ("max_new_tokens", "prompt_suffix")
DEFINITIONS = f"""\
## What the numbers are

- Objectives are measured on held-out prompts, sampled. Start: the evaluation before the first step.
  End: the mean of the last {LAST} evaluations (of all after the start where a run has fewer), never
  the best one. Every value is the interquartile mean over the seeds (without the lowest and the
  highest quarter, floor(n/4) on either side, so with up to three seeds the mean).
- [low, high]: 95% percentile interval of that mean, stratified bootstrap, 10,000 resamples of the
  seeds (Agarwal et al., 2021). It is of the seeds alone, not of the prompts, and with five seeds or
  fewer too narrow; a single seed has none.
- Worst change: each run's smallest end - start over its objectives. The rows stand in its order.
- Interference: runs in which an objective was degraded while another improved, each beyond
  {NOISE:g} standard errors of the change, with the end as above; in parentheses which were lost,
  and in how many of these runs. Lost greedily: runs in which an objective that was not degraded so,
  sampled, was degraded under greedy decoding.
- Hypervolume: of a run's end, which is the product of its objectives, from the fixed point (0, ...,
  0). From the start, every run that degrades an objective would have none, however little or much
  it lost. An objective that ends at 0 or below leaves none here, too.
- P(better than linear): the share of pairs of a run of the row and a run of linear in which the
  row's worst change is larger, ties half; among several settings of linear, the one with the
  nearest flags.
- Seconds per step: the median over the steps of the sum of time/* (sampling, rewards, update,
  weights). Runs side by side slow each other down, and shorter completions take less:
  study/step_time.py measures on equal work.
"""

# --- statistics ---


def iqm(values: ArrayLike) -> NDArray:
    """Interquartile mean: the mean without the lowest and the highest quarter, floor(N / 4) values
    on either side, so that up to three values it is the mean (section 4.3). [..., N] -> [...]."""
    from scipy.stats import trim_mean

    # sorted: the same sum, to the last bit, in whatever order the seeds come
    return trim_mean(np.sort(values), 0.25, axis=-1)


def better(x: ArrayLike, y: ArrayLike) -> NDArray:
    """Probability that a value of x exceeds one of y, over all pairs; ties count half: the
    Mann-Whitney U statistic divided by N * M (section 4.3). [..., N], [..., M] -> [...]."""
    from scipy.stats import mannwhitneyu

    wins = mannwhitneyu(x, y, axis=-1).statistic
    return wins / (np.shape(x)[-1] * np.shape(y)[-1])


def interval(statistic: Callable, *strata: ArrayLike) -> NDArray:
    """95% percentile interval [2] of a statistic of several strata, each resampled within itself,
    to its own size and independently of the others (section 4.1).

    The same values give the same interval, in whatever order they stand. With a handful of them it
    is too narrow: of five, it covers the mean in about 84% of cases. `scipy.stats.bootstrap` draws
    the same, but takes no single value, which the other stratum may be compared with.
    """
    rng = np.random.default_rng(0)
    drawn = [rng.choice(np.sort(values), (10_000, len(values))) for values in strata]
    return np.quantile(statistic(*drawn), (0.025, 0.975))


# --- the runs ---


def load_finished(paths: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """The finished runs among run folders, and a line about each of the others. A results folder
    stands for all runs in it. Raises UserError where no run is finished."""
    runs, left_out = {}, []
    for path in map(Path, paths):
        for folder in sorted(path.glob("runs/*")) or [path]:
            try:
                run = load_run(os.path.relpath(folder))
                at, of = run.rows[-1]["step"], run.args["steps"]
                require(at >= of, f"{run.path}: at step {at} of {of}")
                runs[run.path] = run
            except UserError as error:
                left_out.append(f"Left out: {error}.")
    require(bool(runs), f"no finished run. {' '.join(left_out)}")
    return list(runs.values()), left_out


def measured(run: Run) -> dict:
    """A run's line of the table's data, by the heads of the columns: of objectives and tokens the
    start and the end; interference: the objectives that were degraded while another improved.

    The end is the mean of the last three evaluations, with the mean of their standard errors: they
    are of the same prompts, so averaging takes away the noise of sampling but not that of which
    prompts were drawn, and errors are taken too large rather than too small.
    """
    first, *later = evaluations(run)
    end = pd.DataFrame(later[-LAST:]).filter(like="eval/").apply(fmean)
    ended = Run(run.path, run.args, [first, later[-1] | end.to_dict()])
    changes = [change_of(ended, name) for name in run.objectives]
    length = change_of(ended, "length")
    gained = any(c.sampled == "improved" for c in changes)
    seconds = pd.DataFrame(run.rows[1:]).filter(like="time/").sum(axis=1)
    return {
        "run": str(run.path),
        "seed": run.args["seed"],
        **{c.name: (c.start, c.end) for c in changes},
        "worst change": min(c.change for c in changes),
        "interference": [c.name for c in changes if gained and c.sampled == "degraded"],
        "lost greedily": [c.name for c in changes if c.status == "mixed"],
        "hypervolume": prod(max(c.end, 0.0) for c in changes),
        "tokens": (length.start, length.end),
        "seconds per step": seconds.median(),
    }


def leaderboard(runs: Sequence[Run]):
    """A section: the text of each column, a frame with a row per setting, best worst change first;
    and what it was made from, a frame with a row per run. `DEFINITIONS` says what they are.

    Raises UserError when a seed stands twice in a row: it would count as a second repetition.
    """
    settings = group_settings(runs)
    lines = [{"algorithm": label} | measured(run) for label, own in settings for run in own]
    data = pd.DataFrame(lines).sort_values("seed")
    twice = ", ".join(data[data.duplicated(["algorithm", "seed"])]["run"])
    require(not twice, f"RUN: {twice}: another run has the same setting and seed; give one")
    each = data.groupby("algorithm")
    table = each.agg(dict.fromkeys(data.columns[3:], _cell))
    table.insert(0, "seeds", each.size().astype(str))
    flags = {
        label: {f"{k} {v}" for k, v in own[0].args.items() if k not in BOOKKEEPING}
        for label, own in settings
    }
    linear = [label for label in flags if "script linear" in flags[label]]
    worst = each["worst change"].agg(list)
    for label in flags if linear else ():
        # among several settings of linear, the one with the nearest flags
        base = min(linear, key=lambda other: len(flags[label] - flags[other]))
        if base != label:
            pair = worst[label], worst[base]
            table.loc[label, "P(better than linear)"] = _estimate(*pair, of=better)
    best = worst.map(iqm).sort_values(ascending=False).index
    return table.loc[best].reset_index().fillna("–"), data


def _opening(table, data) -> str:
    """A section in a sentence: in how many runs an objective was lost to others, and whose; the
    first row, and its worst objective."""
    lost, runs = data[data["interference"].astype(bool)], data["algorithm"].value_counts()
    each = lost["algorithm"].value_counts()
    told = ", ".join(f"{name} {each[name]} of {runs[name]}" for name in runs.index if name in each)
    first = table["algorithm"][0]
    change = iqm(data["worst change"][data["algorithm"] == first])
    return (
        f"In {len(lost)} of {len(data)} runs an objective fell while another rose"
        f"{told and f' ({told})'}; first stands {first}, whose worst objective changed by "
        f"{number(change, 2, '+')}."
    )


def _cell(values) -> str:
    """The text of a setting's column: of names, in how many runs there are any and which how often;
    of pairs, from start to end."""
    if isinstance(values.iloc[0], list):
        each = ", ".join(f"{name} {n}" for name, n in values.explode().value_counts().items())
        return f"{values.astype(bool).sum()}/{len(values)}" + (f" ({each})" if each else "")
    if isinstance(values.iloc[0], tuple):
        starts, ends = zip(*values, strict=True)
        return f"{number(iqm(starts), 2)} → {_estimate(ends)}"
    return _estimate(values)


def _estimate(*strata: ArrayLike, of: Callable = iqm) -> str:
    """A statistic with its interval, which single seeds do not have."""
    value = number(of(*strata), 2)
    if max(map(len, strata)) == 1:
        return value
    low, high = (number(end, 2) for end in interval(of, *strata))
    return f"{value} [{low}, {high}]"


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown has it, without its index."""
    lines = [table.columns, ["---"] * len(table.columns), *table.astype(str).values]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code() -> str:
    """The commit of this repository, with -dirty where a file differs from it."""
    how = {"shell": True, "cwd": Path(__file__).parent}  # a shell says so where there is no git
    found = subprocess.run("git describe --always --dirty", **how, capture_output=True, text=True)
    return f"commit {found.stdout.strip() or 'unknown'}, torch {version('torch')}"


def make_table(paths: Sequence[str | Path], out: Path, note: str = "") -> str:
    """Read runs, write table.md, table.json (its rows, and the numbers of every run) and a picture
    of each section into `out`, and return the table. note: below it. Raises UserError where the
    table in `out` has a run that this one lacks."""
    runs, left_out = load_finished(paths)
    file, board = out / "table.json", []
    words = re.findall('"(.*?)"', file.read_text()) if file.exists() else []
    before = {Path(word).resolve() for word in words if os.path.exists(f"{word}/args.json")}
    told = f"--out {out} holds the table of other runs: give another folder, or delete table.json"
    require(before <= {run.path.resolve() for run in runs}, told)
    with told_as(f"--out {out} cannot be made"):
        out.mkdir(parents=True, exist_ok=True)
    parts = ["# Leaderboard"]
    differing = [k for k in MEASURE if len({json.dumps(run.args.get(k)) for run in runs}) > 1]

    def section(run: Run) -> str:
        return " · ".join(f"{key} {run.args.get(key)}" for key in (*SETTING, *differing))

    for place, (title, group) in enumerate(groupby(sorted(runs, key=section), section)):
        own = list(group)
        table, data = leaderboard(own)
        parts += [f"## {title}", _opening(table, data), markdown(table)]
        found = {"rows": table.to_dict("records"), "runs": data.to_dict("records")}
        board.append({"section": title} | found)
        compare(own, out / f"curves{place or ''}.png")
    parts += [note] * bool(note) + left_out
    parts += [DEFINITIONS, f"Made by `{shlex.join(['python', *sys.argv])}` at {code()}."]
    text = "\n\n".join(parts) + "\n"
    write_whole(file, json.dumps(board, indent=1))
    write_whole(out / "table.md", text)
    return f"{text}\nwrote table.md, table.json and pictures into {out}"
