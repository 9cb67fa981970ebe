"""`python run.py explain`: why each objective of a run moved, or did not. The covariance law's prediction beside what was measured, and
the number that decided.

Two predictions stand in every run's metrics, each a change per training step, and are added up between two evaluations:

- by the score, the paper's law (eq. 3): `law/rate` * `cov/<objective>`, as if the step tilted the policy along its advantages;
- by the move, `law/<objective>`: the covariance with what the step really did to log pi, on completions it had not been trained on.

The first asks what was wanted, the second what the optimizer and the network made of it. Where they disagree in sign, an objective moves
against its own covariance.
"""

import importlib
import math
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

import numpy as np
import tyro

from common.runs import Run, load_run, load_statistics
from common.verdict import NOISE, change_of
from tools.scripts import algorithms
from common.errors import UserError

USAGE = "RUN [RUN ...] [--steps S ...]"
LITTLE = 0.1  # share of the prompts: with fewer that differ in a reward, next to nothing is learned about it
FULL = 0.9  # of the way from the lowest to the highest reward seen: nothing much is left to gain
SHOWN = 3  # phases of an objective in its line
MOST = 0.5  # of the weights: what an objective must have to be the one that the steps served
CLIPPED = 0.5  # of the covariance: what clipping must take away to be called the reason


@dataclass
class Args:
    runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
    """run folders, finished or still running"""
    steps: tuple[int, ...] = ()
    """training steps at which to show what each controller would have chosen; default: five over the run"""
    out: str = ""
    """the picture, .png or .pdf, replaced if it exists, for one run; default: explain.png in the run's folder"""


def main(argv: list[str]) -> None:
    """why each objective of a run moved or not, what the covariance law predicted, and what the other controllers would have chosen"""
    args = tyro.cli(Args, prog="python run.py explain", description="Say why the objectives of a run moved.", args=argv)
    if not args.runs:
        raise UserError("explain: which run? python run.py explain RUN [RUN ...], such as runs/ctwa-s1")
    if args.out and len(args.runs) > 1:
        raise UserError("--out is one picture, and each run has its own: explain the runs one by one, or drop it")
    if args.out:
        require_picture(Path(args.out))
    from tools.counterfactual import counterfactual_weights  # loads torch: a mistake in the flags is told at once

    scripts = {name: importlib.import_module(f"algos.{name}") for name in algorithms()}
    for run in map(load_run, args.runs):
        out = Path(args.out) if args.out else run.path / "explain.png"
        print(f"{explain(run)}\n")
        try:
            print(counterfactual_table(run, *counterfactual_weights(run, scripts), args.steps))
        except UserError as error:  # a run whose statistics were deleted still has its explanation
            if args.steps:
                raise
            print(error)
        draw(run, out)
        print(f"\nwrote {out}\n")


@dataclass(frozen=True)
class Interval:
    """One objective from one evaluation to the next. Means are over the training steps in between."""

    start: int  # step of the first evaluation; training steps start + 1 ... end lie in between
    end: int
    measured: float  # change of the mean reward on the held-out prompts
    se: float  # its standard error, the two evaluations taken as independent
    move: float | None  # predicted by what the steps did to log pi; None where they say nothing, as with one mini-batch a step
    move_se: float | None  # from its spread over the steps
    score: float | None  # predicted by the covariance with the score
    cov: float  # mean covariance of advantage and reward within prompts
    cov_active: float  # the same with what clipping leaves of the advantage
    signal: float  # mean share of prompts whose completions differ in this reward
    level: float  # mean training reward

    @property
    def beyond_noise(self) -> bool:
        return abs(self.measured) > NOISE * self.se


@dataclass(frozen=True)
class Agreement:
    """How well a prediction met the measured changes over the intervals of one objective, or of several."""

    right: int  # intervals with the right sign,
    judged: int  # of those whose measured change is beyond noise
    correlation: float | None  # over all intervals; None with fewer than three, or where one side does not vary
    slope: float | None  # measured per predicted, least squares through the origin
    total: float  # sum of the predictions


