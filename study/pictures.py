"""The drawing of the paper's figures at testbed scale: small multiples in which every line is named. Reads run folders, never trains.

`study/figures.py` says which runs a figure is made of; here is how runs are chosen by their flags, averaged over seeds and drawn.
"""

import json
import math
import os
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.curves import BOOKKEEPING, Series, limits, mean_of, short_fact, smooth
from tools.leaderboard import LAST, MEASURE, SETTING, with_mean_end
from tools.looks import (
    LABEL,
    NEUTRAL,
    ROW,
    START,
    STYLE,
    Key,
    Look,
    Name,
    algorithm_look,
    draw_keys,
    inches,
    key_rows,
    name_lines,
    objective_look,
)
from common.runs import Run, load_run, read_rows
from tools.statistics import iqm, stratified_bootstrap
from common.errors import UserError, require

BASELINE = "linear"
# Methods that weigh rewards, then those that weigh gradients; a script that is not among them comes last.
# of the study's scripts; others follow by name
ORDER = (BASELINE, "ctwa", "tchebycheff", "lagrangian", "dynamic_weighting", "famo", "pama", "mgda", "gradnorm", "nash_mtl")
REWARD_LEVEL = ORDER[:7]
FEW = 3  # seeds: of so few the interval of the mean is their range, so that each of them is drawn instead
RESAMPLES = 2_000  # of the seeds, for each point of a band
WIDTH = 7.5  # inches; a page
LEFT, RIGHT = 0.55, 0.95  # inches beside the panels: the axis; the names of the lines

Runs = dict[str, list[Run]]  # the seeds of each algorithm, or of each setting, in the order in which they are drawn


# --- choosing runs ---


def find_runs(folders: Sequence[str | Path]) -> list[tuple[Path, dict]]:
    """Every run folder with its flags: the folders themselves, and those in them, in their `runs/` and in the `runs/` of their subfolders.

    Only args.json is read. Raises UserError for a folder that is not there and for flags that cannot be read.
    """
    found = {}
    for folder in map(Path, folders):
        require(folder.is_dir(), f"--runs {folder}: no such folder; give run folders, or the results folder of a bench")
        for pattern in ("args.json", "*/args.json", "runs/*/args.json", "*/runs/*/args.json"):
            for file in sorted(folder.glob(pattern)):
                try:
                    args = json.loads(file.read_bytes())
                except ValueError as error:
                    raise UserError(f"{file}: not JSON ({error})") from None
                if isinstance(args, dict):
                    found.setdefault(file.parent.resolve(), args)
    return [(Path(os.path.relpath(path)), args) for path, args in found.items()]


def choose(found: Sequence[tuple[Path, dict]], wanted: dict[str, Collection], file: str = "") -> tuple[Runs, list[str]]:
    """The finished runs whose flags are among the wanted values, by script and seed, and a line about each run that is left out.

    wanted: for each flag the values that will do, lists as tuples; None stands for a flag that the script does not have. The model
    `testbed` goes as `testbed:fragile`, and CTWA's covariance targets as what they are by default where none were given.
    file: what the run folder must hold. Of two runs with the same flags and seed the first found counts.
    Raises UserError where runs of an algorithm are no repetitions of one setting: where they differ in a flag other than the seed.
    """
    chosen: Runs = {}
    notes, repeats = [], 0
    for path, args in found:
        if not all(_value(args, flag) in values for flag, values in wanted.items()) or not (path / file).exists():
            continue
        try:
            run = load_run(path)
        except UserError as error:  # such as a run that has just begun
            notes.append(f"left out: {error}")
            continue
        alike = chosen.setdefault(args["script"], [])
        if run.rows[-1]["step"] < args["steps"]:
            notes.append(f"left out: {path} is at step {run.rows[-1]['step']} of {args['steps']}")
        elif any(other.args["seed"] == args["seed"] and not _differing(other, run) for other in alike):
            repeats += 1
        else:
            alike.append(run)
    notes += [f"left out: {repeats} with the flags and the seed of another"] if repeats else []
    runs = {script: sorted(chosen[script], key=lambda run: run.args["seed"]) for script in sorted(chosen, key=_rank) if chosen[script]}
    for alike in runs.values():
        _require_alike(alike)
    return runs, notes


