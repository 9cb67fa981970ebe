"""Draw runs as the reader of a paper wants them: a panel per objective, below it what moved it, and each line named at its end."""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from tools.looks import (
    COLOURS,  # noqa: F401  for those who take all of drawing from here
    DOTTED,
    GREY,
    LABEL,
    NEUTRAL,
    SIGNS,
    START,
    STYLE,
    Key,
    Look,
    Name,
    draw_keys,
    inches,
    name_lines,
    objective_look,
    setting_looks,
)
from common.runs import Run
from common.verdict import Change, change_of
from common.errors import UserError

WIDTH, HEIGHT = 2.05, 1.7  # inches; a panel without its labels
LEFT, TOP, BELOW = 0.6, 0.78, 0.55  # inches; beside the first column, above the first row, under each row
BANDS = 4  # more bands than this in a panel are a haze
MANY = 8  # settings, whose numbers of runs are no longer listed one by one where all have the same
SMALL = 0.25  # a reward that stays below this part of 0..1 has a scale of its own
SLIGHT = 0.02  # of 0..1, which the panel's margin covers
# Flags that leave what is learned alone: runs that agree in all others are repetitions of one setting.
BOOKKEEPING = {"seed", "out", "resume", "checkpoint_every", "keep_safe", "log_completions", "tensorboard", "wandb"}
BOOKKEEPING |= {"trust_remote_code", "micro_batch_tokens"}
FACTS = ("script", "estimator", "model", "dataset", "seed")  # stand in the heading where all runs agree

Series = tuple[list[int], list[float]]  # steps and values


@dataclass
class _Line:
    """One line of a panel. `se`: half width of its band, empty for none. `thin`: what it is the mean of, drawn behind it."""

    label: str
    look: Look
    points: Series
    se: list[float] = field(default_factory=list)
    thin: list[Series] = field(default_factory=list)
    width: float = 1.5


def draw(runs: list[Run], out: str | Path) -> None:
    """Draw the runs into the file `out`, which ends in .png (150 dpi) or .pdf. An existing file is replaced, whole or not at all.

    One run: each objective on the held-out prompts, sampled with a band of one standard error and greedy dotted; then the response
    length, each objective's share of the weights, and its covariance with what the update weighed the completions with.
    Several: one line per setting, the mean of its runs with the runs thin behind it; below each objective its weight and covariance.
    Raises `UserError` for another ending or a folder that is not there.
    """
    out = Path(out)
    if out.suffix.lower() not in (".png", ".pdf"):
        raise UserError(f"--out {out}: a figure is a .png or a .pdf; give the file one of these endings")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first")
    import matplotlib  # here: reading runs and judging them must not need it

    with matplotlib.rc_context():  # puts back the style of a caller who draws figures of their own
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = _draw_one(runs[0]) if len(runs) == 1 else _draw_several(runs)
        write_figure(figure, out)


def write_figure(figure, out: Path) -> None:
    """Save a matplotlib figure whole, .png or .pdf: a temporary file, then a rename. Raises UserError if it cannot be written."""
    kind = out.suffix.lower()[1:]
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format=kind, dpi=150, metadata={"CreationDate": None} if kind == "pdf" else None)
        os.replace(temporary, out)
    except OSError as error:
        told = f"the picture {out} cannot be written ({error.strerror or error})"
        raise UserError(f"{told}; make room there, or give --out FILE in another folder") from error
    finally:
        with suppress(OSError):  # a folder that cannot be written may say so once more
            temporary.unlink(missing_ok=True)


# --- the two pictures ---


