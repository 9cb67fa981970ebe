"""The drawing of the paper's figures at testbed scale: small multiples in which every line is named. Reads run folders, never trains.

`benchmarks/figures.py` says which runs a figure is made of; here is how runs are chosen by their flags, averaged over seeds and drawn.
"""

import json
import math
import os
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from analysis.curves import BOOKKEEPING, Series, limits, mean_of, short_fact, smooth
from analysis.leaderboard import LAST, MEASURE, SETTING, with_mean_end
from analysis.looks import COLOURS, GREY, LABEL, STYLE, spread
from analysis.runs import Run, load_run, read_rows
from analysis.statistics import iqm, stratified_bootstrap
from common.errors import UserError, require

BASELINE = "linear"
# Methods that weigh rewards, then those that weigh gradients; a script that is not among them comes last.
# of the study's scripts; others follow by name
ORDER = (BASELINE, "ctwa", "tchebycheff", "lagrangian", "dynamic_weighting", "famo", "pama", "mgda", "gradnorm", "nash_mtl")
REWARD_LEVEL = ORDER[:7]
BEHIND = {"color": GREY, "linestyle": "-.", "linewidth": 0.9}  # the line of another algorithm, to compare with
DASHES = ("-", (0, (4, 1.3)), (0, (1, 1)), (0, (5, 1.3, 1, 1.3)))  # so that the objectives can be told apart in greyscale
RESAMPLES = 2_000  # of the seeds, for each point of a band
WIDTH = 7.5  # inches; a page
LEFT, RIGHT = 0.55, 0.85  # inches beside the panels: the axis; the names of the lines

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


def _of(runs: list[Run], key: str, half: int = 0) -> Band:
    return band([smooth(run.series(key), half) for run in runs])


# --- the figures ---


def draw_curves(groups: Sequence[tuple[str, Runs]]):
    """Figures 1, 6, 7 and 8: held-out reward of every objective, a panel per algorithm, a block of panels per model with its name."""
    runs = [run for _, algorithms in groups for seeds in algorithms.values() for run in seeds]
    head = 0.3 if len(groups) > 1 else 0
    heights = [head + _block_height(algorithms) for _, algorithms in groups]
    page = _Page(sum(heights), _facts(runs), f"Held-out reward. {_what(runs)}. {_behind(runs[0].objectives[0], runs)}")
    for number, (model, algorithms) in enumerate(groups):
        y = sum(heights[:number])
        if head:
            own = [run for seeds in algorithms.values() for run in seeds]
            page.words(0.1, y + 0.15, f"{model} · {_seeds(own)}", fontsize=LABEL + 1.5, weight="bold")
        _draw_block(page, y + head, algorithms, algorithms.get(BASELINE, []))
    return page.figure


def draw_weights(models: Runs):
    """Figure 2: CTWA's weights, what drives them and what comes of them, a column per model."""
    runs = [run for seeds in models.values() for run in seeds]
    seeds = ". Thick: interquartile mean over the seeds, thin: each seed." if _most(runs) > 1 else ". One seed."
    rows = (
        ("weight/{}", "weight"),
        ("weight_share/{}", "share of the weights"),
        ("ctwa/deficit/{}", "missing covariance"),
        ("eval/{}", "held-out reward"),
    )
    width, height = _width(len(models)), 1.1
    words = "CTWA adds to the logarithm of a weight what the covariance of its objective misses to the target, times the weight rate"
    page = _Page(0.2 + 1.25 * len(rows) + 0.2, _facts(runs), words + seeds)
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
                colour, dash = _look(k)
                each = [run.series(key.format(name)) for run in repetitions]
                for series in each if len(each) > 1 else ():
                    panel.plot(*series, color=colour, linestyle=dash, linewidth=0.5, alpha=0.5)
                middle = band(each)
                panel.plot(middle.steps, middle.middle, color=colour, linestyle=dash, label=name)
                ends.append((name, colour, middle.middle[-1]))
            if column == len(models) - 1:
                _name_ends(panel, ends, height)
    return page.figure


def draw_covariances(algorithms: Runs, reference: str = "ctwa"):
    """Figure 3: each objective's covariance with the update, a row per algorithm, `reference` in grey behind all of them."""
    runs = [run for seeds in algorithms.values() for run in seeds]
    names, last = runs[0].objectives, runs[0].rows[-1]["step"]
    half = last // 25
    behind = f" Grey: {reference}." if reference in algorithms else ""
    words = f"Covariance of advantage and reward within prompts, {mean_of(half)}. {_what(runs)}.{behind}"
    beside, height, pitch = 1.25, 0.7, 0.84
    width = _width(len(names), beside, 0.5)
    page = _Page(0.2 + pitch * len(algorithms) + 0.25, _facts(runs), words)
    bands = {script: [_of(seeds, f"cov/{name}", half) for name in names] for script, seeds in algorithms.items()}
    bounds = limits((values for own in bands.values() for b in own for values in (b.middle, _known(b.low), _known(b.high))), (0,))
    for row, (script, own) in enumerate(bands.items()):
        y = 0.2 + row * pitch
        title = script.replace("_", "_\n") if len(script) > 12 else script
        page.words(0.1, y + height / 2, _counted(title, algorithms[script], algorithms).replace(" (", "\n("), va="center", weight="bold")
        for k, name in enumerate(names):
            where = (beside + k * (width + 0.2), y, width, height)
            panel = page.panel(where, last, bounds, name if row == 0 else "", first=k == 0, lowest=row == len(bands) - 1)
            panel.axhline(0, color="black", linewidth=0.6)
            if reference in bands and script != reference:
                panel.plot(bands[reference][k].steps, bands[reference][k].middle, label=reference, **BEHIND)
                if k == len(names) - 1:
                    _name_ends(panel, [(reference, GREY, bands[reference][k].middle[-1])], height)
            _draw_band(panel, own[k], *_look(k), script)
    return page.figure


