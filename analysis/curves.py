"""Draw runs as the reader of a paper wants them: a panel per objective, below it what moved it, and each line named at its end."""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from analysis.runs import Run
from analysis.verdict import change_of
from common.errors import UserError

# Okabe and Ito's palette without its yellow, which vanishes on white paper. After the seventh line the colours repeat, dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#777777"
LABEL = 7.5  # points; the names at the line ends
WIDTH, HEIGHT = 2.05, 1.7  # inches; a panel without its labels
LEFT, TOP, BELOW = 0.5, 0.6, 0.55  # inches; beside the first column, above the first row, under each row
BANDS = 4  # more bands than this in a panel are a haze
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.5,
    "pdf.fonttype": 42,  # text stays text in a PDF; venues refuse matplotlib's default, Type 3
}
# Flags that leave what is learned alone: runs that agree in all others are repetitions of one setting.
BOOKKEEPING = {"seed", "out", "resume", "checkpoint_every", "keep_safe", "tensorboard", "wandb", "trust_remote_code", "micro_batch_tokens"}
FACTS = ("script", "estimator", "model", "dataset", "seed")  # stand in the heading where all runs agree

Series = tuple[list[int], list[float]]  # steps and values


@dataclass
class _Line:
    """One line of a panel. `se`: half width of its band, empty for none. `thin`: what it is the mean of, drawn behind it."""

    label: str
    colour: str
    dash: str
    points: Series
    se: list[float]
    thin: list[Series]


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
    length_at, weights_at, covariance_at = ((0, 1), None, (0, 2)) if alone else ((1, 0), (1, 1), (1, 2))

    held_out = limits((run.series(f"eval/{greedy}{name}")[1] for name in names for greedy in ("", "greedy/")), include=(0, 1))
    for k, name in enumerate(names):
        change = change_of(run, name) if len(_errors(run, f"eval/{name}")) > 1 else None
        words = f"{change.start:.2f} → {change.end:.2f} {change.status}" if change else ""
        panel = grid.panel(0, k, name, "" if k else "held-out reward", *held_out, subtitle=words)
        if change:
            panel.axhline(change.start, color=GREY, linewidth=0.5, linestyle=(0, (4, 4)))
        _draw_evaluation(panel, run, name, *_look(k))

    lengths = limits((run.series(f"eval/{greedy}length")[1] for greedy in ("", "greedy/")), include=(0,))
    _draw_evaluation(grid.panel(*length_at, "response length", "tokens", *lengths), run, "length", "#000000", "-")

    if weights_at:
        panel = grid.panel(*weights_at, "weights", "share of the sum", 0, 1)
        _draw_lines(panel, [_Line(name, *_look(k), run.series(f"weight_share/{name}"), [], []) for k, name in enumerate(names)])

    half = last // 25
    raw = [run.series(f"cov/{name}") for name in names]
    lines = [_Line(name, *_look(k), smooth(raw[k], half), [], [raw[k]]) for k, name in enumerate(names)]
    panel = grid.panel(*covariance_at, "covariance with the update", mean_of(half), *limits((v for _, v in raw), include=(0,)))
    panel.axhline(0, color=GREY, linewidth=0.5)
    _draw_lines(panel, lines)
    return grid.figure