def _value(args: dict, flag: str):
    """A flag's value, in one spelling for those of figures that have two."""
    value = args.get(flag)
    if flag == "model" and value == "testbed":
        return "testbed:fragile"
    if flag == "cov_targets" and value == []:
        return (0.15, *[0.08] * (len(args["objectives"]) - 1))  # algos/ctwa.py
    return tuple(value) if isinstance(value, list) else value


def _rank(script: str) -> tuple[int, str]:
    return (ORDER.index(script) if script in ORDER else len(ORDER), script)


def _differing(one: Run, other: Run, flags: Collection[str] = ()) -> list[str]:
    """Which of the flags differ; by default, which of those that both have and that matter to what is learned."""
    flags = flags or (one.args.keys() & other.args.keys()) - BOOKKEEPING
    return sorted(flag for flag in flags if _value(one.args, flag) != _value(other.args, flag))


def _require_alike(runs: list[Run], flags: Collection[str] = ()) -> None:
    for run in runs[1:]:
        if flag := next(iter(_differing(runs[0], run, flags)), ""):
            one, other = (f"{r.path} has {_value(r.args, flag)}" for r in (runs[0], run))
            raise UserError(f"--runs: runs of one figure differ in --{flag.replace('_', '-')}: {one}, {other}; give folders of one of them")


# --- numbers ---


@dataclass(frozen=True)
class Band:
    """A quantity over the steps: interquartile mean over the seeds, and its interval, nan where a step has a single value."""

    steps: list[int]
    middle: list[float]
    low: list[float]
    high: list[float]


def band(seeds: Sequence[Series]) -> Band:
    """Average the seeds at every step that one of them has. A value of nan is a gap: the mean is then over the other seeds."""
    values: dict[int, list[float]] = {}
    for steps, series in seeds:
        for step, value in zip(steps, series, strict=True):
            values.setdefault(step, [])
            if not math.isnan(value):
                values[step].append(value)
    steps = sorted(values)
    middle = [float(iqm(values[step])) if values[step] else math.nan for step in steps]
    none = (math.nan, math.nan)
    ends = [stratified_bootstrap([values[step]], iqm, resamples=RESAMPLES) if len(values[step]) > 1 else none for step in steps]
    return Band(steps, middle, [low for low, _ in ends], [high for _, high in ends])


def cosines(run: Run) -> dict[tuple[int, int], Series]:
    """Cosine between the gradients of each pair of objectives at the measured steps, from `gradients.jsonl`.

    With the inner products G of two disjoint half batches, G_ij / sqrt(G_ii G_jj): no completion is multiplied with itself, which would
    push every inner product up. Noise can carry it beyond 1, and make a diagonal entry negative; then there is no cosine (nan).
    Raises UserError when a line is broken or a matrix is not [K][K].
    """
    names = run.objectives
    series: dict[tuple[int, int], Series] = {(i, j): ([], []) for i in range(len(names)) for j in range(i + 1, len(names))}
    for row in read_rows(run.path / "gradients.jsonl"):
        gram = row.get("gram", [])
        fits = len(gram) == len(names) and all(len(line) == len(names) for line in gram)
        require(fits, f"{run.path / 'gradients.jsonl'}: step {row['step']} has no gram of {len(names)} x {len(names)} numbers")
        for (i, j), (steps, values) in series.items():
            measured = gram[i][i] > 0 and gram[j][j] > 0
            steps.append(row["step"])
            values.append(gram[i][j] / math.sqrt(gram[i][i] * gram[j][j]) if measured else math.nan)
    return series


# --- the figures ---