def draw_targets(settings: Runs, baseline: list[Run]):
    """Figure 4: CTWA under other covariance targets: where each setting ends, and how it gets there. The baseline may be missing."""
    first = next(iter(settings.values()))[0]
    everything = {BASELINE: baseline, **settings} if baseline else settings
    runs = [run for seeds in everything.values() for run in seeds]
    names = first.objectives
    height, beside = 0.17 * len(everything) + 0.1, 1.75
    words = f"CTWA with other covariance targets (for {', '.join(names)}). Held-out reward. Above, where each setting ends (mean of "
    words += f"the last {LAST} evaluations; strokes: each seed; dashed: the start); below, the way there. {_what(runs)}. "
    words += _behind(names[0], runs)
    page = _Page(0.2 + height + 0.35 + _block_height(settings, 4, 2), _facts(runs), words)
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
    looks = [(GREY, DASHES[1]), *((colour, "-") for colour in ("#000000", *COLOURS[3:6]))]
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    across, height = max(len(pairs), len(names)), 1.5
    words = f"Cosine between the objectives' gradients, from two halves of a batch, so that noise can carry it beyond ±1. {_what(runs)}."
    page = _Page(0.2 + 2 * (height + 0.45), _facts(runs), words)
    width = _width(across)
    measured = {script: [cosines(run) for run in seeds] for script, seeds in algorithms.items()}

    def panels(row: int, titles: list[str], unit: str, bounds: tuple[float, float], bands: Callable[[int], list[Band]]) -> None:
        for column, title in enumerate(titles):
            where = (LEFT + column * (width + 0.2), 0.2 + row * (height + 0.45), width, height)
            panel = page.panel(where, last, bounds, title, first=column == 0, lowest=True)
            panel.set_ylabel(unit if column == 0 else "")
            if row == 0:
                panel.axhline(0, color="black", linewidth=0.6)
                for bound in (-1, 1):
                    panel.axhline(bound, color=GREY, linewidth=0.5, linestyle=(0, (4, 4)))
            ends = []
            for script, drawn, look in zip(algorithms, bands(column), cycle(looks), strict=False):
                _draw_band(panel, drawn, *look, script, marker="." if row == 0 else "")  # a point between two gaps has no line
                if known := _known(drawn.middle):
                    ends.append((_counted(script, algorithms[script], algorithms), look[0], known[-1]))
            if column == len(titles) - 1:
                _name_ends(panel, ends, height)

    titles = [f"{names[i]}, {names[j]}" for i, j in pairs]
    panels(0, titles, "cosine", (-1.25, 1.25), lambda n: [band([run[pairs[n]] for run in measured[script]]) for script in algorithms])
    held_out = limits((run.series(f"eval/{name}")[1] for run in runs for name in names), (0, 1))
    panels(1, names, "held-out reward", held_out, lambda n: [_of(seeds, f"eval/{names[n]}") for seeds in algorithms.values()])
    return page.figure


# --- panels ---


