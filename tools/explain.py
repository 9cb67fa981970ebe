"""`python run.py explain`: why each objective of a run moved, or did not. The covariance law's
prediction beside what was measured, and the number that decided.

Two predictions stand in every run's metrics, each a change per training step, and are added up
between two evaluations:

- by the score, the paper's law (eq. 3): `law/rate` * `cov/<objective>`, as if the step tilted the
  policy along its advantages;
- by the move, `law/<objective>`: the covariance with what the step really did to log pi, on
  completions it had not been trained on.

The first asks what was wanted, the second what the optimizer and the network made of it. Where they
disagree in sign, an objective moves against its own covariance.
"""

import math
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import tyro

from common.curves import from_zero, picture
from common.errors import require
from common.runs import Run
from common.verdict import NOISE, change_of
from tools.logs import Columns, Log, beside, load, load_statistics

USAGE = "RUN [RUN ...] [--steps S ...]"
LITTLE = 0.1  # share of the prompts: if fewer differ in a reward, next to nothing is learned of it
FULL = 0.9  # of the way from the lowest to the highest reward seen: nothing much is left to gain
SHOWN = 3  # phases of an objective in its line
MOST = 0.5  # of the weights: what an objective must have to be the one that the steps served
CLIPPED = 0.5  # of the covariance: what clipping must take away to be called the reason
FIT = ("sign right", "corr", "slope")
NEGATIVE = "negative covariance with the score"
PLAIN = {  # reasons for which an objective falls, in other words
    NEGATIVE: "answers that had more of it were paid less",
    "positive covariance with the score": "although answers that had more of it were paid more",
    "moved against the score": "the updates took it down, though answers with more were paid more",
    "conflicting gradients": "its gradient conflicts with that of the weighted sum",
    "moved against its own gradient": "what was gained on trained answers did not carry over",
    "clipped away": "the clip took away what was for it",
    "no push beyond noise": "no push on it stands out of the noise",
    "no variance within groups": "the answers to a prompt hardly differed in it",
    "saturated": "it was so high that the answers to a prompt hardly differed in it",
}


@dataclass
class Args(Columns):
    """Say why the objectives of a run moved."""

    runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
    """run folders, finished or still running; or logs of another trainer, each a .parquet, .csv or
    .jsonl, or a folder of them"""
    steps: tuple[int, ...] = ()
    """training steps at which to show what each controller would have chosen; default: five"""
    out: str = ""
    """the picture, .png or .pdf, replaced if it exists, for one run; default: explain.png in the
    run's folder, or beside the log"""


def main(argv: list[str]) -> None:
    """why each objective of a run, or of another trainer's log, moved or not, what the covariance
    law predicted, and what the other controllers would have chosen"""
    args = tyro.cli(Args, prog="python run.py explain", args=argv)
    require(bool(args.runs), "explain: which run? python run.py explain RUN [RUN ...]")
    runs = [load(path, args) for path in args.runs]
    outs = [Path(args.out or beside(run, "explain.png")) for run in runs]
    fits = outs[0].suffix in (".png", ".pdf") and outs[0].parent.is_dir()
    require(
        fits and not (args.out and runs[1:]),
        f"--out {args.out}: a picture of one run, a .png or a .pdf in a folder that is there",
    )
    texts = [explain(run, args.steps) for run in runs]  # mistakes are told before anything is
    for run, text, out in zip(runs, texts, outs, strict=True):
        draw(run, out)
        print(f"{text}\n\nwrote {out}\n")


# --- predicted and measured ---


