"""What a run did to each objective, and whether one was degraded while another improved: in numbers and in words.

Sampled completions are judged, as in training. What is used afterwards is often the greedy one; so what rose in samples and fell greedily
is not called improved.
"""

import math
from dataclasses import dataclass

from tools.runs import Run
from common.errors import UserError

FLAT_STEPS = 5  # steps without any difference between completions at the end of training, to speak of a collapse
NOISE = 2.0  # a change counts beyond this many standard errors
STATUSES = ("improved", "mixed", "degraded", "unchanged")  # of an objective


@dataclass(frozen=True)
class Change:
    """One evaluated quantity from the first evaluation to the last, on the held-out prompts; sampled where nothing else is said."""

    name: str
    start: float
    end: float
    change: float  # end - start
    se: float  # standard error of the change, from the standard errors of the two ends taken as independent
    lowest: float  # over all evaluations, the two ends included
    lowest_step: int
    sampled: str  # an objective: improved, degraded or unchanged beyond noise; the length: longer, shorter or unchanged
    dipped: bool  # was below its start beyond noise on the way, and is not at the end
    greedy: tuple[float, float] | None  # start and end under greedy decoding, None when that was not evaluated
    greedy_se: float  # standard error of their difference; of runs that logged none, that of the samples of the same prompts
    greedy_status: str  # as `sampled`; unchanged where greedy decoding was not evaluated

    @property
    def status(self) -> str:
        """As `sampled`, or mixed: it improved in samples and was degraded under greedy decoding."""
        return "mixed" if (self.sampled, self.greedy_status) == ("improved", "degraded") else self.sampled


@dataclass(frozen=True)
class Verdict:
    """`objectives` in the order of the run, `length` in response tokens, `text` to print: a table and a sentence or two."""

    objectives: list[Change]
    length: Change
    interference: bool  # some objective was degraded while another improved, both sampled
    text: str


def verdict(run: Run) -> Verdict:
    """Judge a run by its first and its last evaluation. With a single evaluation nothing has changed yet, and the text says so.

    Raises `UserError` when an objective was never evaluated, or without a standard error.
    """
    objectives = [change_of(run, name) for name in run.objectives]
    length = change_of(run, "length", words=("longer", "shorter"))
    statuses = {objective.sampled for objective in objectives}
    steps = sorted({step for name in run.objectives for step in run.series(f"eval/{name}")[0]})
    compared = len(steps) > 1
    words = _in_words(objectives) + collapse(run) if compared else f"Evaluated only once, at step {steps[0]}: nothing to compare yet."
    text = f"{_table(objectives, length, compared)}\n{words}{_safe_in_words(run, steps[-1])}"
    return Verdict(objectives, length, {"improved", "degraded"} <= statuses, text)


def last_safe(run: Run) -> int:
    """The last evaluated step with no objective below its start beyond noise, sampled; 0, the start itself, where there is no other."""
    evaluations = []
    for name in run.objectives:
        errors = dict(zip(*run.series(f"eval/{name}_se"), strict=True))
        (first, start), *later = zip(*run.series(f"eval/{name}"), strict=True)
        held = {step for step, value in later if value >= start - NOISE * math.hypot(errors[first], errors[step])}
        evaluations.append({first, *held})
    return max(set.intersection(*evaluations))


def _safe_in_words(run: Run, last: int) -> str:
    """Of a run with --keep-safe that did not end at such a step: which checkpoint was kept."""
    if not run.args.get("keep_safe") or (step := last_safe(run)) == last:
        return ""
    if step == 0:
        return " No evaluation after the start had every objective at its start or above, so --keep-safe has kept no checkpoint."
    told = f" Step {step} was the last with no objective below its start beyond noise"
    return f"{told}: `python run.py export {run.path} --step {step}` writes its model."


def collapse(run: Run) -> str:
    """A sentence, after a space, where training ended with completions that no longer differed in any reward; else nothing."""
    signals = [run.series(f"signal/{name}") for name in run.objectives]
    varied = [step for steps, values in signals for step, value in zip(steps, values, strict=True) if value > 0]
    last = max((step for steps, _ in signals for step in steps), default=0)
    since = max(varied, default=0)
    if last - since < FLAT_STEPS:
        return ""
    told = f" From step {since + 1} on no prompt's completions differed in any reward"
    rewards = [run.series(f"reward/{name}")[1] for name in run.objectives]
    if all(values[-1] >= values[0] for values in rewards):
        return f"{told}: there was nothing left to learn from."
    return f"{told}: the policy has collapsed and learned nothing more; start again with a lower --lr."