def draw_curves(groups: Sequence[tuple[str, Runs]]):
    """Figures 1, 6, 7 and 8: held-out reward of every objective, a panel per algorithm, a block of panels per model with its name."""
    runs = [run for _, algorithms in groups for seeds in algorithms.values() for run in seeds]
    head = 0.3 if len(groups) > 1 else 0
    heights = [head + _block_height(algorithms) for _, algorithms in groups]
    page = _Page(sum(heights), _facts(runs), f"Held-out reward. {_seeds_drawn(runs)}", _keys(runs))
    for number, (model, algorithms) in enumerate(groups):
        y = sum(heights[:number])
        if head:
            own = [run for seeds in algorithms.values() for run in seeds]
            page.words(0.1, y + 0.15, f"{model} · {_seeds(own)}", fontsize=LABEL + 1.5, weight="bold")
        _draw_block(page, y + head, algorithms, algorithms.get(BASELINE, []))
    return page.figure


def draw_readme(algorithms: Runs):
    """The first picture: held-out reward of every objective, a panel per algorithm, large enough for a page that shows it small."""
    runs = [run for seeds in algorithms.values() for run in seeds]
    names, last = runs[0].objectives, runs[0].rows[-1]["step"]
    beside = max(map(inches, names)) + 0.34  # leaders and a gap
    height, pitch = 1.75, (WIDTH - 0.5) / len(algorithms)
    page = _Page(height + 0.6, _facts(runs), f"Held-out reward. {_seeds_drawn(runs)}", _keys(runs, behind=False))
    for column, (script, seeds) in enumerate(algorithms.items()):
        where = (0.5 + column * pitch, 0.25, pitch - beside, height)
        panel = page.panel(where, last, (0, 1), _counted(script, seeds, algorithms), first=column == 0, lowest=True)
        panel.set_xlabel("step", labelpad=1)
        panel.set_ylabel("held-out reward" if column == 0 else "", labelpad=2)
        _draw_objectives(panel, seeds, [])
    return page.figure


def draw_weights(models: Runs):
    """Figure 2: CTWA's weights, what drives them and what comes of them, a column per model."""
    runs = [run for seeds in models.values() for run in seeds]
    rows = (
        ("weight/{}", "weight, log scale"),
        ("weight_share/{}", "share of the weights"),
        ("ctwa/deficit/{}", "missing covariance"),
        ("eval/{}", "held-out reward"),
    )
    width, height = _width(len(models)), 1.1
    words = "CTWA adds to the logarithm of a weight what the covariance of its objective misses to the target, times the weight rate."
    page = _Page(0.2 + 1.25 * len(rows) + 0.2, _facts(runs), words, _line_keys(runs, band=False))
    last = runs[0].rows[-1]["step"]
    for row, (key, unit) in enumerate(rows):
        include = () if row == 0 else (0, 1) if row == 3 else (0,)
        bounds = limits((run.series(key.format(name))[1] for run in runs for name in run.objectives), include)
        for column, (model, repetitions) in enumerate(models.items()):
            where = (LEFT + column * (width + 0.2), 0.2 + row * 1.25, width, height)
            title = "" if row else _counted(model, repetitions, models)
            panel = page.panel(where, last, bounds, title, first=column == 0, lowest=row == len(rows) - 1, log=row == 0)
            panel.set_ylabel(unit if column == 0 else "")
            ends = []
            for k, name in reversed(list(enumerate(repetitions[0].objectives))):  # the first objective on top
                look = objective_look(k)
                each = [run.series(key.format(name)) for run in repetitions]
                _draw_seeds(panel, each, look)
                middle = band(each)
                panel.plot(middle.steps, middle.middle, label=name, **look.pen)
                ends.append(Name(name, look, last, middle.middle[-1]))
            if column == len(models) - 1:
                name_lines(panel, ends)
    return page.figure


