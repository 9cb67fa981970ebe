"""What must be true of any picture: no words over other words, none beyond its edge, no line that leaves its panel."""

from itertools import combinations
from weakref import WeakKeyDictionary

import numpy as np

LAID_OUT: WeakKeyDictionary = WeakKeyDictionary()


def words_of(figure) -> list:
    """Every text of a figure that is seen."""
    figure.draw_without_rendering()  # ticks and places as they will be
    found = list(figure.texts)
    for axes in figure.axes:
        found += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            found += [tick.label1 for tick in axis.get_major_ticks() if min(limits) <= tick.get_loc() <= max(limits)]
    return [text for text in found if text.get_text().strip() and text.get_visible()]


def boxes_of(figure) -> list:
    """Each text and where it stands, in pixels; laying a figure out takes its time, so that it is done once."""
    if figure not in LAID_OUT:
        LAID_OUT[figure] = [(text.get_text(), text.get_window_extent()) for text in words_of(figure)]
    return LAID_OUT[figure]


def overlapping(figure) -> list[tuple[str, str]]:
    """Pairs of words that cover each other by more than a pixel."""
    pairs = []
    for (one, a), (other, b) in combinations(boxes_of(figure), 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        if across > 1 and down > 1:
            pairs.append((one, other))
    return pairs


def cut_off(figure) -> list[str]:
    """Words that reach beyond the figure's edge."""
    edge = figure.bbox
    beyond = [
        (words, b.x0 < edge.x0 - 1 or b.x1 > edge.x1 + 1 or b.y0 < edge.y0 - 1 or b.y1 > edge.y1 + 1) for words, b in boxes_of(figure)
    ]
    return [words for words, out in beyond if out]


def leaving(figure) -> list[str]:
    """Named lines with a point beyond the limits of their panel."""
    found = []
    for axes in figure.axes:
        for line in axes.lines:
            if line.get_label().startswith("_") or line.get_transform() != axes.transData:
                continue
            for values, (low, high) in ((line.get_xdata(), axes.get_xlim()), (line.get_ydata(), sorted(axes.get_ylim()))):
                known = np.asarray(values, dtype=float)
                known = known[~np.isnan(known)]
                slack = 1e-9 * max(1, abs(low), abs(high))
                if len(known) and (known.min() < low - slack or known.max() > high + slack):
                    found.append(line.get_label())
    return found


def lines_of(axes) -> dict[str, object]:
    """The named lines of a panel."""
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