def intervals(run: Run, objective: str) -> list[Interval]:
    """The intervals of an objective in ascending order. Raises UserError for a run with one evaluation, or without law/* in its metrics."""
    steps, values = run.series(f"eval/{objective}")
    if len(steps) < 2:
        raise UserError(f"{run.path}: {objective} was evaluated {len(steps)} time(s); an explanation takes two (--eval-every)")
    lacking = [row["step"] for row in run.rows if row["step"] > 0 and f"law/{objective}" not in row]
    if lacking:
        told = "it is of a version that did not; train it anew to have it explained"
        raise UserError(f"{run.path} logs no law/{objective} in step {lacking[0]}: {told}")
    errors = dict(zip(*run.series(f"eval/{objective}_se"), strict=True))
    correction = run.args["completions"] / (run.args["completions"] - 1)  # cov/* divides by G, as the paper does; a prediction needs G - 1
    found = []
    for i, (start, end) in enumerate(pairwise(steps)):
        rows = [row for row in run.rows if start < row["step"] <= end]
        moves = [row[f"law/{objective}"] for row in rows]
        scores = [row["law/rate"] * row[f"cov/{objective}"] * correction if row["law/rate"] is not None else None for row in rows]
        told = None not in moves and None not in scores
        found.append(
            Interval(
                start,
                end,
                values[i + 1] - values[i],
                math.hypot(errors.get(start, 0.0), errors.get(end, 0.0)),
                sum(moves) if told else None,
                stdev(moves) * len(moves) ** 0.5 if told and len(moves) > 1 else None,
                sum(scores) if told else None,
                *(fmean(row[f"{key}/{objective}"] for row in rows) for key in ("cov", "cov_active", "signal", "reward")),
            )
        )
    return found


def agreement(found: list[Interval], prediction: str) -> Agreement | None:
    """Compare the predictions `move` or `score` with what was measured; None where there are none."""
    pairs = [(getattr(i, prediction), i.measured, i.beyond_noise) for i in found]
    if any(predicted is None for predicted, _, _ in pairs):
        return None
    predicted, measured = [p for p, _, _ in pairs], [m for _, m, _ in pairs]
    judged = [(p, m) for p, m, beyond in pairs if beyond]
    varied = len(pairs) > 2 and len(set(predicted)) > 1 and len(set(measured)) > 1
    squares = sum(p * p for p in predicted)
    return Agreement(
        sum(p * m > 0 for p, m in judged),
        len(judged),
        _correlation(predicted, measured) if varied else None,
        sum(p * m for p, m in zip(predicted, measured, strict=True)) / squares if squares else None,
        sum(predicted),
    )


def _correlation(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = fmean(x), fmean(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))


# --- reasons ---


def reason(interval: Interval, lowest: float, highest: float, gradient_cosine: float | None = None) -> tuple[str, str]:
    """Why an objective moves or does not in an interval: (reason, the number that decided).

    lowest, highest: the objective's rewards in the whole run. gradient_cosine: of its gradient and the step's, where the run kept them.
    In this order: nothing differs (saturated, or no variance within groups); the clip took the covariance away; the steps moved it
    neither way beyond noise; they moved it as the score asked, down (negative covariance) or up (positive); they moved it down although
    the score was for it: because its gradient conflicts with the step's, or, where it does not, because what the step gains on its own
    completions does not carry over to fresh ones (moved against its own gradient); they moved it up in spite of the score.
    """
    if interval.signal < LITTLE:
        differ = f"{interval.signal:.0%} of the prompts differ in it"
        height = (interval.level - lowest) / (highest - lowest) if highest > lowest else 0.0
        return ("saturated", f"{interval.level:.2f} in training, {differ}") if height > FULL else ("no variance within groups", differ)
    if interval.cov > 0 and interval.cov_active < CLIPPED * interval.cov:
        return "clipped away", f"covariance {interval.cov:+.3f}, {interval.cov_active:+.3f} after clipping"
    if interval.move is None:
        return f"{'negative' if interval.cov < 0 else 'positive'} covariance with the score", f"{interval.cov:+.3f}"
    moved = f"covariance {interval.cov:+.3f}, the steps moved it by {interval.move:+.3f}"
    confirmed = interval.beyond_noise and interval.move * interval.measured > 0
    if interval.move_se is not None and abs(interval.move) < NOISE * interval.move_se and not confirmed:
        return "no push beyond noise", f"{moved} ± {NOISE * interval.move_se:.3f}"
    if interval.move < 0 <= interval.cov:
        if gradient_cosine is None:
            return "moved against the score", moved
        with_step = f"{moved}; cosine of its gradient with the step's {gradient_cosine:+.2f} on its own completions"
        return "conflicting gradients" if gradient_cosine < 0 else "moved against its own gradient", with_step
    if interval.cov < 0 < interval.move:
        return "carried along against the score", moved
    return f"{'negative' if interval.cov < 0 else 'positive'} covariance with the score", f"{interval.cov:+.3f}"