def intervals(run: Run, name: str) -> pd.DataFrame:
    """A row per pair of successive evaluations of an objective, ascending: `start` and `end`, their
    steps; `held`, the held-out mean at the start; `measured`, its change, with the standard error
    `se`, and whether it is `beyond` noise; what the `move` (with `move_se`, from its spread over
    the steps) and the `score` predict, NaN where the steps tell none, as with one mini-batch a
    step; and the means of all metrics over the training steps start + 1 ... end, those of the
    objective without its name.

    Raises UserError for a run with one evaluation.
    """
    rows, G = pd.DataFrame(run.rows).set_index("step").astype(float), run.args["completions"]
    held = rows[f"eval/{name}"].dropna()
    require(
        len(held) > 1,
        f"{run.path}: {name} was evaluated {len(held)} time(s); an explanation takes two "
        "(--eval-every)",
    )
    errors = rows[f"eval/{name}_se"].dropna().to_numpy()
    rows = rows.rename(columns=lambda key: key.removesuffix(f"/{name}"))
    # not every run has these; what there is not is not known
    rows = rows.reindex(columns=rows.columns.union(["law", "law/rate"], sort=False))
    # cov/* divides by G, as the paper does; a prediction needs G - 1
    rows["score"] = rows["law/rate"] * rows["cov"] * G / (G - 1)
    groups = rows.groupby(pd.cut(rows.index, held.index, labels=False))
    found, count = groups.mean(), groups.size()
    return found.assign(
        start=held.index[:-1],
        end=held.index[1:],
        held=held.to_numpy()[:-1],
        measured=np.diff(held),
        se=np.hypot(errors[:-1], errors[1:]),
        beyond=lambda own: own.measured.abs() > NOISE * own.se,
        move=found.law * count,
        move_se=groups.law.sem() * count,
        score=found.score * count,
    )


def agreement(found: pd.DataFrame, prediction: str) -> list[str]:
    """How well the predictions `move` or `score` met what was measured: their sum; how many have
    the right sign, of how many measured beyond noise; correlation, of three or more; measured per
    predicted, least squares through the origin. A dash where it is not told."""
    told, measured = found[prediction], found.measured
    if told.isna().any():
        return ["–"] * 4
    right = (told * measured > 0)[found.beyond]
    slope = (told * measured).sum() / ((told**2).sum() or np.nan)
    fit = f"{told.corr(measured, min_periods=3):.2f} {slope:.2f}".replace("nan", "–")
    return [f"{told.sum():+.2f}", f"{right.sum()} of {len(right)}", *fit.split()]


# --- reasons ---


def reason(interval, lowest: float, highest: float, cosine: float) -> tuple[str, str]:
    """Why an objective moves or does not in one of its `intervals`: (reason, the number that
    decided). lowest, highest: its rewards in the whole run. cosine: of its gradient and the step's,
    NaN where they were not taken apart.

    In this order: nothing differs (saturated, or no variance within groups); the clip took the
    covariance away; the steps moved it neither way beyond noise; they moved it as the score asked,
    down (negative covariance) or up (positive); they moved it down although the score was for it:
    because its gradient conflicts with the step's, or, where it does not, because what the step
    gains on its own completions does not carry over to fresh ones (moved against its own gradient);
    they moved it up in spite of the score.
    """
    i, covariance = interval, f"{interval.cov:+.3f}"
    if i.signal < LITTLE:
        differ = f"{i.signal:.0%} of the prompts differ in it"
        if i.reward - lowest > FULL * (highest - lowest) > 0:
            return "saturated", f"{i.reward:.2f} in training, {differ}"
        return "no variance within groups", differ
    if i.cov > 0 and i.cov_active < CLIPPED * i.cov:
        return "clipped away", f"covariance {covariance}, {i.cov_active:+.3f} after clipping"
    moved = f"covariance {covariance}, the steps moved it by {i.move:+.3f}"
    if abs(i.move) < NOISE * i.move_se and not (i.beyond and i.move * i.measured > 0):
        return "no push beyond noise", f"{moved} ± {NOISE * i.move_se:.3f}"
    if i.move < 0 <= i.cov:
        if np.isnan(cosine):
            return "moved against the score", moved
        return (
            "conflicting gradients" if cosine < 0 else "moved against its own gradient",
            f"{moved}; cosine of its gradient with the step's {cosine:+.2f} on its own completions",
        )
    if i.cov < 0 < i.move:
        return "carried along against the score", moved
    return NEGATIVE if i.cov < 0 else "positive covariance with the score", covariance