def _draw_several(runs: list[Run]):
    settings = group_settings(runs)
    names = list(dict.fromkeys(name for run in runs for name in run.objectives))
    last = max(1, *(run.rows[-1]["step"] for run in runs))
    half = last // 25
    grid = _Grid([len(names) + 1] * 3, last, _heading(runs), [label for label, _ in settings])

    def lines(key: str, half: int = 0) -> list[_Line]:
        drawn = []
        for k, (label, repetitions) in enumerate(settings):
            seeds = [smooth(run.series(key), half) for run in repetitions]
            errors = _errors(repetitions[0], key) if len(settings) <= BANDS and len(repetitions) == 1 else []
            drawn.append(_Line(label, *_look(k), _mean(seeds), errors, seeds if len(seeds) > 1 else []))
        return drawn

    held_out = limits((run.series(f"eval/{name}")[1] for run in runs for name in names), include=(0, 1))
    covariance = limits((smooth(run.series(f"cov/{name}"), half)[1] for run in runs for name in names), include=(0,))
    for k, name in enumerate(names):
        first = k == 0
        _draw_lines(grid.panel(0, k, name, "held-out reward" if first else "", *held_out), lines(f"eval/{name}"))
        _draw_lines(grid.panel(1, k, f"weight of {name}", "share of the sum" if first else "", 0, 1), lines(f"weight_share/{name}"))
        panel = grid.panel(2, k, f"covariance of {name}", mean_of(half) if first else "", *covariance)
        panel.axhline(0, color=GREY, linewidth=0.5)
        _draw_lines(panel, lines(f"cov/{name}", half))
    length = limits((run.series("eval/length")[1] for run in runs), include=(0,))
    _draw_lines(grid.panel(0, len(names), "response length", "tokens", *length), lines("eval/length"))
    divergence = limits((smooth(run.series("loss/kl"), half)[1] for run in runs), include=(0,))
    panel = grid.panel(1, len(names), "KL from the start", mean_of(half), *divergence)
    panel.set_xlabel("step", labelpad=2)
    _draw_lines(panel, lines("loss/kl", half))
    grid.note(2, len(names), _reading(settings))
    return grid.figure


def _reading(settings: list[tuple[str, list[Run]]]) -> list[str]:
    counts = [len(repetitions) for _, repetitions in settings]
    lines = [f"{label}: {n} run{'s' * (n > 1)}" for (label, _), n in zip(settings, counts, strict=True)]
    if max(counts) > 1:
        lines += ["", "thick: mean of the runs", "thin: each run"]
    if min(counts) == 1 and len(counts) <= BANDS:
        lines += ["", "band: ± 1 standard error"]
    return lines


def _draw_evaluation(panel, run: Run, name: str, colour: str, dash: str) -> None:
    sampled = _Line("sampled", colour, dash, run.series(f"eval/{name}"), _errors(run, f"eval/{name}"), [])
    greedy = _Line("greedy", colour, ":", run.series(f"eval/greedy/{name}"), [], [])
    _draw_lines(panel, [sampled, greedy])


# --- lines, and their names at their ends ---