@dataclass(frozen=True)
class Phase:
    """Successive intervals of one objective with one reason."""

    start: int
    end: int
    reason: str
    number: str  # of the interval in it that moved most
    measured: float  # change over the whole phase
    se: float  # of a change between two evaluations


def phases(run: Run, objective: str, found: list[Interval]) -> list[Phase]:
    """Join successive intervals of the same reason."""
    statistics = _statistics(run)
    k = run.objectives.index(objective)
    seen = [reward[k] for line in statistics for reward in line["rewards"]] or [0.0, 1.0]
    weights = {row["step"]: [row.get(f"weight/{name}") for name in run.objectives] for row in run.rows}
    named = []
    for interval in found:
        lines = [line for line in statistics if interval.start < line["step"] <= interval.end and line.get("gram")]
        cosines = [cosine for line in lines for gram in line["gram"] if (cosine := _with_step(gram, weights[line["step"]], k)) is not None]
        why = reason(interval, min(seen), max(seen), fmean(cosines) if cosines else None)
        if interval.move is not None and interval.move < 0 and why[0].endswith("the score"):
            why = out_of_reach(run, objective, interval.start, interval.end) or why
        named.append((interval, *why))
    joined: list[list] = []
    for entry in named:
        if joined and joined[-1][-1][1] == entry[1]:
            joined[-1].append(entry)
        else:
            joined.append([entry])
    result = []
    for group in joined:
        strongest = max(group, key=lambda entry: abs(entry[0].measured))
        first, last = group[0][0], group[-1][0]
        measured = sum(entry[0].measured for entry in group)
        result.append(Phase(first.start, last.end, strongest[1], strongest[2], measured, max(first.se, last.se)))
    return result


def out_of_reach(run: Run, objective: str, start: int, end: int) -> tuple[str, str] | None:
    """(reason, number) where most of the weights of training steps start + 1 ... end belonged to another objective whose covariance
    could not reach the target that its weight is raised for (`<script>/target/<objective>` above `<script>/reachable/<objective>`, the
    product of the standard deviations); None where none did."""
    rows, kind = [row for row in run.rows if start < row["step"] <= end], run.args.get("script")
    for other in run.objectives:
        series = [[row.get(f"{key}/{other}") for row in rows] for key in (f"{kind}/target", f"{kind}/reachable", "weight_share")]
        if other == objective or any(value is None for values in series for value in values):
            continue
        target, reachable, share = (fmean(values) for values in series)
        if target > reachable and share > MOST:
            numbers = f"target {target:.2g}, at most {reachable:.2g} possible; its share of the weights {share:.2f}"
            return f"the weight went to {other}, whose target is out of reach", numbers
    return None


def _statistics(run: Run) -> list[dict]:
    try:
        return load_statistics(run)
    except UserError:  # of a run whose statistics were deleted to save space
        return []