def draw_covariances(algorithms: Runs, reference: str = "ctwa"):
    """Figure 3: each objective's covariance with the update, a row per algorithm, `reference` behind all of them."""
    runs = [run for seeds in algorithms.values() for run in seeds]
    names, last = runs[0].objectives, runs[0].rows[-1]["step"]
    half = last // 25
    behind = algorithm_look(reference)._replace(marker="")
    keys = [*_line_keys(runs), *([Key(reference, behind, "thin")] if reference in algorithms else [])]
    words = f"Covariance of advantage and reward within prompts, {mean_of(half)}. {_seeds_drawn(runs)}"
    beside, height, pitch = 1.25, 0.7, 0.84
    width = _width(len(names), beside, 0.5)
    page = _Page(0.2 + pitch * len(algorithms) + 0.25, _facts(runs), words, keys)
    series = {
        script: [[smooth(run.series(f"cov/{name}"), half) for run in seeds] for name in names] for script, seeds in algorithms.items()
    }
    middles = {script: [band(each) for each in own] for script, own in series.items()}
    bounds = limits((values for own in series.values() for each in own for _, values in each), (0,))
    for row, script in enumerate(algorithms):
        y = 0.2 + row * pitch
        title = script.replace("_", "_\n") if len(script) > 12 else script
        page.words(0.1, y + height / 2, _counted(title, algorithms[script], algorithms).replace(" (", "\n("), va="center", weight="bold")
        for k, name in enumerate(names):
            where = (beside + k * (width + 0.2), y, width, height)
            panel = page.panel(where, last, bounds, name if row == 0 else "", first=k == 0, lowest=row == len(algorithms) - 1)
            panel.axhline(0, color="black", linewidth=0.6)
            if reference in algorithms and script != reference:
                drawn = middles[reference][k]
                panel.plot(drawn.steps, drawn.middle, label=reference, linewidth=0.9, **behind.pen)
                if k == len(names) - 1:
                    name_lines(panel, [Name(reference, behind, last, drawn.middle[-1])])
            _draw_mean(panel, series[script][k], objective_look(k), script)
    return page.figure


def draw_targets(settings: Runs, baseline: list[Run]):
    """Figure 4: CTWA under other covariance targets: where each setting ends, and how it gets there. The baseline may be missing."""
    first = next(iter(settings.values()))[0]
    everything = {BASELINE: baseline, **settings} if baseline else settings
    runs = [run for seeds in everything.values() for run in seeds]
    names = first.objectives
    height, beside = 0.17 * len(everything) + 0.1, 1.75
    words = f"CTWA with other covariance targets (for {', '.join(names)}). Held-out reward: above, where each setting ends (mean of "
    words += f"the last {LAST} evaluations, of all seeds and of each); below, the way there. {_seeds_drawn(runs)}"
    keys = [Key("end, mean of the seeds", NEUTRAL._replace(marker="o"), "point"), Key("end of a seed", NEUTRAL, "stroke"), *_keys(runs)]
    page = _Page(0.2 + height + 0.35 + _block_height(settings, 4, 2), _facts(runs), words, keys)
    width = _width(len(names), beside, 0.15)
    for k, name in enumerate(names):
        panel = page.panel((beside + k * (width + 0.2), 0.2, width, height), 1, (0, 1), name, first=True, lowest=True)
        _draw_ends(panel, name, everything, named=k == 0)
    _draw_block(page, 0.2 + height + 0.35, settings, baseline, 4, 2)
    return page.figure


