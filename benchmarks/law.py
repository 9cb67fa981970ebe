"""How well does the covariance law predict? Every interval between two evaluations of every run, predicted against measured.

python -m benchmarks.law [--runs results/study ...] [--out docs/figures]

Prints a table and draws law.png and law.pdf: by the score, by the move, and the error over the size of a step. Give it runs of several
--lr to see where first order ends (docs/interference.md has the commands).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import tyro

from analysis.bench import load_finished
from analysis.curves import COLOURS, GREY, LABEL, STYLE, write_figure
from analysis.explain import Agreement, Interval, agreement, by_length, intervals
from analysis.runs import Run, load_statistics
from common.errors import plain_errors, require

MARKS = "osD^vP*"


@dataclass
class Args:
    runs: tuple[str, ...] = ("results/study",)
    """run folders, or results folders of bench"""
    out: str = "docs/figures"
    """folder of the picture"""


@dataclass(frozen=True)
class Setting:
    """All runs of one algorithm and learning rate (`lr`), and their intervals by objective."""

    name: str
    lr: float
    runs: list[Run]
    intervals: dict[str, list[Interval]]

    @property
    def pooled(self) -> list[Interval]:
        return [interval for own in self.intervals.values() for interval in own if interval.move is not None]

    @property
    def nats(self) -> float:
        """Mean size of a training step: sd within prompts of the change of a completion's log-probability."""
        return fmean(value for run in self.runs for value in run.series("law/nats")[1])


def settings(runs: Sequence[Run]) -> list[Setting]:
    """Runs by algorithm and learning rate, in the order of these."""
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.args["script"], run.args["lr"]), []).append(run)
    found = []
    for (name, lr), group in sorted(groups.items()):
        names = list(dict.fromkeys(name for run in group for name in run.objectives))
        own = {name: [i for run in group if name in run.objectives for i in intervals(run, name)] for name in names}
        found.append(Setting(name, lr, group, own))
    return found


def unexplained(found: Sequence[Interval], prediction: str) -> float:
    """Root mean square of measured - predicted over that of measured: 0 is a perfect prediction, 1 is as good as predicting no change."""
    return _over_changes(sum((i.measured - getattr(i, prediction)) ** 2 for i in found), found)


def noise(found: Sequence[Interval]) -> float:
    """What `unexplained` would be of a perfect prediction, from the standard errors alone; an upper estimate, because evaluations share
    their prompts and seeds."""
    return _over_changes(sum(i.se**2 for i in found), found)


def _over_changes(squares: float, found: Sequence[Interval]) -> float:
    changes = sum(i.measured**2 for i in found)
    return (squares / changes) ** 0.5 if changes else float("inf" if squares else 0)