def _draw_one(run: Run):
    names = run.objectives
    last = max(run.rows[-1]["step"], 1)
    # A single objective is not weighed against another: its weight says nothing, and its three panels fit in one row.
    alone = len(names) == 1
    grid = _Grid([3] if alone else [len(names), 3], last, _heading([run]), [*names, "sampled"])
    keys = [Key("sampled, ± 1 standard error", NEUTRAL, "band"), Key("greedy", Look(GREY, DOTTED)), Key("start", kind="start")]
    draw_keys(grid.figure, 0.1, 0.32, keys)
    length_at, weights_at, covariance_at = ((0, 1), None, (0, 2)) if alone else ((1, 0), (1, 1), (1, 2))

    for k, name in enumerate(names):
        change = change_of(run, name) if len(_errors(run, f"eval/{name}")) > 1 else None
        low, high = held_out_limits(_with_errors(run, f"eval/{greedy}{name}") for greedy in ("", "greedy/"))
        panel = grid.panel(0, k, name, "" if k else "held-out reward", low, high, below_title=True)
        _say_status(panel, change, "" if (low, high) == (0, 1) else "own scale")
        if change:
            panel.axhline(change.start, label="_start", **START)
        _draw_evaluation(panel, run, name, objective_look(k))

    lengths = limits((run.series(f"eval/{greedy}length")[1] for greedy in ("", "greedy/")), include=(0,))
    _draw_evaluation(grid.panel(*length_at, "response length", "tokens", *lengths), run, "length", Look("#000000"))

    if weights_at:
        panel = grid.panel(*weights_at, "weights", "share of the sum", 0, 1)
        _draw_lines(panel, _stacked(_Line(name, objective_look(k), run.series(f"weight_share/{name}")) for k, name in enumerate(names)))

    half = last // 25
    raw = [run.series(f"cov/{name}") for name in names]
    panel = grid.panel(*covariance_at, "covariance with the update", mean_of(half), *limits((v for _, v in raw), include=(0,)))
    panel.axhline(0, color=GREY, linewidth=0.5)
    thin = [[series] if half else [] for series in raw]
    _draw_lines(panel, _stacked(_Line(name, objective_look(k), smooth(raw[k], half), [], thin[k]) for k, name in enumerate(names)))
    return grid.figure


def _say_status(panel, change: Change | None, note: str) -> None:
    """Under the title: start, end and verdict, a degraded objective's in white on black; and a note, such as that the scale is another."""
    words = f"{change.start:.2f} → {change.end:.2f}" if change else ""
    y = 1 + 5 / (72 * HEIGHT)
    style = {"transform": panel.transAxes, "fontsize": LABEL, "va": "baseline"}
    x = (inches(words) + 0.06) / (panel.figure.get_figwidth() * panel.get_position().width)
    panel.text(0, y, words, color="#444444", **style)
    if change:
        status = f"{SIGNS[change.status]} {change.status}"
        lost = change.status == "degraded"
        box = {"boxstyle": "square,pad=0.18", "facecolor": "black", "edgecolor": "none"} if lost else None
        ink, weight = ("white", "bold") if lost else ("#444444", "normal")
        panel.text(x + 0.02 * lost, y, status, color=ink, weight=weight, bbox=box, **style)
        x += (inches(status, weight="bold") + 0.12) / (panel.figure.get_figwidth() * panel.get_position().width)
    panel.text(x if change else 0, y, note, color=GREY, style="italic", **style)


def _stacked(lines: Iterable[_Line]) -> list[_Line]:
    """Earlier lines wider, so that each is seen where they are equal."""
    lines = list(lines)
    for above, line in enumerate(reversed(lines)):
        line.width = 1.2 + 0.55 * min(above, 4)
    return lines


def _draw_several(runs: list[Run]):
    settings = group_settings(runs)
    names = list(dict.fromkeys(name for run in runs for name in run.objectives))
    last = max(1, *(run.rows[-1]["step"] for run in runs))
    half = last // 25
    grid = _Grid([len(names) + 1] * 3, last, _heading(runs), [label for label, _ in settings], sample=True)
    looks = setting_looks([repetitions[0].args.get("script", "") for _, repetitions in settings])

    def lines(key: str, half: int = 0) -> list[_Line]:
        drawn = []
        for (label, repetitions), look in zip(settings, looks, strict=True):
            seeds = [smooth(run.series(key), half) for run in repetitions]
            errors = _errors(repetitions[0], key) if len(settings) <= BANDS and len(repetitions) == 1 else []
            drawn.append(_Line(label, look, _mean(seeds), errors, seeds if len(seeds) > 1 else []))
        return drawn

    covariance = limits((smooth(run.series(f"cov/{name}"), half)[1] for run in runs for name in names), include=(0,))
    for k, name in enumerate(names):
        first = k == 0
        low, high = held_out_limits(_with_errors(run, f"eval/{name}") for run in runs)
        own = (low, high) != (0, 1)
        panel = grid.panel(0, k, name, "held-out reward" if first else "", low, high, below_title=own)
        _say_status(panel, None, "own scale" if own else "")
        _draw_lines(panel, lines(f"eval/{name}"), sample=True)
        panel = grid.panel(1, k, f"weight of {name}", "share of the sum" if first else "", 0, 1)
        _draw_lines(panel, lines(f"weight_share/{name}"), sample=True)
        panel = grid.panel(2, k, f"covariance of {name}", mean_of(half) if first else "", *covariance)
        panel.axhline(0, color=GREY, linewidth=0.5)
        _draw_lines(panel, lines(f"cov/{name}", half), sample=True)
    length = limits((run.series("eval/length")[1] for run in runs), include=(0,))
    _draw_lines(grid.panel(0, len(names), "response length", "tokens", *length), lines("eval/length"), sample=True)
    divergence = limits((smooth(run.series("loss/kl"), half)[1] for run in runs), include=(0,))
    panel = grid.panel(1, len(names), "KL from the start", mean_of(half), *divergence)
    panel.set_xlabel("step", labelpad=2)
    _draw_lines(panel, lines("loss/kl", half), sample=True)
    grid.note(2, len(names), _reading(settings))
    return grid.figure