class _Grid:
    """A figure whose rows hold `counts` panels each, all rows equally wide; `labels` are the words that must fit beside a panel."""

    def __init__(self, counts: list[int], last_step: int, heading: str, labels: list[str]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.font_manager import FontProperties
        from matplotlib.textpath import text_to_path

        font = FontProperties(size=LABEL)
        widest = max(text_to_path.get_text_width_height_descent(label, font, False)[0] for label in labels) / 72
        self.counts, self.last_step = counts, last_step
        self.between = widest + (0.75 if len(labels) <= len(COLOURS) else 1.0)  # the names, their leaders, the next panel's y axis
        self.across = max(counts) * (WIDTH + self.between)
        self.size = (LEFT + self.across - 0.5, TOP + len(counts) * (HEIGHT + BELOW))
        self.figure = Figure(figsize=self.size)
        FigureCanvasAgg(self.figure)
        self.figure.text(0.1 / self.size[0], 1 - 0.1 / self.size[1], heading, va="top", color=GREY, fontsize=LABEL)

    def panel(self, row: int, column: int, title: str, unit: str, low: float, high: float, subtitle: str = ""):
        axes = self.figure.add_axes(self._box(row, column))
        margin = 0.03 * (high - low)
        axes.set(ylabel=unit, xlim=(0, self.last_step), ylim=(low - margin, high + margin))
        axes.set_title(title, pad=15 if subtitle else 5)
        axes.text(0, 1 + 4 / (72 * HEIGHT), subtitle, transform=axes.transAxes, color=GREY, fontsize=LABEL)
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.locator_params(axis="y", nbins=5)
        axes.tick_params(length=2.5, pad=2)
        if row == len(self.counts) - 1:
            axes.set_xlabel("step", labelpad=2)
        return axes

    def note(self, row: int, column: int, lines: list[str]) -> None:
        x, y, _, height = self._box(row, column)
        self.figure.text(x, y + height, "\n".join(lines), va="top", color=GREY, fontsize=LABEL, linespacing=1.4)

    def _box(self, row: int, column: int) -> tuple[float, float, float, float]:
        width, height = self.size
        step = self.across / self.counts[row]
        y = height - TOP - row * (HEIGHT + BELOW) - HEIGHT
        return (LEFT + column * step) / width, y / height, (step - self.between) / width, HEIGHT / height


def _draw_lines(panel, lines: list[_Line]) -> None:
    lines = [line for line in lines if line.points[0]]
    if not lines:
        panel.text(0.5, 0.5, "nothing logged", transform=panel.transAxes, ha="center", va="center", color=GREY, fontsize=LABEL)
    for line in lines:
        steps, values = line.points
        for thin in line.thin:
            panel.plot(*thin, color=line.colour, linestyle=line.dash, linewidth=0.6, alpha=0.35, zorder=1.5)  # under every mean
        if line.se:
            low, high = ([value + sign * se for value, se in zip(values, line.se, strict=True)] for sign in (-1, 1))
            panel.fill_between(steps, low, high, color=line.colour, alpha=0.15, linewidth=0)
        marker = {"marker": "o", "markersize": 3, "clip_on": False} if len(steps) == 1 else {}
        panel.plot(steps, values, color=line.colour, linestyle=line.dash, **marker)
    for step in {line.points[0][-1] for line in lines}:  # a run in progress is named where it stands
        # where colours repeat, a piece of the line itself stands before its name
        _name_ends(panel, [line for line in lines if line.points[0][-1] == step], crowded=len(lines) > len(COLOURS))


def _name_ends(panel, lines: list[_Line], crowded: bool) -> None:
    """Names to the right of lines that end at the same step, moved apart where they would overlap and then led to by a thin line."""
    from matplotlib.patheffects import withStroke

    low, high = panel.get_ylim()
    x = lines[0].points[0][-1] / panel.get_xlim()[1]
    ends = [(line.points[1][-1] - low) / (high - low) for line in lines]
    places = spread(ends, gap=1.15 * LABEL / (72 * HEIGHT))
    point = 1 / (72 * panel.figure.get_figwidth() * panel.get_position().width)  # of the panel's width
    start, stop = (x + 16 * point, x + 28 * point) if crowded else (x + 4 * point, x + 4 * point)
    for line, y, place in zip(lines, ends, places, strict=True):
        pen = {"color": line.colour, "clip_on": False, "transform": panel.transAxes}
        if crowded or abs(place - y) > 0.01:
            panel.plot([x, start], [y, place], linewidth=0.5, **pen)
        if crowded:
            panel.plot([start, stop], [place, place], linestyle=line.dash, **pen)
        words = {"color": line.colour, "fontsize": LABEL, "va": "center_baseline", "transform": panel.transAxes}
        if x < 1:  # among other lines
            words["path_effects"] = [withStroke(linewidth=1.5, foreground="white")]
        panel.text(stop + 3 * point, place, line.label, **words)


def spread(wanted: list[float], gap: float) -> list[float]:
    """Places in 0..1, in the order of `wanted` and `gap` apart, as near to `wanted` as that allows (least squares)."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    # Less rank * gap, "gap apart" means "not decreasing": pool adjacent violators into blocks of [mean, count].
    blocks: list[list[float]] = []
    for rank, i in enumerate(order):
        blocks.append([wanted[i] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            before, n = blocks[-1]
            blocks[-1] = [(before * n + mean * count) / (n + count), n + count]
    bases = [mean for mean, count in blocks for _ in range(int(count))]
    room = 1 - gap * (len(wanted) - 1)
    places = dict(zip(order, (max(0.0, min(base, room)) + rank * gap for rank, base in enumerate(bases)), strict=True))
    return [places[i] for i in range(len(wanted))]


def _look(k: int) -> tuple[str, str]:
    return COLOURS[k % len(COLOURS)], "-" if k < len(COLOURS) else "--"


# --- numbers ---


def _errors(run: Run, key: str) -> list[float]:
    """Standard errors of a metric; none at all where one is missing, as for an evaluation of a single prompt."""
    steps, errors = run.series(f"{key}_se")
    return errors if steps == run.series(key)[0] else []


def limits(series: Iterable[list[float]], include: tuple[float, ...]) -> tuple[float, float]:
    """Lowest and highest of all values and of `include`; never the same number twice."""
    values = [*include, *(value for values in series for value in values)]
    return min(values), max(values) if max(values) > min(values) else min(values) + 1


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