def change_of(run: Run, name: str, words: tuple[str, str] = ("improved", "degraded")) -> Change:
    """The change in `eval/<name>`; `words` say that it rose and that it fell beyond noise. Raises like `verdict`."""
    steps, values = run.series(f"eval/{name}")
    if not steps:
        raise UserError(f"{run.path}: no eval/{name} in metrics.jsonl, so there is no verdict; runs evaluate every --eval-every steps")
    errors = dict(zip(*run.series(f"eval/{name}_se"), strict=True))
    without = [step for step in steps if step not in errors]
    if without:
        raise UserError(f"{run.path}: eval/{name} has no standard error at step {without[0]}; it takes --eval-prompts 2 or more")

    def moved(difference: float, se: float) -> str:
        return words[difference < 0] if abs(difference) > NOISE * se else "unchanged"

    start, end = values[0], values[-1]
    lowest = min(values)
    lowest_step = steps[values.index(lowest)]
    se = math.hypot(errors[steps[0]], errors[steps[-1]]) if len(steps) > 1 else 0.0
    sampled = moved(end - start, se)
    at, greedy = run.series(f"eval/greedy/{name}")
    greedy_errors = errors | dict(zip(*run.series(f"eval/greedy/{name}_se"), strict=True))
    greedy_se = math.hypot(*(greedy_errors.get(step, math.inf) for step in (at[0], at[-1]))) if len(at) > 1 else 0.0
    return Change(
        name=name,
        start=start,
        end=end,
        change=end - start,
        se=se,
        lowest=lowest,
        lowest_step=lowest_step,
        sampled=sampled,
        dipped=moved(lowest - start, math.hypot(errors[steps[0]], errors[lowest_step])) == words[1] and sampled != words[1],
        greedy=(greedy[0], greedy[-1]) if greedy else None,
        greedy_se=greedy_se,
        greedy_status=moved(greedy[-1] - greedy[0], greedy_se) if greedy else "unchanged",
    )


def _in_words(objectives: list[Change]) -> str:
    improved, mixed, degraded, unchanged = ([c for c in objectives if c.status == status] for status in STATUSES)
    risen = [f"{_names(improved)} improved"] if improved else []
    risen += [f"{_names(mixed)} rose in samples alone"] if mixed else []
    if degraded:
        ends = ", ".join(f"{c.start:.2f} -> {c.end:.2f}" for c in degraded)
        text = f"{_names(degraded)} {'was' if len(degraded) == 1 else 'were'} degraded ({ends})"
        if risen:
            text += f" while {_join(risen)}: cross-objective interference"
        elif unchanged:
            text += " and no other objective improved"
    elif not risen:
        text = "No objective changed beyond noise"
    elif unchanged or mixed:
        text = ", ".join([*risen, *([f"{_names(unchanged)} did not change beyond noise"] if unchanged else [])])
    elif len(improved) == 1:
        text = f"{_names(improved)} improved"
    else:
        number = {2: "Both", 3: "All three", 4: "All four", 5: "All five"}.get(len(improved), f"All {len(improved)}")
        text = f"{number} objectives improved"
    dipped = [c for c in objectives if c.dipped]
    if dipped:
        dips = _join([f"{c.name} dipped to {c.lowest:.2f} at step {c.lowest_step}" for c in dipped])
        text += f"; {dips} before {'it' if len(dipped) == 1 else 'they'} recovered"
    otherwise = [c for c in objectives if c.greedy_status not in ("unchanged", c.sampled)]
    words = {"improved": "rose", "degraded": "fell"}
    greedy = [f"{c.name} {words[c.greedy_status]} ({c.greedy[0]:.2f} -> {c.greedy[1]:.2f})" for c in otherwise]
    return f"{text}.{f' Greedily {_join(greedy)}.' if greedy else ''}"


def _names(changes: list[Change]) -> str:
    return _join([change.name for change in changes])


def _join(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _table(objectives: list[Change], length: Change, compared: bool) -> str:
    """A line of heads, one line for each objective and one for the length. Columns that no line fills are left out."""
    greedily = "greedy start -> end ± 2 se" if compared else "greedy"
    heads = ["objective", "start", "lowest (step)", "end", "change ± 2 se", "verdict", greedily]
    rows = [heads, *(_row(c, 3, compared) for c in objectives), _row(length, 1, compared)]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    words = (heads[0], heads[5], heads[6])  # to the left; numbers stand to the right, so that their digits line up
    padded = [[c.ljust(max(map(len, cells))) if cells[0] in words else c.rjust(max(map(len, cells))) for c in cells] for cells in columns]
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def _row(c: Change, digits: int, compared: bool) -> list[str]:
    def number(value: float, sign: str = "") -> str:
        return f"{value:{sign}.{digits}f}"

    if not compared:
        return [c.name, number(c.start), "", "", "", "", number(c.greedy[0]) if c.greedy else ""]
    greedy = f"{number(c.greedy[0])} -> {number(c.greedy[1])} ± {number(NOISE * c.greedy_se)}" if c.greedy else ""
    change = f"{number(c.change, '+')} ± {number(NOISE * c.se)}"
    return [c.name, number(c.start), f"{number(c.lowest)} ({c.lowest_step})", number(c.end), change, c.status, greedy]
