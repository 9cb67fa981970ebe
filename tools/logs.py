"""What explain and explore read: the folder of a run, or what another trainer logged of its
completions, brought into the same form.

A log is a .parquet, .csv or .jsonl file, or a folder of them, with a row per completion and columns
of the prompt, the step, the rewards and, where there is one, what was paid: the advantage or the
total reward. The log-probabilities that a run keeps are not in it, nor held-out prompts: in the
place of evaluations stand the training completions of ten spans of steps.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import require, told_as
from common.runs import Run, load_run, read_rows

READERS = {".parquet": pd.read_parquet, ".csv": pd.read_csv}
READERS[".jsonl"] = partial(pd.read_json, lines=True, dtype=False)
NAMES = {  # of columns, the first that there is
    "step": ("step", "global_step", "iteration"),
    "prompt": ("prompt", "input", "question", "query"),
    "paid": ("advantage", "advantages", "score", "reward", "total_reward"),
    "completion": ("completion", "output", "response"),
}
SPANS = 10  # of steps, at most
SUM = 0.95  # of what was paid: a weighted sum of the rewards that explains as much is what it is


@dataclass(kw_only=True)
class Columns:
    """Columns of another trainer's log, for where their names do not tell."""

    rewards: tuple[str, ...] = ()
    """of another trainer's log, the columns of rewards; default: all of numbers that differ among
    the completions of a prompt"""
    paid: str = ""
    """the column of the advantage, or of the total reward; default: one called so, or the sum of
    the rewards"""
    prompt: str = ""
    """the column of the prompt; default: prompt, input, question or query"""
    step: str = ""
    """the column of the training step; default: step, global_step or iteration"""


@dataclass
class Log(Run):
    """What another trainer logged. Its rows have an evaluation in the middle of each span, without
    greedy completions (NaN)."""

    lines: list[dict]  # as in statistics.jsonl; no lengths, no completion that is fresh
    samples: list[dict]  # as in training_completions.jsonl, of one step of each span
    facts: str  # what was read
    summed: bool  # whether what was paid is the sum by the rows' weights


def load(path: str | Path, columns: Columns) -> Run:
    """A run folder, read by `load_run`, or another trainer's log.

    Raises `UserError` like that, and for a log of which a column is missing or no number, or whose
    prompts have one completion each: it names the flag, and the columns that there are.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob("*.*"))
    files = [file for file in files if file.suffix in READERS]
    require(bool(files) or not path.is_file(), f"{path} is no .parquet, .csv or .jsonl")
    if not files or (path / "args.json").exists():
        run, given = load_run(path), [flag for flag in vars(Columns()) if getattr(columns, flag)]
        require(not given, f"--{', --'.join(given)}: {path} is a run, whose columns are known")
        return run
    with told_as(f"{path}: cannot be read"):
        frame = pd.concat([READERS[file.suffix](file) for file in files], ignore_index=True)
    return _log(path, frame, columns)


def load_statistics(run: Run) -> list[dict]:
    """The lines of a run's `statistics.jsonl`, one per training step, ascending: `rewards` [B][K],
    `advantages`, `lengths`, `drift` and `age` [B], and `gram` [mini-batches][K][K] where the
    algorithm takes the objectives' gradients apart; None is what was not finite. Raises `UserError`
    like `read_rows`."""
    return run.lines if isinstance(run, Log) else read_rows(run.path / "statistics.jsonl")


def load_samples(run: Run) -> list[dict]:
    """The completions whose texts a run kept: `step`, `row` in its batch, `prompt`, `completion`.
    Raises `UserError` like `read_rows`."""
    if isinstance(run, Log):
        return run.samples
    file = run.path / "training_completions.jsonl"
    return read_rows(file) if file.is_file() else []


def beside(run: Run, name: str) -> Path:
    """Where a file of that name belongs that is made of a run: into its folder, or a log's."""
    return (run.path if run.path.is_dir() else run.path.parent) / name


