"""How pictures and pages look: one palette, one rule for lines, one way to name them. The rule, for all of them:

- An objective has a colour and a dash by its place in the run (`objective_look`).
- An algorithm has a colour, a dash and a marker by its name (`algorithm_look`), in every picture the same; linear, the baseline, is grey.
  Settings of one algorithm share its colour and differ in dash and marker (`setting_looks`).
- Grey or black without a name of its own is neither: a start, a zero, a prediction. Dotted is greedy decoding.

So nothing is told by colour alone, and a picture is either of objectives or of algorithms: where it has both, each is named. The first
three objectives are Okabe and Ito's (without their yellow, which vanishes on white paper); the algorithms' six colours were chosen so
that every pair, and grey, stays apart under simulated protanopia, deuteranopia and tritanopia (Machado et al., 2009).
"""

import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # of objectives
GREY = "#777777"  # of what is neither an objective nor an algorithm
LABEL = 7.5  # points; names and keys
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
SIGNS = {"improved": "▲", "mixed": "◆", "degraded": "▼", "unchanged": "="}  # of an objective's verdict, so that it is not told by colour

Dash = str | tuple[int, tuple[float, ...]]
SOLID: Dash = "-"
DOTTED: Dash = (0, (1, 1.2))
BROKEN: Dash = (0, (4, 1.6))
DASHES: tuple[Dash, ...] = (SOLID, BROKEN, (0, (6, 1.5, 1, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1, 1.5, 1, 1.5)))
START = {"color": GREY, "linewidth": 0.6, "linestyle": (0, (5, 4))}  # the thin line at an objective's first value


class Look(NamedTuple):
    """Of a line: `dash` as matplotlib takes it, `marker` "" for none, and whether the marker is filled."""

    colour: str
    dash: Dash = SOLID
    marker: str = ""
    filled: bool = True

    @property
    def pen(self) -> dict:
        """Arguments of matplotlib's plot for the line alone."""
        return {"color": self.colour, "linestyle": self.dash}

    @property
    def points(self) -> dict:
        """Arguments of matplotlib's plot for its markers; nothing where it has none."""
        if not self.marker:
            return {}
        face = self.colour if self.filled else "white"
        return {"marker": self.marker, "markersize": 3.6, "markerfacecolor": face, "markeredgewidth": 0.8, "markeredgecolor": self.colour}

    @property
    def word(self) -> str:
        """The colour for its name, dark enough to read."""
        return "#" + "".join(f"{round(int(self.colour[i : i + 2], 16) * 0.8):02x}" for i in (1, 3, 5))


NEUTRAL = Look(GREY)
BASELINE = "#666666"
PALETTE = {
    "black": "#000000",
    "purple": "#AA4499",
    "indigo": "#332288",
    "amber": "#B58900",
    "green": "#117733",
    "violet": "#7A6FF0",
}
MARKERS = dict(zip(PALETTE, "oDs^vP", strict=True))
# Most often compared first: these are solid, the next dashed, the last dash-dotted. Of the six that the paper does not have and that
# stand together in a picture, gated, rvpo and the last row, no two share a colour.
BY_NAME = (
    ("ctwa", "ratchet", "pama", "mgda", "tchebycheff", "lagrangian"),
    ("gated", "rvpo", "dynamic_weighting", "nash_mtl", "famo", "gradnorm"),
    ("", "", "pcgrad", "gdpo", "sa_mrpo", "hypervolume"),
)


def objective_look(k: int) -> Look:
    """Of the k-th objective of a run."""
    return Look(COLOURS[k % len(COLOURS)], DASHES[k % len(DASHES)])


def algorithm_look(script: str) -> Look:
    """Of an algorithm, by its script's name; one that is not ours gets a colour from its name, which another such name may share."""
    if script == "linear":
        return Look(BASELINE, SOLID, ".")
    for dash, names in enumerate(BY_NAME):
        if script in names:
            hue = list(PALETTE)[names.index(script)]
            return Look(PALETTE[hue], DASHES[dash], MARKERS[hue], dash == 0)
    hue = list(PALETTE)[zlib.crc32(script.encode()) % len(PALETTE)]
    return Look(PALETTE[hue], DASHES[3], "h", False)


def setting_looks(scripts: Sequence[str]) -> list[Look]:
    """A look for each setting of a picture, by its algorithm: the algorithm's own for the first of them, its colour with another dash and
    marker for others; no two settings have both dash and marker in common."""
    looks: list[Look] = []
    for script in scripts:
        own = algorithm_look(script)
        others = (Look(own.colour, dash, marker, filled) for marker in "*pd<>HoDs^vPX" for dash in DASHES for filled in (True, False))
        looks.append(next((look for look in (own, *others) if look[1:] not in [other[1:] for other in looks]), own))
    return looks


# --- names at the ends of lines ---