def _with_step(gram: list[list[float]], weights: list[float], k: int) -> float | None:
    """Cosine of gradient k and the weighted sum of all; None where one of them is zero."""
    along = sum(w * value for w, value in zip(weights, gram[k], strict=True))
    length = sum(a * b * gram[i][j] for i, a in enumerate(weights) for j, b in enumerate(weights))
    return along / math.sqrt(gram[k][k] * length) if gram[k][k] > 0 and length > 0 else None


def scalarised(run: Run, start: int, end: int) -> bool:
    """Whether the advantages of training steps start + 1 ... end are the weighted sum of the rewards, shifted and scaled within each
    prompt, as with methods that weigh rewards: their correlation is 1. Raises UserError if the run kept no statistics."""
    shares = {row["step"]: [row.get(f"weight_share/{name}") or 0.0 for name in run.objectives] for row in run.rows}
    for line in load_statistics(run):
        if start < line["step"] <= end:
            score = np.array(line["rewards"], dtype=float) @ shares[line["step"]]
            groups = np.stack([score, np.array(line["advantages"], dtype=float)]).reshape(2, -1, run.args["completions"])
            centred = groups - groups.mean(-1, keepdims=True)
            products, squares = (centred[0] * centred[1]).sum(-1), (centred**2).sum(-1)
            if (products < 0.999 * np.sqrt(squares[0] * squares[1]) - 1e-9).any() or ((squares[0] < 1e-9) & (squares[1] > 1e-6)).any():
                return False
    return True


def outvoted(run: Run, objective: str, start: int, end: int) -> list[tuple[str, float]]:
    """Whose weight the covariance of the scalar reward with an objective comes from, over training steps start + 1 ... end: for every
    objective j the mean of w_j Cov(r_objective, r_j) within prompts, w_j its share. They add up to the covariance with sum_j w_j r_j."""
    k, size = run.objectives.index(objective), run.args["completions"]
    shares = {row["step"]: [row.get(f"weight_share/{name}") or 0.0 for name in run.objectives] for row in run.rows}
    totals, count = [0.0] * len(run.objectives), 0
    for line in load_statistics(run):
        if start < line["step"] <= end:
            for first in range(0, len(line["rewards"]), size):
                columns = list(zip(*line["rewards"][first : first + size], strict=True))
                means = [fmean(column) for column in columns]
                for j, column in enumerate(columns):
                    products = (a * b for a, b in zip(columns[k], column, strict=True))
                    totals[j] += shares[line["step"]][j] * (sum(products) / size - means[k] * means[j])
                count += 1
    return [(name, total / max(count, 1)) for name, total in zip(run.objectives, totals, strict=True)]


def by_length(run: Run, objective: str, start: int, end: int) -> tuple[float, float]:
    """`cov/<objective>` of training steps start + 1 ... end in two parts, (between, within): between takes a completion's reward for the
    mean reward of all completions of its length in the batch, within is the rest.

    Where lengths tell modes apart, as on the testbed, "between" is what choosing among modes does to the objective, and "within" asks to
    be better at a mode. The mean over the steps; raises UserError if the run kept no statistics.
    """
    k, size = run.objectives.index(objective), run.args["completions"]
    between, total, prompts = 0.0, 0.0, 0
    for line in load_statistics(run):
        if start < line["step"] <= end:
            alike: dict[int, list[float]] = {}
            for rewards, length in zip(line["rewards"], line["lengths"], strict=True):
                alike.setdefault(length, []).append(rewards[k])
            usual = [fmean(alike[length]) for length in line["lengths"]]
            for first in range(0, len(usual), size):
                group = slice(first, first + size)
                middle = fmean(line["advantages"][group])
                for advantage, mean, rewards in zip(line["advantages"][group], usual[group], line["rewards"][group], strict=True):
                    between += (advantage - middle) * mean / size
                    total += (advantage - middle) * rewards[k] / size
                prompts += 1
    return between / max(prompts, 1), (total - between) / max(prompts, 1)


# --- words ---