def draw_conflict(algorithms: Runs):
    """Figure 5: cosine between the gradients of every pair of objectives, and below each objective's held-out reward."""
    runs = [run for seeds in algorithms.values() for run in seeds]
    names, last = runs[0].objectives, runs[0].rows[-1]["step"]
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    across, height = max(len(pairs), len(names)), 1.5
    words = (
        "Cosine between the objectives' gradients, from two halves of a batch, so that noise can carry it beyond ±1, and far beyond "
        "where a gradient is near 0 (a triangle at the edge). A gap, or a seed without a point: the square of a gradient came out "
        f"negative by noise, and there is no cosine. {_seeds_drawn(runs)}"
    )
    keys = [Key(script, algorithm_look(script)) for script in algorithms]
    page = _Page(0.2 + 2 * (height + 0.45), _facts(runs), words, [*keys, Key("a cosine's ±1", kind="start")])
    width = _width(across)
    measured = {script: [cosines(run) for run in seeds] for script, seeds in algorithms.items()}

    def panels(row: int, titles: list[str], unit: str, bounds: tuple[float, float], each: Callable[[str, int], list[Series]]) -> None:
        for column, title in enumerate(titles):
            where = (LEFT + column * (width + 0.2), 0.2 + row * (height + 0.45), width, height)
            panel = page.panel(where, last, bounds, title, first=column == 0, lowest=True)
            panel.set_ylabel(unit if column == 0 else "")
            if row == 0:
                panel.axhline(0, color="black", linewidth=0.6)
                for bound in (-1, 1):
                    panel.axhline(bound, **START)
            ends = []
            for script in algorithms:
                look, seeds = algorithm_look(script), each(script, column)
                drawn = _draw_mean(panel, seeds, look, script, points=row == 0)  # a point between two gaps has no line
                known = [(x, y) for x, y in zip(drawn.steps, drawn.middle, strict=True) if not math.isnan(y)]
                for x, y in known:
                    if not bounds[0] <= y <= bounds[1]:
                        edge, marker = (bounds[1], "^") if y > 0 else (bounds[0], "v")
                        panel.plot([x], [edge], marker, color=look.colour, markersize=5, clip_on=False, label="_beyond")
                ends += [Name(_counted(script, algorithms[script], algorithms), look, *known[-1])] if known else []
            if column == len(titles) - 1:
                name_lines(panel, ends)

    found = [value for own in measured.values() for run in own for _, values in run.values() for value in values if not math.isnan(value)]
    bound = min(1.5, max(1.1, *map(abs, found))) if found else 1.1
    titles = [f"{names[i]}, {names[j]}" for i, j in pairs]
    panels(0, titles, "cosine", (-bound, bound), lambda script, n: [run[pairs[n]] for run in measured[script]])
    held_out = limits((run.series(f"eval/{name}")[1] for run in runs for name in names), (0, 1))
    panels(1, names, "held-out reward", held_out, lambda script, n: [run.series(f"eval/{names[n]}") for run in algorithms[script]])
    return page.figure


# --- panels ---