def _tidy(path: Path, frame: pd.DataFrame, given: Columns) -> tuple[pd.DataFrame, list, dict, int]:
    """(rows ordered by step, a prompt's completions side by side and as many for each; the columns
    of rewards; the other columns by what they are; that number of completions)."""
    from rewards import TAKEN  # loads torch: a mistake in the flags is told at once

    there = f"its columns are {', '.join(map(str, frame.columns))}"
    roles = {}
    for flag, known in NAMES.items():
        roles[flag] = getattr(given, flag, "") or next((n for n in known if n in frame), "")
        told = f"{path}: no column is called {' or '.join(known)}; --{flag} says which it is"
        require(bool(roles[flag]) or flag in ("paid", "completion"), f"{told}; {there}")
    step, prompt, _, text = roles.values()
    named = [(flag, name) for flag, name in roles.items() if name]
    for flag, name in [*named, *(("rewards", name) for name in given.rewards)]:
        require(name in frame, f"{path}: --{flag} {name}: no such column; {there}")
        if name in (prompt, text):
            frame[name] = frame[name].map(_text)
        else:
            found = pd.to_numeric(frame[name], errors="coerce").astype(float)
            # a reward may not apply to every completion
            wrong = ~np.isfinite(found) & (frame[name].notna() | (flag != "rewards"))
            wrong = frame[name][wrong | ((flag == "step") & (found % 1 != 0))]
            kind = "whole numbers" if flag == "step" else "numbers"
            told = f"--{flag} {name}: no column of {kind}, but with {wrong.head(1).tolist()} in it"
            require(wrong.empty and found.notna().any(), f"{path}: {told}; {there}")
            frame[name] = found

    # a trainer that updates twice on what it sampled logs it twice
    marks = pd.util.hash_pandas_object(frame.drop(columns=step).astype(str), index=False)
    marks = marks.groupby(frame[step]).sum()
    frame = frame[frame[step].isin(marks.index[marks != marks.shift()])]
    frame = frame.sort_values(step, kind="stable")
    group = frame.groupby([step, prompt], sort=False).ngroup().sort_values(kind="stable")
    counts, number = group.map(group.value_counts()), group.groupby(group).cumcount()
    G = int(counts.mode().max())
    told = f"most completions are alone with their --prompt {prompt} and --step {step}"
    require(G > 1, f"{path}: {told}: there is nothing to compare them with; {there}")
    whole = frame.loc[group.index[number < counts // G * G]].reset_index(drop=True)

    own = whole.select_dtypes(["number", "bool"])
    own = own.drop(columns=[*roles.values(), *NAMES["paid"]], errors="ignore")
    own = own.drop(columns=[n for n in own if own[n].is_unique and own[n].dtype.kind in "iu"])
    # what never differs among a prompt's completions is of the prompt, or of the step
    differ = own.groupby(own.index // G).nunique().gt(1).any() | own.nunique().eq(1)
    names = list(given.rewards or own.columns[differ])
    require(bool(names), f"{path}: no column of rewards found; --rewards says which; {there}")
    whole[names] = whole[names].astype(float).where(np.isfinite)
    own = {name: f"{name}_reward" for name in names if name in TAKEN or name.endswith("_se")}
    return whole.rename(columns=own), [own.get(name, name) for name in names], roles, G


def _log(path: Path, frame: pd.DataFrame, given: Columns) -> Log:
    """A row per completion, made into a row and a line per step."""
    whole, names, roles, G = _tidy(path, frame, given)
    rewards, steps, paid = whole[names], whole[roles["step"]].astype(int), roles["paid"]
    group, of = rewards.index // G, steps[::G].to_numpy()  # of each completion; of each prompt
    pay, parts = whole[paid] if paid else rewards.sum(axis=1), rewards.fillna(0.0)
    pay, parts = (each - each.groupby(group).transform("mean") for each in (pay, parts))
    shares, told = implied_weights(pay.to_numpy().reshape(-1, G), parts.to_numpy())
    shares = shares if told >= SUM else [1 / len(names)] * len(names)

    prompts = rewards.groupby(group)
    cov = (rewards - prompts.transform("mean")).mul(pay, axis=0).groupby(steps).mean()
    tables = {"reward": rewards.groupby(steps).mean(), "cov": cov, "cov_active": cov}
    tables["signal"] = prompts.nunique().gt(1).groupby(of).mean()
    tables["weight_share"] = pd.DataFrame([shares] * len(cov), cov.index, names)
    rows, lines, samples = [{"step": int(cov.index[0]) - 1}], [], []
    for step, own in whole.groupby(steps):
        rows.append({"step": step})
        for key, table in tables.items():
            pairs = zip(names, _known(table.loc[step]), strict=True)
            rows[-1] |= {f"{key}/{name}": value for name, value in pairs}
        line = {"rewards": [_known(row) for row in own[names].to_numpy()], "age": [0] * len(own)}
        line |= {"lengths": [None] * len(own), "drift": [0.0] * len(own)}
        lines.append({"step": step, "advantages": pay[own.index].round(6).tolist()} | line)
    means = prompts.mean()
    for span in np.array_split(np.arange(len(lines)), min(SPANS, len(lines), len(of) // 2 or 1)):
        middle, own = (span[0] + span[-1]) // 2, means[np.isin(of, cov.index[span])]
        empty = ", ".join(own.columns[own.isna().all()])
        told_of = f"steps {cov.index[span[0]]} to {cov.index[span[-1]]} have no {empty}"
        require(not empty, f"{path}: {told_of}; leave it out of --rewards")
        errors = own.sem().fillna(means.std()).fillna(0.0)  # of a single prompt, or of the only one
        row = rows[middle]  # what its step began with, after as many updates
        row["eval/greedy/length_se"] = np.nan
        for name in names:
            row |= {f"eval/{name}": float(own[name].mean()), f"eval/{name}_se": errors[name]}
            row |= {f"eval/greedy/{name}{end}": np.nan for end in ("", "_se")}
        if roles["completion"]:
            kept = whole.loc[steps == cov.index[middle], [roles["prompt"], roles["completion"]]]
            kept = kept.set_axis(["prompt", "completion"], axis=1).assign(row=range(len(kept)))
            samples += kept.assign(step=lines[middle]["step"]).to_dict("records")

    facts = f"{len(lines)} steps, {len(of)} prompts × {G} completions"
    there = frame[roles["step"]]
    if more := there.nunique() - len(lines):
        facts += f"; {more} more steps repeat the one before, or have no whole prompt"
    if more := there.isin(cov.index).sum() - len(whole):
        facts += f"; {more} completions left out, of prompts that have not {G}"
    facts += f"; paid: {paid or 'not logged, so the sum of the rewards is taken'}, "
    weighed = " + ".join(f"{share:.2f} {name}" for name, share in zip(names, shares, strict=True))
    facts += f"of {weighed}" if told >= SUM else "which is no weighted sum of these rewards"
    args = {"script": "another trainer", "objectives": names, "rewards": names, "completions": G}
    args |= {"estimator": "grpo", "mini_batches": 1, "epochs": 1, "lr": 0.0, "steps": step}
    args |= dict.fromkeys(("model", "dataset", "seed"), "not logged")
    return Log(path, args, rows, lines, samples, facts, bool(told >= SUM))


def implied_weights(paid: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, float]:
    """The weighted sum of rewards that is nearest to what was paid, up to a factor of its own for
    each prompt, as dividing by a standard deviation is: (weights [K], their sizes adding up to 1;
    the share of that sum's variance that what was paid tells, 1 where it is that sum).

    paid [P, G], rewards [P*G, K], both less their means over the G completions of a prompt. A
    reward that never differs within a prompt has the weight 0.
    """
    units = np.linalg.norm(rewards, axis=0)
    units[units < 1e-9] = np.inf
    basis, scale, turn = np.linalg.svd(rewards / units, full_matrices=False)
    kept = scale > 1e-6
    lengths = np.linalg.norm(paid, axis=1, keepdims=True)
    unit = paid / np.where(lengths > 1e-9, lengths, np.inf)
    # of the sums of variance 1, that of the largest part along what was paid
    along = np.einsum("pg,pgk->pk", unit, basis[:, kept].reshape(*paid.shape, -1))
    told, ways = np.linalg.eigh(along.T @ along)
    if not kept.any() or told[-1] < 1e-9:
        return np.zeros(len(units)), 0.0
    weights = (ways[:, -1] / scale[kept]) @ turn[kept] * np.sign(along.sum(0) @ ways[:, -1])
    weights = weights / units
    return weights / abs(weights).sum(), told[-1]


def _known(numbers) -> list[float | None]:
    """Numbers as JSON has them: None is none."""
    return [None if np.isnan(number) else float(number) for number in numbers]


def _text(cell) -> str:
    """A prompt or completion; of a conversation, its JSON."""
    return cell if isinstance(cell, str) else json.dumps(cell, default=lambda own: own.tolist())
