"""How well does the covariance law predict? Every interval between two evaluations of every run, predicted against measured.

python -m study.law [--runs results/study ...] [--out docs/figures] [--write]

Prints tables and draws law.png and law.pdf: by the score, by the move, and the error over the size of a step. Give it runs of several
--lr to see where first order ends (docs/interference.md has the commands); what is not a table by --lr is of the runs of the lowest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import tyro

from tools.curves import write_figure
from tools.leaderboard import load_finished
from tools.looks import GREY, LABEL, START, STYLE, Key, Look, draw_keys, objective_look
from tools.runs import Run, load_statistics
from study.differing_lines import insert
from tools.explain import Interval, agreement, by_length, intervals
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
    tools.explain.by_length, the changes, and the cosine of its gradient with the second objective's where runs took these apart."""
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
    """Three panels into `out`.png and `out`.pdf: measured over predicted, by the score and by the move, a colour and a mark per
    objective; the error of both over the size of a step, a mark per learning rate, the score's hollow. Words stand beside the panels."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    usual = [setting for setting in found if setting.lr == min(s.lr for s in found)]
    names, rates = list(usual[0].intervals), sorted({setting.lr for setting in found})
    looks = [objective_look(k)._replace(marker=MARKS[k % len(MARKS)]) for k in range(len(names))]
    pooled = {name: [i for setting in usual for i in setting.intervals.get(name, []) if i.move is not None] for name in names}
    changes = [v for own in pooled.values() for i in own for v in (i.score, i.move, i.measured)]
    low, high = min(changes) - 0.03, max(changes) + 0.03
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        above = 0.65 + 0.14 * max(len(names), 3)  # inches: two rows of heading, and a line per objective over its panel
        width, height = 9.6, above + 3.1
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 3)
        figure.subplots_adjust(left=0.06, right=0.985, top=1 - above / height, bottom=0.45 / height, wspace=0.3)
        count = sum(len(setting.runs) for setting in usual)
        words = f"{count} runs at lr {usual[0].lr:g}; a mark per objective and interval between two evaluations. "
        words += "Sign: right, of those beyond noise. r: correlation."
        figure.text(0.1 / width, 1 - 0.1 / height, words, va="top", color="#444444", fontsize=LABEL)
        for panel, key in zip(panels, ("score", "move"), strict=False):
            for k, (name, look) in enumerate(zip(names, looks, strict=True)):
                own = pooled[name]
                points = {"markersize": 2.4, "markeredgewidth": 0, "alpha": 0.55, "linestyle": "", "label": name}
                panel.plot([getattr(i, key) for i in own], [i.measured for i in own], color=look.colour, marker=look.marker, **points)
                a = agreement(own, key)
                words = f"{name}: sign {a.right}/{a.judged}, r {_number(a.correlation)}"
                x, y = panel.get_position().x0 * width, above - 0.14 * (len(names) - k) + 0.03
                draw_keys(figure, x - 0.08, y, [Key(words, look, "point")])
            panel.plot([low, high], [low, high], color=GREY, linewidth=0.5)
            panel.axhline(0, color=GREY, linewidth=0.5)
            panel.axvline(0, color=GREY, linewidth=0.5)
            panel.set(xlim=(low, high), ylim=(low, high), xlabel="predicted change between evaluations")
            panel.set_title(f"predicted by the {key}", pad=4 + 72 * 0.14 * len(names))
        panels[0].set_ylabel("measured change on held-out prompts")
        last = panels[2]
        for key, colour, face in (("move", "#000000", "#000000"), ("score", GREY, "white")):
            for setting in found:
                mark, error = MARKS[rates.index(setting.lr) % len(MARKS)], unexplained(setting.pooled, key)
                points = {"markersize": 4.5, "markeredgewidth": 0.8, "linestyle": "", "clip_on": False}
                last.plot(setting.nats, error, marker=mark, color=colour, markerfacecolor=face, **points)
        x = last.get_position().x0 * width - 0.08
        kinds = [Key("by the move", Look("#000000", "-", "o"), "point"), Key("by the score", Look(GREY, "-", "o", False), "point")]
        draw_keys(figure, x, above - 0.39, kinds)
        draw_keys(
            figure, x, above - 0.25, [Key(f"lr {rate:g}", Look(GREY, "-", MARKS[n % len(MARKS)]), "point") for n, rate in enumerate(rates)]
        )
        draw_keys(figure, x, above - 0.11, [Key("as good as predicting no change", kind="start")])
        last.set_title("what is left unexplained", pad=4 + 72 * 0.14 * 3)
        last.axhline(1, **START)
        last.set(
            xlabel="size of a step: nats, mean of an algorithm's runs",
            ylabel="unexplained part of the change, log scale",
            xlim=(0, None),
            yscale="log",
        )
        last.set_yticks(ticks := [0.1, 0.2, 0.5, 1, 2, 5, 10], [f"{tick:g}" for tick in ticks])
        last.minorticks_off()
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
