"""The leaderboard: runs, anybody's, read into a table with intervals. Nothing is trained.

Of the results folder of a bench, `tools/jobs.py` trains what is missing; `runs/` has the run folders and `started.json` what code each
run was started with.
"""

import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import numpy as np

from tools.curves import BOOKKEEPING, group_settings, held_out_limits, short_fact, write_figure
from tools.looks import LABEL, NEUTRAL, START, STYLE, Key, draw_keys, inches, setting_looks
from tools.runs import Run, load_run
from tools.statistics import hypervolume, iqm, probability_of_improvement, stratified_bootstrap
from tools.verdict import NOISE, verdict
from common.errors import UserError, require
from common.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
BASELINE = "linear"
LAST = 3  # evaluations whose mean is a run's end
# Runs that differ in one of these do not compare: what is measured, on what, or after how long.
SETTING = ("model", "dataset", "estimator", "steps", "eval_split")
MEASURE = ("rewards", "answer_check", "eval_prompts", "temperature", "max_new_tokens", "prompt_suffix")
PACKAGES = ("torch", "transformers", "numpy", "vllm")
CODE = ("algos", "common", "integrations", "prompts", "rewards", "testbed")  # what decides the numbers of a run

# --- reading runs ---


def load_finished(paths: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """The finished runs among run folders, and a line about each of the others. A folder of `bench` stands for all runs in it.

    Raises UserError for a folder given by itself that is no run or cannot be read, and where no run is finished.
    """
    folders, among_others = [], set()
    for path in map(Path, paths):
        inside = sorted(file.parent for file in path.glob("runs/*/args.json"))
        folders += [path] if (path / "args.json").exists() or not inside else inside
        among_others |= {folder.resolve() for folder in inside}
    runs, left_out = [], []
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        try:
            run = load_run(os.path.relpath(folder))
        except UserError as error:  # of a bench at work: a run that has just begun, or that failed at once
            if folder not in among_others:
                raise
            left_out.append(str(error).removeprefix("RUN: "))
            continue
        at, steps = run.rows[-1]["step"], run.args.get("steps", run.rows[-1]["step"])
        if at < steps:
            left_out.append(f"{run.path}: at step {at} of {steps}, not finished")
        elif short := [name for name in run.objectives if len(run.series(f"eval/{name}")[0]) < 2]:
            left_out.append(f"{run.path}: {short[0]} was evaluated fewer than two times")
        else:
            runs.append(run)
    require(bool(runs), f"RUN: no finished run among the {len(left_out)} given ({left_out[0] if left_out else 'none'})")
    return runs, left_out


def with_mean_end(run: Run) -> Run:
    """The run as two evaluations: its first, and the mean of its last three (of all but the first where it has fewer).

    The standard error of the mean is the mean of the standard errors: evaluations are of the same prompts, so averaging three takes away
    the noise of sampling but not that of which prompts were drawn, and errors are taken too large rather than too small.
    """
    rows: list[dict] = [{"step": 0}, {"step": run.rows[-1]["step"]}]
    for name in (*run.objectives, "length"):
        for key in (f"eval/{name}", f"eval/{name}_se", f"eval/greedy/{name}", f"eval/greedy/{name}_se"):
            values = run.series(key)[1]
            if values:
                rows[0][key], rows[1][key] = values[0], fmean(values[1:][-LAST:] or values)
    return Run(run.path, run.args, rows)


def seconds_per_step(run: Run) -> float | None:
    """Median over the steps of the sum of `time/*`, which leaves out evaluating and saving; None where nothing was timed."""
    sums = [sum(v for k, v in row.items() if k.startswith("time/") and v is not None) for row in run.rows if row["step"] > 0]
    return median(sums) if any(sums) else None


# --- the leaderboard ---


def leaderboard(runs: Sequence[Run]) -> dict:
    """The table of runs, as JSON can hold it: `sections` of runs that compare, each with a row per algorithm, best worst-objective change
    first, and `overall`, which pools the sections where there are several. `DEFINITIONS` says what each number is.

    Raises UserError when a seed stands twice in a row (it would count as a second repetition) or a run has no standard errors.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        facts = [run.args.get(key) for key in ("objectives", *SETTING, *MEASURE)]
        groups.setdefault(json.dumps(facts), []).append(run)
    differing = [k for k in MEASURE if len({json.dumps(run.args.get(k)) for run in runs}) > 1]
    sections = [_section(group, differing) for group in groups.values()]
    # over all sections a setting is what is left of the flags without those that tell sections apart
    anywhere = [replace(run, args={k: v for k, v in run.args.items() if k not in (*SETTING, *MEASURE)}) for run in runs]
    labels = {str(run.path): label for label, group in group_settings(anywhere) for run in group}
    return {"sections": sections, "overall": _overall(sections, labels)}


def _section(runs: list[Run], differing: list[str]) -> dict:
    first = runs[0]
    titles = [short_fact(first, "model"), short_fact(first, "dataset"), short_fact(first, "estimator"), f"{first.args.get('steps')} steps"]
    titles += [f"eval split {first.args.get('eval_split')}", *(f"{key} {first.args.get(key)}" for key in differing)]
    groups = [(label, sorted(group, key=lambda run: run.args.get("seed", 0))) for label, group in group_settings(runs)]
    rows = [_row(label, group) for label, group in groups]
    baselines = [(group, row) for (_, group), row in zip(groups, rows, strict=True) if row["script"] == BASELINE]
    for (_, group), row in zip(groups, rows, strict=True):
        if baselines:
            _, base = min(baselines, key=lambda pair: _flags_apart(pair[0][0].args, group[0].args))
            _compare(row, base)
    rows.sort(key=lambda row: -row["worst_change"]["value"])
    args = {key: first.args.get(key) for key in ("objectives", *SETTING, *MEASURE)}
    return {"title": " · ".join(titles), "args": args, "objectives": first.objectives, "rows": rows}


def _flags_apart(left: dict, right: dict) -> int:
    return sum(left.get(key) != right.get(key) for key in (left.keys() | right.keys()) - BOOKKEEPING)


def _row(label: str, runs: list[Run]) -> dict:
    seeds = [run.args.get("seed") for run in runs]
    for a, b in pairwise(runs):
        if a.args.get("seed") == b.args.get("seed"):
            raise UserError(f"RUN: {a.path} and {b.path} are the same setting with the same seed; give one of them")
    ended = [with_mean_end(run) for run in runs]
    verdicts = [verdict(run) for run in ended]
    names = runs[0].objectives
    changes = [{change.name: change for change in v.objectives} for v in verdicts]
    interfering = [change for change, v in zip(changes, verdicts, strict=True) if v.interference]
    worst = [min(change.values(), key=lambda c: c.change) for change in changes]
    times = [t for t in map(seconds_per_step, runs) if t is not None]
    return {
        "algorithm": label,
        "script": runs[0].args.get("script", ""),
        "seeds": seeds,
        "runs": [str(run.path) for run in runs],
        "objectives": {
            name: {"start": float(iqm([c[name].start for c in changes])), **_estimate([c[name].end for c in changes])} for name in names
        },
        "worst_change": _estimate([c.change for c in worst]) | {"objective_per_seed": [c.name for c in worst]},
        "interference": {
            "runs": len(interfering),
            "of": len(runs),
            "degraded": {name: sum(c[name].sampled == "degraded" for c in interfering) for name in names},
        },
        "in_samples_alone": {name: sum(c[name].status == "mixed" for c in changes) for name in names},
        "hypervolume": _estimate([hypervolume([[c[name].end for name in names]], np.zeros(len(names))) for c in changes]),
        "length": {"start": float(iqm([v.length.start for v in verdicts])), "end": float(iqm([v.length.end for v in verdicts]))},
        "seconds_per_step": median(times) if times else None,
        "better_than_linear": None,
        "time_relative_to_linear": None,
    }


def _estimate(values: list[float]) -> dict:
    """IQM over the seeds with its interval, which one seed does not have."""
    interval = list(stratified_bootstrap([values], iqm)) if len(values) > 1 else None
    return {"value": float(iqm(values)), "interval": interval, "per_seed": values}


def _compare(row: dict, base: dict) -> None:
    if row["seconds_per_step"] and base["seconds_per_step"]:
        row["time_relative_to_linear"] = row["seconds_per_step"] / base["seconds_per_step"]
    if row is not base:
        pair = (row["worst_change"]["per_seed"], base["worst_change"]["per_seed"])
        interval = list(stratified_bootstrap(pair, probability_of_improvement)) if max(map(len, pair)) > 1 else None
        row["better_than_linear"] = {"value": float(probability_of_improvement(*pair)), "interval": interval}


def _overall(sections: list[dict], labels: dict[str, str]) -> list[dict]:
    """Algorithms over all sections: seeds are resampled within their section. Empty unless several sections measure the same objectives.

    labels: the name of each run's setting, by the run's path.
    """
    if len(sections) < 2 or len({json.dumps([s["objectives"], *(s["args"][key] for key in MEASURE)]) for s in sections}) > 1:
        return []
    rows = []
    for name in dict.fromkeys(labels[row["runs"][0]] for section in sections for row in section["rows"]):
        own = [row for section in sections for row in section["rows"] if labels[row["runs"][0]] == name]
        strata = [row["worst_change"]["per_seed"] for row in own]
        better = [row["better_than_linear"]["value"] for row in own if row["better_than_linear"]]
        interval = stratified_bootstrap(strata, lambda *s: iqm(np.concatenate(s, axis=-1))) if max(map(len, strata)) > 1 else None
        rows.append(
            {
                "algorithm": name,
                "settings": len(own),
                "worst_change": {"value": float(iqm(np.concatenate(strata))), "interval": list(interval) if interval else None},
                "interference": {key: sum(row["interference"][key] for row in own) for key in ("runs", "of")},
                "better_than_linear": fmean(better) if better else None,
            }
        )
    return sorted(rows, key=lambda row: (-row["settings"], -row["worst_change"]["value"]))


DEFINITIONS = (
    "Objectives are measured on held-out prompts, sampled. Start: the evaluation before the first step. End: the mean of the last "
    f"{LAST} evaluations (of all after the start where a run has fewer), never the best one. Every value is the interquartile mean over "
    "the seeds (without the lowest and the highest quarter, floor(n/4) on either side, so with up to three seeds the mean).",
    "[low, high]: 95% percentile interval of that mean, stratified bootstrap, 10,000 resamples of the seeds (Agarwal et al., 2021). It is "
    "of the seeds alone, not of the prompts, and with five seeds or fewer too narrow; a single seed has none.",
    "Worst change: each run's smallest end - start over its objectives. The rows stand in its order.",
    f"Interference: runs in which an objective was degraded while another improved, each beyond {NOISE:g} standard errors of the change "
    "(tools/verdict.py, with the end as above); in parentheses which were degraded, and in how many of these runs.",
    "Hypervolume: of a run's end, which is the product of its objectives, from the fixed point (0, ..., 0). From the start, every run that "
    "degrades an objective would have none, however little or much it lost. An objective that ends at 0 or below leaves none here, too.",
    "P(better than linear): the share of pairs of a run of the row and a run of linear in which the row's worst change is larger, ties "
    "half; among several settings of linear, the one with the nearest flags.",
    "Time: the median over the steps of the sum of time/* (sampling, rewards, update, weights), then over the seeds, relative to linear. "
    "Runs side by side slow each other down, and shorter completions take less: study/step_time.py measures on equal work.",
)

# --- the table as text and as pictures ---


def markdown(board: dict) -> str:
    """`table.md`: a table per section, one over all of them, and the footer with the definitions and where the runs come from."""
    parts = [f"# {board['title']}"] if board.get("title") else []
    parts += board.get("notes", [])
    for section in board["sections"]:
        parts += [f"## {section['title']}", table(heads(section), [cells(section, row) for row in section["rows"]])]
        parts += _in_samples_alone(section["rows"])
    if board["overall"]:
        names = ["algorithm", "settings", "worst change", "interference", "P(better than linear)"]
        rows = [
            [
                row["algorithm"],
                str(row["settings"]),
                _with_interval(row["worst_change"], "+"),
                f"{row['interference']['runs']}/{row['interference']['of']}",
                "–" if row["better_than_linear"] is None else f"{row['better_than_linear']:.2f}",
            ]
            for row in board["overall"]
        ]
        words = "Seeds of all settings pooled, and resampled within their setting; the probability is the mean over the settings."
        parts += ["## All settings", table(names, rows), words]
    items = [*DEFINITIONS, *board.get("provenance", [])]
    parts += ["## What the numbers are", "\n".join(f"- {item}" for item in items)]
    return "\n\n".join(parts) + "\n"


def _in_samples_alone(rows: list[dict]) -> list[str]:
    """A paragraph about what the table, which is of samples, shows as gained and greedy decoding lost; none where there is none."""
    told = [
        f"`{row['algorithm']}` {name} in {count} of {len(row['seeds'])}"
        for row in rows
        for name, count in row["in_samples_alone"].items()
        if count
    ]
    return [f"Improved in samples, degraded under greedy decoding (runs): {', '.join(told)}."] if told else []


def heads(section: dict) -> list[str]:
    """The heads of a section's table; the last one is the time."""
    return [
        *("algorithm", "seeds", *section["objectives"], "worst change", "interference", "hypervolume"),
        *("P(better than linear)", "tokens", "time"),
    ]


def cells(section: dict, row: dict) -> list[str]:
    """A row of a section under its `heads`."""
    found = row["interference"]
    lost = ", ".join(f"{name} {count}" for name, count in found["degraded"].items() if count)
    better, relative = row["better_than_linear"], row["time_relative_to_linear"]
    return [
        f"`{row['algorithm']}`",
        str(len(row["seeds"])),
        *(f"{value['start']:.2f} → {_with_interval(value)}" for value in row["objectives"].values()),
        _with_interval(row["worst_change"], "+"),
        f"{found['runs']}/{found['of']}" + (f" ({lost})" if lost else ""),
        _with_interval(row["hypervolume"]),
        _with_interval(better) if better else "–",
        f"{row['length']['start']:.0f} → {row['length']['end']:.0f}",
        f"{relative:.2f}" if relative else "–",
    ]


def _with_interval(value: dict, sign: str = "") -> str:
    interval = value["interval"]
    return f"{value['value']:{sign}.2f}" + (f" [{interval[0]:{sign}.2f}, {interval[1]:{sign}.2f}]" if interval else "")


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def draw_ends(section: dict, out: Path) -> None:
    """Where each algorithm ends, with its interval and its seeds, a panel per objective and one for the worst change. `out` ends in .png
    or .pdf and is replaced whole. Looks as in tools/looks.py."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, names = section["rows"], section["objectives"]
    looks = setting_looks([row["script"] for row in rows])
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        label = max(inches(row["algorithm"], STYLE["ytick.labelsize"]) for row in rows) + 0.25  # the names beside the first panel
        panel, between, top, below = 1.75, 0.25, 0.8, 0.5
        height = max(0.19 * len(rows) + 0.15, 0.8)
        size = (label + (len(names) + 1) * (panel + between), top + height + below)
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        figure.text(0.1 / size[0], 1 - 0.1 / size[1], section["title"], va="top", color="#444444", fontsize=LABEL)
        keys = [
            Key("mean over the seeds without their extreme quarters", NEUTRAL._replace(marker="o"), "point"),
            Key("each seed", NEUTRAL, "stroke"),
        ]
        if any(value["interval"] for row in rows for value in row["objectives"].values()):
            keys.append(Key("95% interval of the mean", NEUTRAL, "bar"))
        draw_keys(figure, 0.1, 0.32, [*keys, Key("start", kind="start")])
        for k, name in enumerate([*names, "worst change"]):
            left = label + k * (panel + between)
            axes = figure.add_axes((left / size[0], below / size[1], panel / size[0], height / size[1]))
            axes.set_title(name, pad=5)
            values = [row["objectives"][name] if k < len(names) else row["worst_change"] for row in rows]
            starts = {value["start"] for value in values} if k < len(names) else {0.0}
            for start in starts:
                axes.axvline(start, **START)
            for y, (value, look) in enumerate(zip(values, looks, strict=True)):
                if value["interval"]:
                    axes.plot(value["interval"], [y, y], color=look.colour, linewidth=4, alpha=0.35, solid_capstyle="butt")
                seeds = value["per_seed"]
                axes.plot(seeds, [y] * len(seeds), "|", color=look.colour, markersize=6, markeredgewidth=0.8)
                axes.plot(
                    [value["value"]],
                    [y],
                    color=look.colour,
                    linestyle="",
                    clip_on=False,
                    **look.points | {"markersize": 5 if look.marker != "." else 8},
                )
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_yticks(range(len(rows)), [row["algorithm"] for row in rows] if k == 0 else [""] * len(rows))
            axes.tick_params(length=2.5, pad=2)
            axes.tick_params(axis="y", length=0)
            everything = [v for value in values for v in (*value["per_seed"], *(value["interval"] or ()))]
            low, high = min(*everything, *starts), max(*everything, *starts)
            if k < len(names):
                low, high = held_out_limits([[low, high]])
            margin = 0.04 * (high - low) or 1
            axes.set_xlim(low - margin, high + margin)
            axes.locator_params(axis="x", nbins=5)
            axes.set_xlabel("end" if k < len(names) else "end - start", labelpad=2)
        write_figure(figure, out)


def write_board(board: dict, out: Path) -> list[Path]:
    """Write table.md, table.json and a picture per section, PNG and PDF, into the folder `out`, each whole; returns the files."""
    files = [out / "table.md", out / "table.json"]
    write_whole(files[0], markdown(board))
    write_whole(files[1], json.dumps({**board, "definitions": DEFINITIONS}, indent=1) + "\n")
    for number, section in enumerate(board["sections"], 1):
        for ending in ("png", "pdf"):
            which = f"-{number}-{slug(' '.join(section['title'].split(' · ')[:3]))}" if len(board["sections"]) > 1 else ""
            name = f"ends{which}.{ending}"
            draw_ends(section, out / name)
            files.append(out / name)
    return files


def slug(text: str) -> str:
    """The text as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")


# --- where numbers come from ---


def commit() -> str:
    """The commit of this repository, and whether the code that trains differs from it."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--", *CODE], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git repository)"
    return f"{head} with uncommitted changes in {', '.join(CODE)}" if changed.strip() else head


def versions() -> str:
    """Python and the packages that decide the numbers."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _starts(run: Run) -> list[dict]:
    """What the bench noted about a run: an entry for each time that it was started or resumed; none for a run of another origin."""
    folder = run.path.resolve()
    file = folder.parent.parent / "started.json"
    return json.loads(file.read_text(encoding="utf-8")).get(folder.name, []) if file.is_file() else []


def provenance(runs: Sequence[Run], command: str) -> list[str]:
    """Lines for the footer: the command, the seeds, and the code and packages of the runs, as far as a bench noted them."""
    noted, without = {}, 0
    for run in runs:
        starts = _starts(run)
        without += not starts
        for start in {(s["commit"], s["versions"], s["jobs"]): None for s in starts}:
            noted[start] = noted.get(start, 0) + 1
    lines = [f"Command: `{command}`"]
    lines.append(f"Seeds: {', '.join(map(str, sorted({run.args.get('seed', 0) for run in runs})))}; {len(runs)} runs.")
    for (code, packages, jobs), count in noted.items():
        lines.append(f"Trained: {count} runs at commit {code}, {packages}, {jobs} at a time with one thread each.")
    if len(noted) > 1:
        lines.append("**Not all of the same code, packages or load**: a run that was resumed counts in each of these lines.")
    if without:
        lines.append(f"Trained elsewhere: {without} runs, whose code and packages are not noted.")
    return [*lines, f"Table made at commit {commit()}, {versions()}."]


QUICK = "**This is the quick form**: few algorithms, few seeds and fewer steps than a full run. It shows what to expect; it is no ranking."


def make_table(
    paths: Sequence[str | Path],
    out: Path,
    command: str,
    failed: dict[str, str] | None = None,
    title: str = "Leaderboard",
    notes: Sequence[str] = (),
) -> str:
    """Read runs, write the table and its pictures into `out`, and return the table with the names of the files. notes: above the table."""
    runs, left_out = load_finished(paths)
    quick = any("--quick" in shlex.split(start["command"]) for run in runs for start in _starts(run))
    notes = [*notes, *([QUICK] if quick else [])]
    if any(run.args.get("eval_split") == "tune" for run in runs):
        notes.append("**Tuning prompts**: to choose hyperparameters by; report `test`.")
    notes += [f"Failed, not in the table: {name}." for name in failed or {}] + [f"Left out: {line}." for line in left_out]
    board = leaderboard(runs) | {"title": title, "quick": quick, "notes": notes, "failed": failed or {}}
    board["provenance"] = provenance(runs, command)
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = write_board(board, out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); make room there or give another folder") from error
    return f"{markdown(board)}\nwrote {', '.join(map(str, files))}"