def table(found: Sequence[Setting]) -> str:
    """A row per setting: signs, correlation and slope of either prediction over all objectives, and the accuracy objective's own signs."""
    heads = ["algorithm", "lr", "runs", "nats a step", "by the move: sign", "corr", "slope", "error", "by the score: sign", "corr", "error"]
    rows = [heads, ["---"] * len(heads)]
    for setting in found:
        move, score = (agreement(setting.pooled, key) for key in ("move", "score"))
        rows.append(
            [
                f"`{setting.name}`",
                f"{setting.lr:g}",
                str(len(setting.runs)),
                f"{setting.nats:.2f}",
                f"{move.right}/{move.judged}",
                _number(move.correlation),
                _number(move.slope),
                f"{unexplained(setting.pooled, 'move'):.2f}",
                f"{score.right}/{score.judged}",
                _number(score.correlation),
                f"{unexplained(setting.pooled, 'score'):.2f}",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def by_objective(found: Sequence[Setting]) -> str:
    """The same two predictions for each objective over all settings."""
    lines = []
    for name in found[0].intervals:
        own = [i for setting in found for i in setting.intervals.get(name, []) if i.move is not None]
        for key in ("move", "score"):
            a: Agreement = agreement(own, key)
            error = unexplained(own, key)
            words = f"sign {a.right}/{a.judged}, correlation {_number(a.correlation)}, error {error:.2f}"
            lines.append(f"{name} (noise {noise(own):.2f}), by the {key}: {words}")
    return "\n".join(lines)


def first_interval(found: Sequence[Setting]) -> str:
    """The first objective up to the first evaluation, mean over a setting's runs: its covariance with the score in the parts of
    analysis.explain.by_length, and the changes."""
    lines = []
    for setting in found:
        name = setting.runs[0].objectives[0]
        first = [own[0] for run in setting.runs if (own := intervals(run, name))]
        parts = [by_length(run, name, i.start, i.end) for run, i in zip(setting.runs, first, strict=True)]
        between, within = (fmean(part) for part in zip(*parts, strict=True))
        moved = ", ".join(f"{key} {fmean(getattr(i, key) for i in first if i.move is not None):+.2f}" for key in ("move", "measured"))
        span = f"steps {first[0].start + 1} to {first[0].end}"
        lines.append(
            f"{setting.name} lr {setting.lr:g}, {name}, {span}: covariance {between + within:+.3f} = "
            f"{between:+.3f} between lengths {within:+.3f} within; {moved}"
        )
        pairs = [gram for run, i in zip(setting.runs, first, strict=True) for gram in _grams(run, i.start, i.end)]
        if pairs:
            cosine = fmean(gram[0][1] / (gram[0][0] * gram[1][1]) ** 0.5 for gram in pairs)
            lines.append(f"  cosine of the first two objectives' gradients on one batch {cosine:+.2f}: noise that they share is in it")
    return "\n".join(lines)


def _grams(run: Run, start: int, end: int) -> list[list[list[float]]]:
    """Gram matrices of a run's training steps start + 1 ... end in which the first two objectives have a gradient."""
    lines = [line for line in load_statistics(run) if start < line["step"] <= end]
    return [gram for line in lines for gram in line.get("gram", []) if gram[0][0] > 0 and gram[1][1] > 0]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def draw(found: Sequence[Setting], out: Path) -> None:
    """Three panels into `out`.png and `out`.pdf: measured over predicted, by the score and by the move, a colour per objective; the error
    of both over the size of a step, a mark per learning rate."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(9.6, 3.3))
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 3)
        figure.subplots_adjust(left=0.06, right=0.985, top=0.86, bottom=0.15, wspace=0.3)
        usual = [setting for setting in found if setting.lr == min(s.lr for s in found)]
        for panel, key in zip(panels, ("score", "move"), strict=False):
            for k, name in enumerate(usual[0].intervals):
                own = [i for setting in usual for i in setting.intervals.get(name, []) if i.move is not None]
                x, y = [getattr(i, key) for i in own], [i.measured for i in own]
                panel.plot(x, y, MARKS[k % len(MARKS)], color=COLOURS[k % len(COLOURS)], markersize=2.2, markeredgewidth=0, alpha=0.6)
                a = agreement(own, key)
                words = f"{name}: sign {a.right}/{a.judged}, r {_number(a.correlation)}"
                panel.text(0.03, 0.97 - 0.07 * k, words, color=COLOURS[k], transform=panel.transAxes, va="top", fontsize=LABEL)
            panel.plot([-1, 1], [-1, 1], color=GREY, linewidth=0.5)
            panel.axhline(0, color=GREY, linewidth=0.5)
            panel.axvline(0, color=GREY, linewidth=0.5)
            panel.set(xlim=(-0.55, 0.75), ylim=(-0.55, 0.75), xlabel="predicted change between evaluations")
            panel.set_title(f"by the {key}", pad=5)
        panels[0].set_ylabel("measured on held-out prompts")
        last, rates = panels[2], sorted({setting.lr for setting in found})
        for key, colour in (("score", COLOURS[0]), ("move", COLOURS[1])):
            for setting in found:
                mark = MARKS[rates.index(setting.lr) % len(MARKS)]
                last.plot(setting.nats, unexplained(setting.pooled, key), mark, color=colour, markersize=4, markeredgewidth=0)
            last.text(
                0.03, 0.97 - 0.07 * (key == "move"), f"by the {key}", color=colour, transform=last.transAxes, va="top", fontsize=LABEL
            )
        marks = "   ".join(f"{'●■◆▲▼✚★'[i % 7]} lr {rate:g}" for i, rate in enumerate(rates))
        last.set_title(marks, pad=5, fontweight="normal", fontsize=LABEL, fontfamily="DejaVu Sans")
        last.axhline(1, color=GREY, linewidth=0.5, linestyle=(0, (4, 4)))
        words = {"transform": last.get_yaxis_transform(), "color": GREY, "fontsize": 6.5, "va": "bottom"}
        last.text(0.02, 1.02, "as good as predicting nothing", **words)
        last.set(xlabel="nats a step, mean of an algorithm's runs", ylabel="unexplained part of the change", xlim=(0, None), ylim=(0, None))
        count = sum(len(setting.runs) for setting in usual)
        figure.text(
            0.005, 0.99, f"{count} runs at lr {usual[0].lr:g}; a mark per objective and interval", va="top", color=GREY, fontsize=LABEL
        )
        for kind in ("png", "pdf"):
            write_figure(figure, out.with_suffix(f".{kind}"))


def main(args: Args) -> None:
    runs, left_out = load_finished(args.runs)
    require(Path(args.out).is_dir(), f"--out {args.out}: there is no such folder; make it first")
    found = settings(runs)
    print("\n".join([table(found), "", by_objective(found), "", first_interval(found), *(f"left out: {line}" for line in left_out)]))
    draw(found, Path(args.out) / "law")
    print(f"wrote {Path(args.out) / 'law'}.png and .pdf")


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__.splitlines()[0]))