class Name(NamedTuple):
    """A line's name and where the line ends, in the panel's data coordinates."""

    words: str
    look: Look
    x: float
    y: float


def name_lines(panel, names: Sequence[Name], sample: bool = False) -> None:
    """Write names to the right of a panel, at the heights of their lines' ends, apart where they would overlap and then led to by a thin
    line; a line that ends inside the panel has a dot there and is led to, so that no name covers another line.

    sample: a piece of the line with its marker before each name. Limits and scales of the panel must be set before.
    """
    if not names:
        return
    figure, box = panel.figure, panel.get_position()
    point_x, point_y = 1 / (72 * figure.get_figwidth() * box.width), 1 / (72 * figure.get_figheight() * box.height)
    ends = [panel.transLimits.transform(panel.transScale.transform((name.x, name.y))) for name in names]
    ends = [(min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)) for x, y in ends]
    places = spread([y for _, y in ends], gap=1.2 * LABEL * point_y)
    led = sample or any(x < 0.99 or abs(y - place) > 2 * point_y for (x, y), place in zip(ends, places, strict=True))
    start = 1 + (12 if led else 3) * point_x
    text = start + ((18 if sample else 0) + 3) * point_x
    for name, (x, y), place in zip(names, ends, places, strict=True):
        pen = {"color": name.look.colour, "clip_on": False, "transform": panel.transAxes}
        if led:
            inside = x < 0.99
            panel.plot([x, start], [y, place], linewidth=0.5, linestyle=(0, (1, 2)) if inside else "-", label="_leader", **pen)
            if inside:
                panel.plot([x], [y], "o", markersize=2.5, label="_end", **pen)
        if sample:
            points = name.look.points | {"markevery": [1]} if name.look.marker else {}
            stretch = [start, start + 9 * point_x, start + 18 * point_x]
            panel.plot(stretch, [place] * 3, linestyle=name.look.dash, linewidth=1.3, label="_sample", **points, **pen)
        words = {"color": name.look.word, "fontsize": LABEL, "va": "center_baseline", "transform": panel.transAxes}
        panel.text(text, place, name.words, **words)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
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


# --- the key: what a dash, a band or a marker means ---


class Key(NamedTuple):
    """A sample and what it means."""

    words: str
    look: Look = NEUTRAL
    kind: Literal["line", "thin", "start", "band", "bar", "point", "stroke"] = "line"


SAMPLE, BETWEEN, ROW = 0.24, 0.18, 0.16  # inches: a sample's length, from one key to the next, from row to row


def key_rows(keys: Sequence[Key], room: float) -> list[list[Key]]:
    """The keys in rows no wider than `room` inches."""
    rows: list[list[Key]] = []
    used = room
    for key in keys:
        wide = SAMPLE + 0.05 + inches(key.words)
        if not rows or used + BETWEEN + wide > room:
            rows.append([])
            used = -BETWEEN
        rows[-1].append(key)
        used += BETWEEN + wide
    return rows


def draw_keys(figure, x: float, y: float, keys: Sequence[Key]) -> None:
    """Draw samples with their words in rows from (x, y) inches, of which the figure's left and top are 0, as far as it is wide."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    width, height = figure.get_size_inches()
    for number, row in enumerate(key_rows(keys, width - x - 0.1)):
        left, at = x, 1 - (y + number * ROW) / height
        for key in row:
            ends, colour = [left / width, (left + SAMPLE) / width], key.look.colour
            if key.kind in ("band", "bar"):
                tall = (0.09 if key.kind == "band" else 0.05) / height
                figure.add_artist(Rectangle((ends[0], at - tall / 2), SAMPLE / width, tall, color=colour, alpha=0.3, linewidth=0))
            if key.kind in ("band", "line"):
                figure.add_artist(Line2D(ends, [at, at], linewidth=1.4, **key.look.pen))
            elif key.kind == "thin":
                figure.add_artist(Line2D(ends, [at, at], linewidth=0.6, alpha=0.7, **key.look.pen))
            elif key.kind == "start":
                figure.add_artist(Line2D(ends, [at, at], **START))
            if key.kind == "stroke":
                figure.add_artist(Line2D([sum(ends) / 2], [at], marker="|", color=colour, markersize=6, markeredgewidth=0.8))
            elif key.look.marker and key.kind in ("line", "point"):
                figure.add_artist(Line2D([sum(ends) / 2], [at], linestyle="", **key.look.points))
            figure.text((left + SAMPLE + 0.05) / width, at, key.words, va="center_baseline", color="#444444", fontsize=LABEL)
            left += SAMPLE + 0.05 + inches(key.words) + BETWEEN


def inches(words: str, size: float = LABEL, weight: str = "normal") -> float:
    """How wide a line of text is."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(words, FontProperties(size=size, weight=weight), False)[0] / 72
