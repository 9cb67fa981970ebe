"""What must be true of any picture: no words over other words, none beyond its edge."""

from functools import cache
from itertools import combinations


@cache  # laying a figure out takes its time
def boxes_of(figure) -> list:
    """Every text of a figure that is seen, and where it stands, in pixels."""
    figure.draw_without_rendering()  # ticks and places as they will be
    found = [*figure.texts]
    for legend in figure.legends:
        found += [legend.get_title(), *legend.get_texts()]
    for axes in figure.axes:
        found += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    seen = [text for text in found if text.get_text().strip() and text.get_visible()]
    return [(text.get_text(), text.get_window_extent()) for text in seen]


def overlapping(figure) -> list[tuple[str, str]]:
    """Pairs of words that cover each other by more than a pixel."""
    pairs = combinations(boxes_of(figure), 2)
    return [(one, other) for (one, a), (other, b) in pairs if a.padded(-1).overlaps(b)]


def cut_off(figure) -> list[str]:
    """Words that reach beyond the figure's edge."""
    edge = figure.bbox.padded(1)
    return [
        words for words, b in boxes_of(figure) if not all(map(edge.contains, *b.get_points().T))
    ]


def lines_of(axes) -> dict[str, object]:
    """The named lines of a panel."""
    named = {line.get_label(): line for line in axes.lines}
    return {name: line for name, line in named.items() if not name.startswith("_")}