def _reading(settings: list[tuple[str, list[Run]]]) -> list[str]:
    counts = [len(repetitions) for _, repetitions in settings]
    if len(settings) > MANY and len(set(counts)) == 1:
        lines = [f"{len(settings)} settings, {counts[0]} run{'s' * (counts[0] > 1)} each"]
    else:
        lines = [f"{label}: {n} run{'s' * (n > 1)}" for (label, _), n in zip(settings, counts, strict=True)]
    if max(counts) > 1:
        lines += ["", "thick: mean of the runs", "thin: each run"]
    if min(counts) == 1 and len(counts) <= BANDS:
        lines += ["", "band: ± 1 standard error"]
    return lines


def _draw_evaluation(panel, run: Run, name: str, look: Look) -> None:
    sampled = _Line("sampled", look._replace(dash="-"), run.series(f"eval/{name}"), _errors(run, f"eval/{name}"))
    _draw_lines(panel, [sampled, _Line("greedy", look._replace(dash=DOTTED), run.series(f"eval/greedy/{name}"))])


# --- panels and lines ---


class _Grid:
    """A figure whose rows hold `counts` panels each, all rows equally wide; `labels` are the words that must fit beside a panel, and
    with `sample` a piece of the line before them."""

    def __init__(self, counts: list[int], last_step: int, heading: str, labels: list[str], sample: bool = False) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.counts, self.last_step = counts, last_step
        self.between = max(map(inches, labels)) + (1.2 if sample else 0.9)  # the names, their leaders, the next panel's y axis
        self.across = max(counts) * (WIDTH + self.between)
        self.size = (LEFT + self.across - 0.55, TOP + len(counts) * (HEIGHT + BELOW))
        self.figure = Figure(figsize=self.size)
        FigureCanvasAgg(self.figure)
        self.figure.text(0.1 / self.size[0], 1 - 0.1 / self.size[1], heading, va="top", color="#444444", fontsize=LABEL)

    def panel(self, row: int, column: int, title: str, unit: str, low: float, high: float, below_title: bool = False):
        axes = self.figure.add_axes(self._box(row, column))
        margin = 0.03 * (high - low)
        axes.set(ylabel=unit, xlim=(0, self.last_step), ylim=(low - margin, high + margin))
        axes.set_title(title, pad=17 if below_title else 5)
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.locator_params(axis="y", nbins=5)
        axes.tick_params(length=2.5, pad=2)
        if row == len(self.counts) - 1:
            axes.set_xlabel("step", labelpad=2)
        return axes

    def note(self, row: int, column: int, lines: list[str]) -> None:
        x, y, _, height = self._box(row, column)
        self.figure.text(x, y + height, "\n".join(lines), va="top", color="#444444", fontsize=LABEL, linespacing=1.4)

    def _box(self, row: int, column: int) -> tuple[float, float, float, float]:
        width, height = self.size
        step = self.across / self.counts[row]
        y = height - TOP - row * (HEIGHT + BELOW) - HEIGHT
        return (LEFT + column * step) / width, y / height, (step - self.between) / width, HEIGHT / height