def out_of_reach(run: Run, interval: pd.Series, name: str) -> tuple[str, str] | None:
    """(reason, number) where the steps of an interval moved an objective down and most of the
    weights belonged to another one whose covariance could not reach the target that its weight is
    raised for (`<script>/target/<objective>` above `<script>/reachable/<objective>`, the product of
    the standard deviations); None where none did."""
    keys = (f"{run.args['script']}/target", f"{run.args['script']}/reachable", "weight_share")
    for other in run.objectives:
        target, reachable, share = (interval.get(f"{key}/{other}", np.nan) for key in keys)
        if other != name and interval.move < 0 and target > reachable and share > MOST:
            return (
                f"the weight went to {other}, whose target is out of reach",
                f"target {target:.2g}, at most {reachable:.2g} possible; its share of the weights "
                f"{share:.2f}",
            )
    return None


def phases(run: Run, name: str) -> pd.DataFrame:
    """The intervals of an objective, successive ones of the same `reason` joined: `start` and
    `end`, the change `measured` over the whole phase, with the standard error `se` of a change
    between two evaluations, and the `number` of the interval in it that moved most."""
    found, lines, told = intervals(run, name), load_statistics(run), []
    k = run.objectives.index(name)
    seen = [rewards[k] for line in lines for rewards in line["rewards"] if rewards[k] is not None]
    for i in found.itertuples():
        own = [line for line in lines if i.start < line["step"] <= i.end]
        why = reason(i, min(seen), max(seen), _cosine(run, own, k))
        if why[0].endswith("the score"):
            why = out_of_reach(run, found.loc[i.Index], name) or why
        told.append(why)
    found[["reason", "number"]] = told
    parts = (found.reason != found.reason.shift()).cumsum()
    groups, strongest = found.groupby(parts), found.measured.abs().groupby(parts).idxmax()
    return groups.first().assign(
        end=groups.end.last(),
        measured=groups.measured.sum(),
        se=groups.se.first().combine(groups.se.last(), max),
        number=found.number[strongest].to_numpy(),
    )


def _cosine(run: Run, lines: list[dict], k: int) -> float:
    """Of the gradient of objective k and the weighted sum of all, mean over the updates; NaN where
    they were not taken apart, or one is zero, or not finite."""
    found, rows = [], {row["step"]: row for row in run.rows}
    for line in lines:
        for gram in np.array(line.get("gram", []), dtype=float):
            weights = [rows[line["step"]][f"weight/{name}"] for name in run.objectives]
            squares = gram[k, k] * (weights @ gram @ weights)
            found += [gram[k] @ weights / squares**0.5] if squares > 0 else []
    return np.mean(found) if found else np.nan


def outvoted(run: Run, name: str, start: int, end: int) -> pd.Series:
    """Whose weight the covariance of the scalar reward with an objective comes from, over training
    steps start + 1 ... end: by objective j the mean of w_j Cov(r_name, r_j) within prompts, w_j its
    share. They add up to the covariance with sum_j w_j r_j."""
    import torch  # here: a mistake in the flags is told at once

    from common.controllers import within_prompt_covariance

    names, parts, rows = run.objectives, [], {row["step"]: row for row in run.rows}
    for line in load_statistics(run):
        if not start < line["step"] <= end:
            continue
        rewards = torch.tensor(np.array(line["rewards"], dtype=float))
        own, row = rewards[:, [names.index(name)]], rows[line["step"]]
        # where a reward does not apply it adds nothing to the sum
        covariances = [
            within_prompt_covariance(other, own, run.args["completions"]).item()
            for other in rewards.nan_to_num().T
        ]
        parts.append([row[f"weight_share/{names[j]}"] * c for j, c in enumerate(covariances)])
    return pd.DataFrame(parts, columns=names).mean()