class _Page:
    """A figure laid out in inches from below its heading, which says what the runs have in common and what is drawn."""

    def __init__(self, height: float, facts: str, words: str) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        lines = textwrap.wrap(words, 122)
        self.top = 0.38 + 0.145 * len(lines)
        self.height = self.top + height
        self.figure = Figure(figsize=(WIDTH, self.height))
        FigureCanvasAgg(self.figure)
        self.words(0.1, 0.1 - self.top, facts, va="top", weight="bold", fontsize=LABEL + 1)
        self.words(0.1, 0.29 - self.top, "\n".join(lines), va="top", color=GREY, linespacing=1.3)

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
        room = (width + 0.1) / (max(map(_inches, title.split("\n"))) or 1)
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
    behind = _of(baseline, f"eval/{names[0]}")
    for number, (label, seeds) in enumerate(cells.items()):
        row, column = divmod(number, across)
        where = (LEFT + column * (width + 0.12), y + 0.16 * title_lines + row * (0.94 + 0.16 * title_lines), width, height)
        lowest = number + across >= len(cells)
        panel = page.panel(where, seeds[0].rows[-1]["step"], bounds, _counted(label, seeds, cells), first=column == 0, lowest=lowest)
        bands = [_of(seeds, f"eval/{name}") for name in names]
        ends = [(name, _look(k)[0], bands[k].middle[-1]) for k, name in enumerate(names)]
        panel.axhline(bands[0].middle[0], color=GREY, linewidth=0.5, linestyle=(0, (4, 4)))
        if baseline and seeds is not baseline:
            panel.plot(behind.steps, behind.middle, label=BASELINE, **BEHIND)
            ends.append((BASELINE, GREY, behind.middle[-1]))
        for run in seeds if len(seeds) > 1 else ():  # a mean of two outcomes is neither
            panel.plot(*run.series(f"eval/{names[0]}"), color=COLOURS[0], linewidth=0.5, alpha=0.7)
        for k, drawn in reversed(list(enumerate(bands))):  # the first objective on top
            _draw_band(panel, drawn, *_look(k), names[k])
        if column == across - 1 or number == len(cells) - 1:
            _name_ends(panel, ends, height)


def _draw_band(panel, drawn: Band, colour: str, dash, label: str, marker: str = "") -> None:
    panel.fill_between(drawn.steps, drawn.low, drawn.high, color=colour, alpha=0.2, linewidth=0)
    panel.plot(drawn.steps, drawn.middle, color=colour, linestyle=dash, marker=marker, markersize=3, linewidth=1.3, label=label)


def _draw_ends(panel, name: str, settings: Runs, named: bool) -> None:
    """The end of one objective in every setting: its mean, its interval and its seeds, one line per setting."""
    ended = {label: [with_mean_end(run).series(f"eval/{name}")[1] for run in seeds] for label, seeds in settings.items()}
    panel.axvline(next(iter(ended.values()))[0][0], color=GREY, linewidth=0.5, linestyle=(0, (4, 4)))
    for y, (label, seeds) in enumerate(ended.items()):
        colour = GREY if label == BASELINE else "#000000"
        ends = [end for _, end in seeds]
        if len(ends) > 1:
            panel.plot(stratified_bootstrap([ends], iqm), [y, y], color=colour, linewidth=4, alpha=0.3, solid_capstyle="butt")
        panel.plot(ends, [y] * len(ends), "|", color=colour, markersize=6, markeredgewidth=0.8)
        panel.plot([float(iqm(ends))], [y], "o", color=colour, markersize=3.5, clip_on=False, label=label)
    panel.set(xlim=(-0.03, 1.03), ylim=(len(ended) - 0.4, -0.6))
    panel.set_xticks([0, 0.5, 1])
    for tick in panel.get_xticklabels():
        tick.set_ha("center")
    panel.set_yticks(range(len(ended)), [label.replace("\n", "  ") if named else "" for label in ended])
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("")


def _name_ends(panel, ends: list[tuple[str, str, float]], height: float) -> None:
    """Names beside a panel `height` inches high, each in its colour where its line ends, apart where they would overlap."""
    top = 0.95  # of the panel: above it stands the title
    values = [(0, panel.transScale.transform((1, value))[1]) for _, _, value in ends]
    places = spread([place / top for _, place in panel.transLimits.transform(values)], gap=1.2 * LABEL / (72 * height * top))
    for (label, colour, _), place in zip(ends, places, strict=True):
        panel.annotate(label, (1, place * top), (4, 0), xycoords="axes fraction", textcoords="offset points", color=colour,
                       fontsize=LABEL, va="center", annotation_clip=False)  # fmt: skip


def _counted(label: str, seeds: list[Run], cells: Runs) -> str:
    """The label, with the number of seeds where others have another number."""
    return f"{label} ({len(seeds)})" if len({len(other) for other in cells.values()}) > 1 else label


def _look(k: int) -> tuple:
    """Colour and dash of an objective."""
    return COLOURS[k % len(COLOURS)], DASHES[k % len(DASHES)]


def _width(columns: int, left: float = LEFT, right: float = RIGHT, margin: float = 0.2) -> float:
    return (WIDTH - left - right - (columns - 1) * margin) / columns


def _known(values: list[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _inches(words: str) -> float:
    """How wide a panel's title is."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=STYLE["axes.titlesize"], weight=STYLE["axes.titleweight"])
    return text_to_path.get_text_width_height_descent(words, font, False)[0] / 72


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


def _most(runs: list[Run]) -> int:
    return max(_counts(runs))


def _what(runs: list[Run]) -> str:
    return "Line: interquartile mean over the seeds, band: its 95% bootstrap interval" if _most(runs) > 1 else "One seed: no band"


def _behind(name: str, runs: list[Run]) -> str:
    each = f"Thin: {name} of each seed. " if _most(runs) > 1 else ""
    grey = f"Grey: {name} under {BASELINE}. " if any(run.args["script"] == BASELINE for run in runs) else ""
    return f"{each}{grey}Dashed: {name} at the start."