class _Page:
    """A figure laid out in inches from below its heading: what the runs have in common, what is drawn, and a key of the lines."""

    def __init__(self, height: float, facts: str, words: str, keys: Sequence[Key]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        lines = textwrap.wrap(words, 118)
        keys_at = 0.40 + 0.145 * len(lines)
        self.top = keys_at + ROW * len(key_rows(keys, WIDTH - 0.2))
        self.height = self.top + height
        self.figure = Figure(figsize=(WIDTH, self.height))
        FigureCanvasAgg(self.figure)
        self.words(0.1, 0.1 - self.top, facts, va="top", weight="bold", fontsize=LABEL + 1)
        self.words(0.1, 0.29 - self.top, "\n".join(lines), va="top", color="#444444", linespacing=1.3)
        draw_keys(self.figure, 0.1, keys_at, keys)

    def words(self, x: float, y: float, text: str, **style) -> None:
        self.figure.text(x / WIDTH, 1 - (self.top + y) / self.height, text, **{"fontsize": LABEL, **style})

    def panel(
        self,
        where: tuple[float, float, float, float],
        last: int,
        bounds: tuple[float, float],
        title: str,
        first: bool,
        lowest: bool,
        log: bool = False,
    ):
        """A panel at (x, y, width, height). Only the first of a row has numbers on its y axis, only the lowest on its x axis."""
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

        x, y, width, height = where
        panel = self.figure.add_axes((x / WIDTH, 1 - (self.top + y + height) / self.height, width / WIDTH, height / self.height))
        low, high = bounds
        if log:
            panel.set_yscale("log")
            panel.set_ylim(low / 1.1, high * 1.1)
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.yaxis.set_minor_formatter(NullFormatter())
        else:
            margin = 0.04 * (high - low)
            panel.set_ylim(low - margin, high + margin)
            panel.locator_params(axis="y", nbins=4 if height < 1 else 5)
        ticks = [int(tick) for tick in MaxNLocator(2 if width < 1.5 else 5, integer=True).tick_values(0, last) if 0 <= tick <= last]
        panel.set_xlim(0, last)
        panel.set_xticks(ticks)
        panel.get_xticklabels()[0].set_ha("left")  # or they run into those of the panels on either side
        if ticks[-1] == last:
            panel.get_xticklabels()[-1].set_ha("right")
        head = panel.set_title(title, pad=3, linespacing=1.1)
        widest = max(inches(line, STYLE["axes.titlesize"], STYLE["axes.titleweight"]) for line in title.split("\n")) if title else 0
        room = width / (widest or 1)
        head.set_fontsize(head.get_fontsize() * min(1, room))
        panel.tick_params(length=2.5, pad=2, labelleft=first, labelbottom=lowest)
        if lowest and first:
            panel.set_xlabel("step", labelpad=1)
        return panel


def _block_height(cells: Runs, across: int = 5, title_lines: int = 1) -> float:
    return math.ceil(len(cells) / across) * (0.94 + 0.16 * title_lines) + 0.25


def _draw_block(page: _Page, y: float, cells: Runs, baseline: list[Run], across: int = 5, title_lines: int = 1) -> None:
    """Panels of learning curves, `across` in a row, from y downwards; the first objective of the baseline in grey behind them."""
    names = next(iter(cells.values()))[0].objectives
    width, height = _width(across, margin=0.12), 0.8
    bounds = limits((run.series(f"eval/{name}")[1] for seeds in cells.values() for run in seeds for name in names), (0, 1))
    for number, (label, seeds) in enumerate(cells.items()):
        row, column = divmod(number, across)
        where = (LEFT + column * (width + 0.12), y + 0.16 * title_lines + row * (0.94 + 0.16 * title_lines), width, height)
        lowest = number + across >= len(cells)
        panel = page.panel(where, seeds[0].rows[-1]["step"], bounds, _counted(label, seeds, cells), first=column == 0, lowest=lowest)
        named = column == across - 1 or number == len(cells) - 1
        _draw_objectives(panel, seeds, baseline if seeds is not baseline else [], named)


def _draw_objectives(panel, seeds: list[Run], baseline: list[Run], named: bool = True) -> None:
    """Held-out rewards of one setting, the first objective on top and that of the baseline behind; names beside the panel."""
    names, last = seeds[0].objectives, seeds[0].rows[-1]["step"]
    panel.axhline(seeds[0].series(f"eval/{names[0]}")[1][0], **START)
    ends = []
    if baseline:
        behind, look = band([run.series(f"eval/{names[0]}") for run in baseline]), algorithm_look(BASELINE)
        panel.plot(behind.steps, behind.middle, label=BASELINE, linewidth=0.9, **look.pen)
        ends.append(Name(BASELINE, look, last, behind.middle[-1]))
    for k, name in reversed(list(enumerate(names))):
        drawn = _draw_mean(panel, [run.series(f"eval/{name}") for run in seeds], objective_look(k), name)
        ends.append(Name(name, objective_look(k), last, drawn.middle[-1]))
    if named:
        name_lines(panel, ends)


def _draw_mean(panel, seeds: list[Series], look: Look, label: str, points: bool = False) -> Band:
    """The mean over the seeds, each of them thin, and with enough of them the mean's interval; `points` marks the values."""
    drawn = band(seeds)
    if len(seeds) > FEW:
        panel.fill_between(drawn.steps, drawn.low, drawn.high, color=look.colour, alpha=0.15, linewidth=0)
    _draw_seeds(panel, seeds, look, points)
    panel.plot(drawn.steps, drawn.middle, linewidth=1.4, label=label, **look.pen, **(look.points if points else {}))
    return drawn


def _draw_seeds(panel, seeds: list[Series], look: Look, points: bool = False) -> None:
    """Each seed, since a mean of two outcomes is neither."""
    marker = {"marker": look.marker, "markersize": 1.8} if points else {}
    for series in seeds if len(seeds) > 1 else ():
        panel.plot(*series, color=look.colour, linewidth=0.5, alpha=0.6, label="_seed", **marker)


def _draw_ends(panel, name: str, settings: Runs, named: bool) -> None:
    """The end of one objective in every setting: its mean and its seeds, with enough of them its interval; one line per setting."""
    ended = {label: [with_mean_end(run).series(f"eval/{name}")[1] for run in seeds] for label, seeds in settings.items()}
    panel.axvline(next(iter(ended.values()))[0][0], **START)
    for y, (label, seeds) in enumerate(ended.items()):
        look = algorithm_look(settings[label][0].args["script"])
        ends = [end for _, end in seeds]
        if len(ends) > FEW:
            panel.plot(stratified_bootstrap([ends], iqm), [y, y], color=look.colour, linewidth=4, alpha=0.3, solid_capstyle="butt")
        panel.plot(ends, [y] * len(ends), "|", color=look.colour, markersize=6, markeredgewidth=0.8)
        panel.plot([float(iqm(ends))], [y], linestyle="", marker="o", color=look.colour, markersize=3.5, clip_on=False, label=label)
    panel.set(xlim=(-0.03, 1.03), ylim=(len(ended) - 0.4, -0.6))
    panel.set_xticks([0, 0.5, 1])
    for tick in panel.get_xticklabels():
        tick.set_ha("center")
    panel.set_yticks(range(len(ended)), [label.replace("\n", "  ") if named else "" for label in ended])
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("")


def _counted(label: str, seeds: list[Run], cells: Runs) -> str:
    """The label, with the number of seeds where others have another number."""
    return f"{label} ({len(seeds)})" if len({len(other) for other in cells.values()}) > 1 else label


def _width(columns: int, left: float = LEFT, right: float = RIGHT, margin: float = 0.2) -> float:
    return (WIDTH - left - right - (columns - 1) * margin) / columns


# --- words ---


def _facts(runs: list[Run]) -> str:
    """Models, dataset, estimator, steps and number of seeds of a figure's runs. Raises UserError where they do not compare."""
    _require_alike(runs, ("objectives", *set(SETTING + MEASURE) - {"model"}))
    models = dict.fromkeys(str(_value(run.args, "model")).split("/")[-1] for run in runs)
    parts = list(models) if len(models) == 1 else [f"{len(models)} models"]  # each of which has a heading of its own
    parts += [short_fact(runs[0], fact) for fact in ("dataset", "estimator")]
    return " · ".join([*parts, f"{runs[0].args['steps']} steps", _seeds(runs)])


def _seeds(runs: list[Run]) -> str:
    counts = _counts(runs)
    if len(set(counts)) > 1:
        return f"{min(counts)} to {max(counts)} seeds (beside the name)"
    return f"{counts[0]} seed{'s' * (counts[0] > 1)}"


def _counts(runs: list[Run]) -> list[int]:
    groups: dict[str, int] = {}
    for run in runs:
        key = json.dumps([_value(run.args, flag) for flag in ("script", "model", "cov_targets")])
        groups[key] = groups.get(key, 0) + 1
    return list(groups.values())


def _seeds_drawn(runs: list[Run]) -> str:
    """What of the seeds is seen, in words."""
    fewest, most = min(_counts(runs)), max(_counts(runs))
    if most == 1:
        return "One seed: no band."
    few = f"up to {FEW} seeds, whose interval would be their range, have no band" if fewest < most else "no band: their range is seen"
    return (
        f"Thick: interquartile mean over the seeds, thin: each seed; {few}."
        if fewest <= FEW
        else "Thick: interquartile mean over the seeds."
    )


def _line_keys(runs: list[Run], band: bool = True) -> list[Key]:
    """Samples of what stands for the seeds."""
    most = max(_counts(runs))
    keys = [Key("mean of the seeds"), Key("a seed", NEUTRAL, "thin")] if most > 1 else []
    return [*keys, *([Key("95% bootstrap interval of the mean", NEUTRAL, "bar")] if band and most > FEW else [])]


def _keys(runs: list[Run], behind: bool = True) -> list[Key]:
    """Samples of the objectives' lines and of what stands behind them."""
    names = runs[0].objectives
    keys = [Key(name, objective_look(k)) for k, name in enumerate(names)]
    if behind and any(run.args["script"] == BASELINE for run in runs):
        keys.append(Key(f"{names[0]} under {BASELINE}", algorithm_look(BASELINE)._replace(marker="")))
    return [*keys, Key(f"{names[0]} at the start", kind="start"), *_line_keys(runs)[1:]]