# --- words ---


def explain(run: Run, shown: tuple[int, ...] = ()) -> str:
    """The explanation of a run, to be printed, with the other controllers' weights at five training
    steps, or at those of `shown`. Raises UserError for one that the run does not have, for a run
    without statistics, and as `intervals` does."""
    from tools.counterfactual import choices  # loads torch: a mistake in the flags is told at once

    log = isinstance(run, Log)
    table = _votes_table(run) if log else _law_table(run)
    names, lines = run.objectives, load_statistics(run)
    steps = [line["step"] for line in lines if line["step"] <= run.rows[-1]["step"]]
    for step in shown:
        told = f"{run.path} has the steps {steps[0]} to {steps[-1]}"
        require(step in steps, f"--steps {step}: {told}")
    chosen, margin = choices(run, lines), max(map(len, names))
    own = chosen.get(run.args["script"])  # none of a script that is no longer there
    summed = run.summed if log else own and own.summed
    why = [_wrapped(f"  {name:{margin}}  ", _why(run, name, summed)) for name in names]
    limits = [_wrapped("  - ", line) for line in _limits_of_the_law(run)]
    facts = " · ".join(run.args[key] for key in ("script", "model", "dataset", "estimator"))
    facts = f"{run.path}: {facts}, seed {run.args['seed']}, {steps[-1]} steps"
    return "\n".join(
        [
            _wrapped("", _opening(run)),
            f"\n{_wrapped('', f'{run.path}: {run.facts}') if log else facts}\n\n{table}",
            "\nWhy",
            *why,
            "\nWhat the log does not tell" if log else "\nWhere the law stops",
            *limits,
            counterfactual_table(run, chosen, steps, shown),
        ]
    )


def _law_table(run: Run) -> str:
    """Predictions and what was measured, as text."""
    rows = [["objective", "measured", "by the move", *FIT, "by the score", *FIT]]
    for name in run.objectives:
        found = intervals(run, name)
        told = agreement(found, "move") + agreement(found, "score")
        rows.append([name, f"{found.measured.sum():+.2f}", *told])
    return (
        f"{_table(rows)}\n\n"
        f"Predicted and measured change, added up over {len(found)} intervals between "
        "evaluations on the held-out prompts.\nSign right: of the intervals whose measured "
        f"change is beyond {NOISE:g} standard errors. Slope: measured per predicted."
    )


def _votes_table(run: Log) -> str:
    """Of another trainer's log: each objective's change, its covariance with what was paid, and
    whose weight that comes from, as text."""
    names, spans = run.objectives, len(run.series(f"eval/{run.objectives[0]}")[0])
    told = "an explanation takes four prompts, two of them in later steps"
    require(spans > 1, f"{run.path}: {run.facts}: {told}")
    votes = [f"by {name}" for name in names] if run.summed else []
    rows = [["objective", "change ± 2 se", "differ", "covariance", *votes]]
    for name in names:
        change, found = change_of(run, name), outvoted(run, name, -math.inf, math.inf)
        differ, covariance = (np.mean(run.series(f"{key}/{name}")[1]) for key in ("signal", "cov"))
        told = f"{change.change:+.2f} ± {change.noise:.2f}", f"{differ:.0%}", f"{covariance:+.3f}"
        rows.append([name, *told, *(f"{vote:+.3f}" for vote in found[: len(votes)])])
    text = (
        f"{_table(rows)}\n\nChange: of the mean reward in training, from the first to the last of "
        f"{spans} spans of steps. Differ: prompts whose completions "
        "differ in it.\nCovariance: with what was paid, within prompts, mean over the steps: below "
        "0, completions with more of it were paid less."
    )
    if votes:
        text += "\nBy: that with the sum of the rewards, by whose weight; where others take more "
        text += "than an objective's own weight gives, it is outvoted."
    return text


