"""How well does the covariance law predict? Every interval between two evaluations of every run, predicted against measured.

python -m benchmarks.law [--runs results/study ...] [--out docs/figures] [--write]

Prints tables and draws law.png and law.pdf: by the score, by the move, and the error over the size of a step. Give it runs of several
--lr to see where first order ends (docs/interference.md has the commands); what is not a table by --lr is of the runs of the lowest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import tyro

from analysis.curves import COLOURS, GREY, LABEL, STYLE, write_figure
from analysis.leaderboard import load_finished
from analysis.runs import Run, load_statistics
from benchmarks.differing_lines import insert
from commands.explain import Interval, agreement, by_length, intervals
from common.errors import plain_errors, require

MARKS = "osD^vP*"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "interference.md"


@dataclass
class Args:
    runs: tuple[str, ...] = ("results/study",)
    """run folders, or results folders of bench"""
    out: str = "docs/figures"
    """folder of the picture"""
    write: bool = False
    """put the tables into docs/interference.md"""


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


JUDGED = ["by the move: sign", "corr", "slope", "error", "by the score: sign", "corr", "error"]


def _judged(found: Sequence[Interval]) -> list[str]:
    """The cells under JUDGED: signs, correlation, slope and error of the two predictions of some intervals."""
    move, score = agreement(found, "move"), agreement(found, "score")
    cells = [f"{move.right}/{move.judged}", _number(move.correlation), _number(move.slope), f"{unexplained(found, 'move'):.2f}"]
    return [*cells, f"{score.right}/{score.judged}", _number(score.correlation), f"{unexplained(found, 'score'):.2f}"]


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


def table(found: Sequence[Setting]) -> str:
    """A row per setting, over all objectives."""
    rows = [[f"`{s.name}`", f"{s.lr:g}", str(len(s.runs)), f"{s.nats:.2f}", *_judged(s.pooled)] for s in found]
    return _markdown(["algorithm", "lr", "runs", "nats a step", *JUDGED], rows)


def by_objective(found: Sequence[Setting]) -> str:
    """A row per objective, over all settings."""
    rows = []
    for name in found[0].intervals:
        own = [i for setting in found for i in setting.intervals.get(name, []) if i.move is not None]
        rows.append([name, f"{noise(own):.2f}", *_judged(own)])
    return _markdown(["objective", "noise", *JUDGED], rows)


def first_interval(found: Sequence[Setting]) -> str:
    """The first objective up to the first evaluation, mean over a setting's runs: its covariance with the score in the parts of
    commands.explain.by_length, the changes, and the cosine of its gradient with the second objective's where runs took these apart."""
    rows = []
    for setting in found:
        name = setting.runs[0].objectives[0]
        first = [intervals(run, name)[0] for run in setting.runs]
        parts = [by_length(run, name, i.start, i.end) for run, i in zip(setting.runs, first, strict=True)]
        between, within = (fmean(part) for part in zip(*parts, strict=True))
        moved = fmean(i.move for i in first if i.move is not None), fmean(i.measured for i in first)
        pairs = [gram for run, i in zip(setting.runs, first, strict=True) for gram in _grams(run, i.start, i.end)]
        cosine = fmean(gram[0][1] / (gram[0][0] * gram[1][1]) ** 0.5 for gram in pairs) if pairs else None
        numbers = [f"{value:+.2f}" for value in (between + within, between, within, *moved)]
        rows.append([f"`{setting.name}`", *numbers, "" if cosine is None else f"{cosine:+.2f}"])
    return _markdown(["algorithm", "covariance", "between", "within", "by the move", "measured", "cosine on one batch"], rows)


def _grams(run: Run, start: int, end: int) -> list[list[list[float]]]:
    """Gram matrices of a run's training steps start + 1 ... end in which the first two objectives have a gradient."""
    lines = [line for line in load_statistics(run) if start < line["step"] <= end]
    return [gram for line in lines for gram in line.get("gram", []) if len(gram) > 1 and gram[0][0] > 0 and gram[1][1] > 0]


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
                panel.text(
                    0.03, 0.97 - 0.07 * k, words, color=COLOURS[k % len(COLOURS)], transform=panel.transAxes, va="top", fontsize=LABEL
                )
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
    """Print the tables, draw the picture. Raises UserError for a missing folder."""
    runs, left_out = load_finished(args.runs)
    moving = [run for run in runs if run.series("law/nats")[1]]
    left_out += [f"{run.path}: a step of it is one mini-batch, which tells no move" for run in runs if run not in moving]
    require(bool(moving), f"--runs: in none of them is a step's move known ({left_out[0] if left_out else 'none given'})")
    require(Path(args.out).is_dir(), f"--out {args.out}: there is no such folder; make it first")
    found = settings(moving)
    usual = [setting for setting in found if setting.lr == min(s.lr for s in found)]
    tables = {"law": table(found), "objectives": by_objective(usual), "lengths": first_interval(usual)}
    print("\n\n".join([*tables.values(), *(f"left out: {line}" for line in left_out)]))
    if args.write:
        for name, text in tables.items():
            insert(PAGE, text, (f"<!-- {name}: begin -->", f"<!-- {name}: end -->"))
    draw(found, Path(args.out) / "law")
    print(f"wrote {Path(args.out) / 'law'}.png and .pdf{f', {PAGE.name}' if args.write else ''}")


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__.splitlines()[0]))