def explain(run: Run) -> str:
    """The explanation of a run, to be printed. Raises UserError as `intervals` does."""
    found = {name: intervals(run, name) for name in run.objectives}
    facts = [str(run.args.get(key, "")) for key in ("script", "model", "dataset", "estimator")]
    parts = [
        f"{run.path}: {' · '.join(filter(None, facts))}, seed {run.args.get('seed')}, {run.rows[-1]['step']} steps",
        _predictions(found),
    ]
    margin = max(map(len, run.objectives)) + 2
    parts.append("Why\n" + "\n".join(_wrapped(name.ljust(margin), _why(run, name, found[name])) for name in run.objectives))
    return "\n\n".join([*parts, "Where the law stops\n" + "\n".join(_wrapped("- ", line) for line in _limits_of_the_law(run, found))])


def _wrapped(head: str, words: str) -> str:
    columns = max(min(shutil.get_terminal_size().columns, 140), 60)
    indent = " " * (len(head) + 2)
    return textwrap.fill(words, columns, initial_indent=f"  {head}", subsequent_indent=indent, break_on_hyphens=False)


def _predictions(found: dict[str, list[Interval]]) -> str:
    heads = ["objective", "measured", "by the move", "sign right", "corr", "slope", "by the score", "sign right", "corr", "slope"]
    rows = [heads]
    for name, own in found.items():
        rows.append([name, f"{sum(i.measured for i in own):+.2f}"])
        for prediction in ("move", "score"):
            a = agreement(own, prediction)
            cells = ["–"] * 4
            if a is not None:
                corr, slope = ("–" if value is None else f"{value:.2f}" for value in (a.correlation, a.slope))
                cells = [f"{a.total:+.2f}", f"{a.right} of {a.judged}", corr, slope]
            rows[-1] += cells
    columns = [
        [cell.ljust(max(map(len, c))) if c[0] == "objective" else cell.rjust(max(map(len, c))) for cell in c]
        for c in zip(*rows, strict=True)
    ]
    count = len(next(iter(found.values())))
    words = (
        f"Predicted and measured change, added up over {count} intervals between evaluations on the held-out prompts.\n"
        f"Sign right: of the intervals whose measured change is beyond {NOISE:g} standard errors. Slope: measured per predicted."
    )
    return words + "\n\n" + "\n".join("  " + "  ".join(row).rstrip() for row in zip(*columns, strict=True))


def _why(run: Run, name: str, found: list[Interval]) -> str:
    """One sentence: the change, the phases beyond noise (the strongest three), and the last phase where its reason is another."""
    change, steps = change_of(run, name), phases(run, name, found)
    moved = sorted((p for p in steps if abs(p.measured) > NOISE * p.se), key=lambda phase: -abs(phase.measured))[:SHOWN]
    mixed = f" (improved in samples, greedy {change.greedy[0]:.2f} → {change.greedy[1]:.2f})" if change.status == "mixed" else ""
    parts = [f"{change.start:.2f} → {change.end:.2f} {change.status}{mixed}"]
    for phase in sorted(moved, key=lambda phase: phase.start):
        words = f"{'rose' if phase.measured > 0 else 'fell'} by {abs(phase.measured):.2f} in steps {phase.start + 1}–{phase.end}"
        parts.append(f"{words}: {phase.reason} ({phase.number})")
        if phase.reason.startswith("negative"):
            parts[-1] += _votes(run, name, phase)
    last = steps[-1]
    if last not in moved:
        parts.append(f"since step {last.start + 1}: {last.reason} ({last.number})")
    return "; ".join(parts)


def _votes(run: Run, name: str, phase: Phase) -> str:
    """Whose weight made the covariance negative, where the scalar reward tells: it does not for scores that are not linear in rewards."""
    try:
        parts = outvoted(run, name, phase.start, phase.end) if scalarised(run, phase.start, phase.end) else []
    except UserError:
        return ""
    if sum(value for _, value in parts) >= 0:
        return ""
    against = ", ".join(f"{other} {value:+.3f}" for other, value in parts if other != name and value < 0)
    own = next(value for other, value in parts if other == name)
    return f", outvoted: its own weight {own:+.3f}, {against}"