def _wrapped(head: str, words: str) -> str:
    columns = max(min(shutil.get_terminal_size().columns, 140), 60)
    lines = textwrap.wrap(words, columns - len(head), break_on_hyphens=False)
    return head + f"\n{' ' * len(head)}".join(lines)


def _opening(run: Run) -> str:
    """One sentence on the objective that fell most, or that none did."""
    changes = [change_of(run, name) for name in run.objectives]
    risen = " and ".join(c.name for c in changes if c.sampled == "improved") or "nothing"
    fallen = [c for c in changes if c.sampled == "degraded"]
    if not fallen:
        return f"No objective fell beyond noise in samples; {risen} rose."
    worst = min(fallen, key=lambda change: change.change)
    fell = f"{worst.name} fell from {worst.start:.2f} to {worst.end:.2f} while {risen} rose"
    i = min(phases(run, worst.name).itertuples(), key=lambda phase: phase.measured)
    why = PLAIN.get(i.reason, i.reason)
    return f"{fell}, most of it in steps {i.start + 1}–{i.end}: {why}."


def _table(rows: list[list[str]]) -> str:
    """Columns of cells, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "".join(f"  {{:>{width}}}" for width in widths).replace(">", "<", 1)
    return "\n".join(line.format(*row) for row in rows)


def _why(run: Run, name: str, summed: bool) -> str:
    """One sentence: the change, the phases beyond noise (the strongest three), and the last phase
    where its reason is another. summed: whether the score is a sum of rewards."""
    change, found = change_of(run, name), phases(run, name)
    parts = [f"{change.start:.2f} → {change.end:.2f} {change.status}"]
    if change.status == "mixed":
        greedy = change.greedy
        parts[0] += f" (greedily {greedy.start:.2f} → {greedy.end:.2f})"
    size = found.measured.abs()
    moved = size[size > NOISE * found.se].nlargest(SHOWN).index
    for i in found.itertuples():
        told = f"{i.reason} ({i.number})"
        if i.Index in moved:
            way = f"{'rose' if i.measured > 0 else 'fell'} by {abs(i.measured):.2f} in steps"
            votes = outvoted(run, name, i.start, i.end)
            if summed and i.reason == NEGATIVE and votes.sum() < 0:
                told += f", outvoted: its own weight {votes.pop(name):+.3f}"
                told += "".join(f", {other} {v:+.3f}" for other, v in votes.items() if v < 0)
            parts.append(f"{way} {i.start + 1}–{i.end}: {told}")
        elif i.Index == found.index[-1]:
            parts.append(f"since step {i.start + 1}: {told}")
    return "; ".join(parts)


def _limits_of_the_law(run: Run) -> list[str]:
    if isinstance(run, Log):
        return [
            "It has no log-probabilities: how far a step went, and so what the law predicts of an "
            "objective, is not known, nor what was clipped.",
            "It has no held-out prompts: changes are of training completions, whose prompts differ "
            "from step to step.",
        ]
    sizes = run.series("law/nats")[1]
    if not sizes:
        return [
            "The run kept no log-probabilities of fresh completions, so the move is not known. A "
            "step of a single mini-batch has none; --mini-batches 2 or more tells it."
        ]
    said = [
        f"Size of a step: {np.mean(sizes):.2f} nats on average, {max(sizes):.2f} at most. A "
        "first-order law is a third off at .2 to .3 nats (docs/theory.md)."
    ]
    for name in run.objectives:
        own = intervals(run, name)[lambda found: found.beyond]
        for i in own[own.move * own.measured < 0].itertuples():
            said.append(
                f"Steps {i.start + 1}–{i.end}: {name} moved by {i.measured:+.2f} ± "
                f"{NOISE * i.se:.2f}, predicted {i.move:+.2f} by the move: the law is wrong."
            )
        wrong = own[own.score * own.measured < 0].itertuples()
        spans = ", ".join(f"{i.start + 1}–{i.end}" for i in wrong)
        if spans:
            said.append(
                f"By the score, {name} has the wrong sign in steps {spans}: the network did not "
                "make of it what the score asked. Either gradients conflict, or what a step gains "
                "on its own completions does not carry over to fresh ones (python -m "
                "study.gradients tells)."
            )
    said.append(
        "Training rewards are predicted and held-out ones measured: where a reward means something "
        "else there, as conciseness does, whose yardstick moves in training, the two part."
    )
    return said


def counterfactual_table(run: Run, chosen: dict, steps: list[int], shown: tuple[int, ...]) -> str:
    """Weight shares of every controller at training steps, by default at five of `steps`, as text;
    chosen: see tools/counterfactual.py, of each step."""
    count = len(steps)
    places = sorted({0, count // 10, count // 4, count // 2, count - 1})
    shown = shown or [steps[place] for place in places]
    rows = [["controller", *(f"step {step}" for step in shown)]]
    for name, choice in chosen.items():
        mark = "~" * choice.estimated + " ←" * (name == run.args["script"])
        weights = [choice.weights[steps.index(step)] or [] for step in shown]
        shares = [" ".join(f"{w:.2f}".lstrip("0")[:3] for w in own) or "–" for own in weights]
        rows.append([name + mark, *shares])
    own = "; ← is the run's own, computed anew" if run.args["script"] in chosen else ""
    return (
        f"\nHad they watched this run: shares of the weights of {', '.join(run.objectives)}\n\n"
        f"{_table(rows)}\n\n"
        "Each controller moves its own weights on the batches that the run sampled"
        f"{own}.\n~ from the rewards' covariance within prompts, where a run took no "
        "gradients apart.\n– needs what the run did not keep: gradients, log-probabilities, or a "
        "best reward (--reward-max) for these rewards."
    )


# --- the picture ---


def draw(run: Run, out: Path) -> None:
    """A panel per objective: the held-out reward, and from each evaluation a line to where each
    prediction sees the next one; below, predicted against measured or, where nothing was predicted,
    the covariance with what was paid. Raises UserError like `intervals` and `picture`."""
    K, held = (
        len(run.objectives),
        "reward in training" if isinstance(run, Log) else "held-out reward",
    )
    with picture(out, 0.6 + 2.5 * max(K, 2), 5.4) as figure:
        panels = figure.subplots(2, K, squeeze=False)
        for k, name in enumerate(run.objectives):
            (above, below), own = panels[:, k], intervals(run, name)
            errors, told = run.series(f"eval/{name}_se")[1], "measured, ± 1 standard error"
            above.errorbar(*run.series(f"eval/{name}"), errors, color=f"C{k}", label=told)
            above.set(title=name, xlabel="step", ylabel=held)
            if own[["move", "score"]].isna().all(axis=None):
                below.plot(*run.series(f"cov/{name}"), color=f"C{k}")
                below.axhline(color="grey")
                below.set(xlabel="step", ylabel="covariance with what was paid")
                from_zero(above)
                continue
            for key, look in {"move": "ko-", "score": "C7x--"}.items():
                ways = [[own.start, own.end], [own.held, own.held + own[key]]]
                lines = above.plot(*ways, look, markevery=[1], markersize=4, linewidth=0.9)
                lines[0].set_label(f"predicted by the {key}")
                below.errorbar(own[key], own.measured, own.se, fmt=look.strip("-"), markersize=4)
            below.set(xlabel="predicted change", ylabel="measured change")
            below.axline((0, 0), slope=1, color="grey")
            from_zero(above)
        keys = above.get_legend_handles_labels()
        figure.legend(*keys, title=run.name[-50:], loc="outside upper left", ncols=2)