def _draw_lines(panel, lines: list[_Line], sample: bool = False) -> None:
    lines = [line for line in lines if line.points[0]]
    if not lines:
        panel.text(0.5, 0.5, "nothing logged", transform=panel.transAxes, ha="center", va="center", color=GREY, fontsize=LABEL)
    for n, line in enumerate(lines):
        steps, values = line.points
        for thin in line.thin:
            panel.plot(*thin, linewidth=0.6, alpha=0.35, zorder=1.5, label="_thin", **line.look.pen)  # under every mean
        if line.se:
            low, high = ([value + sign * se for value, se in zip(values, line.se, strict=True)] for sign in (-1, 1))
            panel.fill_between(steps, low, high, color=line.look.colour, alpha=0.15, linewidth=0)
        every = max(1, len(steps) // 4)
        points = {**line.look.points, "markevery": (n % every, every)} if line.look.marker else {}
        if len(steps) == 1:
            points = {"marker": "o", "markersize": 3, "clip_on": False}
        panel.plot(steps, values, linewidth=line.width, label=line.label, **line.look.pen, **points)
    name_lines(panel, [Name(line.label, line.look, line.points[0][-1], line.points[1][-1]) for line in lines], sample)


# --- numbers ---


def _errors(run: Run, key: str) -> list[float]:
    """Standard errors of a metric; none at all where one is missing, as for an evaluation of a single prompt."""
    steps, errors = run.series(f"{key}_se")
    return errors if steps == run.series(key)[0] else []


def limits(series: Iterable[list[float]], include: tuple[float, ...]) -> tuple[float, float]:
    """Lowest and highest of all values and of `include`; never the same number twice."""
    values = [*include, *(value for values in series for value in values)]
    return min(values), max(values) if max(values) > min(values) else min(values) + 1


def _with_errors(run: Run, key: str) -> list[float]:
    """Values of a metric and the edges of its band."""
    values, errors = run.series(key)[1], _errors(run, key)
    return [*values, *(value + sign * se for value, se in zip(values, errors, strict=False) for sign in (-1, 1))]


def held_out_limits(series: Iterable[list[float]]) -> tuple[float, float]:
    """Of an objective's panel: 0 to 1, or 0 and its own lowest and highest where its values leave that or stay in a small part of it.

    An error that reaches a little beyond 0 or 1 leaves it at that.
    """
    low, high = limits(series, include=(0,))
    return (0, 1) if low > -SLIGHT and SMALL <= high < 1 + SLIGHT else (low, high)


def smooth(series: Series, half: int) -> Series:
    """Each value averaged with the `half` values on either side, fewer at the two ends."""
    steps, values = series
    return steps, [fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def mean_of(half: int) -> str:
    """What `smooth` with this `half` shows, in words."""
    return f"mean of {2 * half + 1} steps" if half else "each step"


def _mean(seeds: list[Series]) -> Series:
    """Mean over the seeds at the steps that all of them have reached; a seed without any value is passed over."""
    tables = [dict(zip(steps, values, strict=True)) for steps, values in seeds if steps]
    shared = sorted(set.intersection(*map(set, tables))) if tables else []
    return shared, [fmean(table[step] for table in tables) for step in shared]


def group_settings(runs: list[Run]) -> list[tuple[str, list[Run]]]:
    """Runs by setting, under a name as short as tells them apart: the script, the facts the heading leaves open, flags that differ."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps({k: v for k, v in run.args.items() if k not in BOOKKEEPING}, sort_keys=True), []).append(run)
    open_facts = [fact for fact in FACTS if fact not in ("script", "seed") and len({short_fact(run, fact) for run in runs}) > 1]
    named: dict[str, list[list[Run]]] = {}
    for group in groups.values():
        named.setdefault(" ".join([short_fact(group[0], "script"), *(short_fact(group[0], fact) for fact in open_facts)]), []).append(group)
    settings = []
    for name, alike in named.items():
        flags = sorted({flag for group in alike for flag in group[0].args} - BOOKKEEPING - set(FACTS))
        differ = [flag for flag in flags if len({json.dumps(group[0].args.get(flag)) for group in alike}) > 1]
        for group in alike:
            label = " ".join([name, *(f"{flag} {plain(group[0].args.get(flag))}" for flag in differ)])
            # Many flags make no name: the folder of the first run says more.
            settings.append((label if len(label) <= 32 else group[0].name, group))
    labels = [label for label, _ in settings]
    return [(label if labels.count(label) == 1 else str(group[0].path), group) for label, group in settings]


def plain(value) -> str:
    """A flag's value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _heading(runs: list[Run]) -> str:
    return " · ".join(f"seed {value}" if fact == "seed" else value for fact, value in ((f, _agreed(runs, f)) for f in FACTS) if value)


def _agreed(runs: list[Run], fact: str) -> str:
    values = {short_fact(run, fact) for run in runs}
    return values.pop() if len(values) == 1 else ""


def short_fact(run: Run, fact: str) -> str:
    """A flag's value as a caption shows it."""
    return Path(str(run.args.get(fact, ""))).name  # of a model's folder, its last part