def _limits_of_the_law(run: Run, found: dict[str, list[Interval]]) -> list[str]:
    sizes = run.series("law/nats")[1]
    if not sizes:
        return ["A step is a single mini-batch, so no completion is fresh and the move is not known; --mini-batches 2 or more tells it."]
    size = f"Size of a step: {fmean(sizes):.2f} nats on average, {max(sizes):.2f} at most."
    doubtful, lines = False, [f"{size} A first-order law is a third off at .2 to .3 nats (docs/theory.md)."]
    for name, own in found.items():
        for i in own:
            if i.beyond_noise and i.move is not None and i.move * i.measured < 0:
                measured = f"{i.measured:+.2f} ± {NOISE * i.se:.2f}"
                lines.append(
                    f"Steps {i.start + 1}–{i.end}: {name} moved by {measured}, predicted {i.move:+.2f} by the move: the law is wrong."
                )
        against = [i for i in own if i.beyond_noise and i.score is not None and i.score * i.measured < 0]
        if against:
            spans = ", ".join(f"{i.start + 1}–{i.end}" for i in against)
            lines.append(f"By the score, {name} has the wrong sign in steps {spans}: the network did not make of it what the score asked.")
            doubtful = True
    if doubtful and not any(line.get("gram") for line in _statistics(run)):
        either = "Either gradients conflict, or what a step gains on its own completions does not carry over to fresh ones."
        lines.append(f"{either} This run took no gradients apart; python -m study.gradients does.")
    words = "where a reward means something else there, as conciseness does, whose yardstick moves in training, the two part."
    return [*lines, f"Training rewards are predicted and held-out ones measured: {words}"]


# --- the picture ---


def require_picture(out: Path) -> None:
    """Raises UserError unless `out` is a .png or .pdf in a folder that is there."""
    if out.suffix.lower() not in (".png", ".pdf") or not out.parent.is_dir():
        raise UserError(f"--out {out}: a figure is a .png or a .pdf in a folder that is there; give such a file")


def draw(run: Run, out: Path) -> None:
    """A panel per objective: the held-out reward, and from each evaluation a line to where each prediction sees the next one; below,
    predicted against measured. `out` is replaced whole. Raises UserError as `require_picture` does."""
    import matplotlib

    from tools.curves import held_out_limits, write_figure
    from tools.looks import BROKEN, GREY, LABEL, NEUTRAL, STYLE, Key, Look, draw_keys, objective_look

    require_picture(out)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    looks = {"move": Look("#000000", "-", "o", False), "score": Look(GREY, BROKEN, "x")}  # neither is an objective nor an algorithm
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        K = len(run.objectives)
        figure = Figure(figsize=(0.6 + 2.5 * max(K, 2), 5.0))
        FigureCanvasAgg(figure)
        facts = " · ".join(str(run.args.get(key, "")) for key in ("script", "model", "dataset", "estimator"))
        figure.text(0.01, 0.985, f"{facts} · seed {run.args.get('seed')}", va="top", color="#444444", fontsize=LABEL)
        words = {"move": "predicted by the move", "score": "predicted by the score, the paper's law"}
        keys = [Key("measured, ± 1 standard error", NEUTRAL, "band"), *(Key(words[key], look) for key, look in looks.items())]
        draw_keys(figure, 0.1, 0.32, [*keys, Key("predicted = measured", NEUTRAL, "thin")])
        panels = figure.subplots(2, K, squeeze=False)
        width = 0.6 + 2.5 * max(K, 2)
        figure.subplots_adjust(left=0.6 / width, right=1 - 0.1 / width, top=0.82, bottom=0.1, hspace=0.45, wspace=0.3)
        changes = [0.0]
        for k, name in enumerate(run.objectives):
            above, below = panels[:, k]
            steps, values = run.series(f"eval/{name}")
            errors = dict(zip(*run.series(f"eval/{name}_se"), strict=True))
            edges = [[value + sign * errors.get(step, 0.0) for step, value in zip(steps, values, strict=True)] for sign in (-1, 1)]
            seen = [*edges[0], *edges[1]]
            measured = objective_look(k)
            above.fill_between(steps, *edges, color=measured.colour, alpha=0.2, linewidth=0)
            above.plot(steps, values, color=measured.colour, linewidth=2.4, label=name)
            for i, value in zip(intervals(run, name), values, strict=False):
                for key, look in looks.items():
                    if (predicted := getattr(i, key)) is not None:
                        way = [i.start, i.end], [value, value + predicted]
                        above.plot(*way, linewidth=0.9, markevery=[1], clip_on=False, label=key, **look.pen, **look.points)
                        pen = {"color": look.colour, "elinewidth": 0.6, "linestyle": ""}
                        below.errorbar(predicted, i.measured, i.se, **pen, **look.points)
                        seen.append(value + predicted)
                        changes += [predicted, i.measured - i.se, i.measured + i.se]
            above.set_title(name, pad=5)
            lowest, highest = held_out_limits([seen])
            margin = 0.05 * (highest - lowest)
            above.set(ylim=(lowest - margin, highest + margin), xlim=(0, steps[-1]))
            above.set_xlabel("step", labelpad=2)
        low, high = min(changes) - 0.02, max(changes) + 0.02
        for panel in panels[1]:
            panel.plot([low, high], [low, high], color=GREY, linewidth=0.5)
            panel.axhline(0, color=GREY, linewidth=0.5)
            panel.axvline(0, color=GREY, linewidth=0.5)
            panel.set(xlim=(low, high), ylim=(low, high), aspect="equal")
            panel.set_xlabel("predicted change", labelpad=2)
        for panel in panels.flat:
            panel.tick_params(length=2.5, pad=2)
            panel.locator_params(nbins=5)
        panels[0][0].set_ylabel("held-out reward")
        panels[1][0].set_ylabel("measured change,\nevaluation to evaluation")
        write_figure(figure, out)


# --- what other controllers would have chosen ---


def counterfactual_table(run: Run, steps: list[int], chosen: dict, estimated: bool, shown: Sequence[int] = ()) -> str:
    """Weight shares of every controller at a few steps (a fifth apart, or those of `shown`), as text; see tools/counterfactual.py."""
    if missing := sorted(set(shown) - set(steps)):
        raise UserError(f"--steps {missing[0]}: the run kept steps {steps[0]} to {steps[-1]}")
    places = [steps.index(step) for step in shown] if shown else sorted({round(f * (len(steps) - 1)) for f in (0, 0.1, 0.25, 0.5, 1)})
    rows = [["controller", *(f"step {steps[i]}" for i in places)]]
    for name, weights in chosen.items():
        mark = ("~" if estimated and name in ("mgda", "nash_mtl") else "") + (" ←" if name == run.args.get("script") else "")
        rows.append([name + mark, *(_shares(weights[i]) for i in places)])
    columns = [[cell.ljust(max(map(len, column))) for cell in column] for column in zip(*rows, strict=True)]
    words = [
        f"Had they watched this run: shares of the weights in the order {', '.join(run.objectives)}. Each controller",
        "moves its own weights on the batches that the run sampled; ← is the run's own, computed anew.",
    ]
    if estimated:
        words.append("~ from the rewards' covariance within prompts, since this run took no gradients apart.")
    if any(weights is None for own in chosen.values() for weights in own):
        words.append("– needs what the run did not keep: gradients, log-probabilities, or a best reward (--reward-max) for these rewards.")
    return "\n".join([*words, "", *("  " + "  ".join(row).rstrip() for row in zip(*columns, strict=True))])


def _shares(weights) -> str:
    return "–" if weights is None else " ".join(f"{w:.2f}".lstrip("0") if w < 0.995 else "1.0" for w in weights.tolist())
