"""`python run.py watch`: a page that shows runs while they train. It is one HTML file, watch.html with the data in it, written anew
whenever a run has taken a step."""

import html
import json
import math
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Annotated

import tyro

from tools.curves import SMALL
from tools.looks import DASHES, SIGNS, Dash, objective_look, setting_looks
from tools.runs import Run, load_run
from tools.verdict import NOISE, change_of, verdict
from common.errors import UserError, require
from common.files import write_whole
from common.track import Hold

USAGE = "RUN [RUN ...] [--out FILE] [--once]"
TEMPLATE = Path(__file__).with_suffix(".html")
PARTS = Path(__file__).with_name("parts.js")  # what pages share
PER_OBJECTIVE = ("eval/{}", "eval/{}_se", "eval/greedy/{}", "reward/{}", "weight_share/{}", "cov/{}")
OTHERS = ("eval/length", "eval/length_se", "length/mean", "length/threshold", "length/truncated")
OTHERS += ("loss/policy", "loss/kl", "grad/norm", "clip/fraction")
TEXTS = 1_000_000  # bytes of completions, over all runs; beyond it evaluations are left out
TRAINING = 500_000  # the same of training completions and of their prompts, which are others in every step
HEADS = {
    "live": "live, updated {:%H:%M:%S}",
    "finished": "finished, page of {:%Y-%m-%d %H:%M}",
    "once": "as of {:%Y-%m-%d %H:%M:%S}, this page does not follow the run",
    "stopped": "as of {:%Y-%m-%d %H:%M:%S}, no longer watched: the same command goes on",
}


@dataclass
class Args:
    runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]] = ()
    """run folders; one that has not taken its first step yet is waited for"""
    out: str = ""
    """the page, replaced if it exists; default: watch.html in a single run's folder, else ./watch.html"""
    every: float = 5.0
    """seconds between two looks at the runs, and between two reloads of the page"""
    once: bool = False
    """write the page once and end, also where a run goes on"""


def main(argv: list[str]) -> None:
    """a page of runs that follows them while they train: curves, alarm, law against measurement, completions; opened as a file"""
    args = tyro.cli(Args, prog="python run.py watch", description="Follow runs on a page that needs no server.", args=argv)
    follow(args.runs, args.out, args.every, args.once)


def follow(paths: Sequence[str], out: str, every: float, once: bool) -> None:
    """Write the page of the runs in the folders `paths` and keep it up to date until all are finished or Ctrl-C.

    out: the file; "" is watch.html, in the folder of a single run, else in the current one. every: seconds between two looks, and between
    two reloads of the page. once: write it a single time. Raises `UserError` for a folder that is no run (one that has not taken its first
    step yet is waited for, unless `once`), for `every` of 0 or less, and for a file that cannot be written.
    """
    require(bool(paths), "watch: which run? python run.py watch RUN [RUN ...], such as runs/ctwa-s1")
    require(0 < every < math.inf, f"--every {every:g} must be more than 0 seconds")
    folders = [Path(path) for path in paths]
    file = Path(out) if out else folders[0] / "watch.html" if len(folders) == 1 else Path("watch.html")
    before, told, runs = None, "", []
    try:
        while True:
            # taken before reading: a step written meanwhile is seen next time; a run that ends without a word is news, too
            now = [*map(_signature, folders), [run.path for run in runs if gone(run)]]
            waiting = [] if once else [str(folder) for folder in folders if not _begun(folder)]
            if waiting:
                message = f"{', '.join(waiting)}: no step yet; waiting for the first (Ctrl-C ends)"
            elif now != before:
                before, runs = now, [load_run(folder) for folder in folders]
                done = all(finished(run) for run in runs)
                _write(file, page(runs, "finished" if done else "once" if once else "live", every))
                message = file.resolve().as_uri()
            if message != told:
                print(message, flush=True)
                told = message
            if not waiting and (once or done):
                return
            time.sleep(every)
    except KeyboardInterrupt:
        if before is not None:  # the page that is open must not go on reloading for ever
            _write(file, page(runs, "stopped", every))
        print("\nno longer watching; the runs are untouched")


def _signature(folder: Path) -> tuple:
    """Differs whenever there is something new to show: a step, other flags after --resume, the model at the end."""
    files = [file.stat() for file in (folder / "metrics.jsonl", folder / "args.json") if file.exists()]
    return *((stat.st_mtime_ns, stat.st_size) for stat in files), (folder / "model").is_dir()


def _begun(folder: Path) -> bool:
    """False for a run that has not written its first line; True for any other folder, whose mistakes load_run tells."""
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        return not (folder / "args.json").is_file()
    with open(metrics, "rb") as lines:
        return lines.readline().endswith(b"\n")


def _write(file: Path, text: str) -> None:
    """Whole: a reload sees the old page or the new one."""
    try:
        write_whole(file, text)
    except OSError as error:
        raise UserError(f"watch: --out {file} cannot be written ({error.strerror}); name a file in a folder that exists") from None


def finished(run: Run) -> bool:
    """The last step is there, and the model that is exported after it."""
    return run.rows[-1]["step"] >= _steps(run) and (run.path / "model").is_dir()


def held(run: Run) -> bool | None:
    """Whether a process of this machine trains it; None where that cannot be told."""
    try:
        return False if Hold(run.path).locked else None
    except UserError:
        return True


def gone(run: Run) -> bool:
    """Not finished, no process on this machine trains it, and none has written for longer than a few steps take.

    All of these, because a run of another machine, on a shared disk, may hold a lock that is not seen here.
    """
    if finished(run) or held(run) is not False:
        return False
    try:
        return time.time() - (run.path / "metrics.jsonl").stat().st_mtime > max(60.0, 10 * _pace(run))
    except OSError:
        return False


def page(runs: Sequence[Run], state: str, every: float = 5.0) -> str:
    """The page's HTML, with the data in it as JSON. state: a key of HEADS; a page that is live reloads itself `every` so many seconds.

    Completions are whatever a model wrote: `<` is escaped here so that they cannot end the script element, and the page's script puts
    them into text nodes only.
    """
    data = json.dumps(page_data(runs, state, every), allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")  # ASCII: U+2028 too
    head, tail = TEMPLATE.read_text(encoding="utf-8").split("__DATA__")
    tail = tail.replace("__PARTS__", PARTS.read_text(encoding="utf-8"))
    return head.replace("__TITLE__", html.escape(", ".join(run.name for run in runs))) + data + tail


def page_data(runs: Sequence[Run], state: str, every: float = 5.0) -> dict:
    """What the page shows, ready for JSON; numbers have four significant digits. Metrics that a run does not have are left out."""
    names = [run.name for run in runs]
    names = names if len(set(names)) == len(names) else [str(run.path) for run in runs]
    prompts, shown = {}, []
    objectives = list(dict.fromkeys(name for run in runs for name in run.objectives))
    looks = setting_looks([run.args.get("script", "") for run in runs])
    for k, (run, name) in enumerate(zip(runs, names, strict=True)):
        keys = [key.format(objective) for key in PER_OBJECTIVE for objective in run.objectives]
        series = {key: run.series(key) for key in [*keys, *OTHERS]}
        samples, left_out = _fewer(read_samples(run), TEXTS // len(runs))
        training, steps_left_out, cut = _fewer_training(read_samples(run, "training_completions.jsonl"), TRAINING // len(runs))
        shown.append(
            {
                "name": name,
                "look": {"colour": looks[k].colour, "dash": _dashes(DASHES[k % len(DASHES)])},  # no markers on the page
                "objectives": run.objectives,
                "series": {key: [steps, _rounded(values)] for key, (steps, values) in series.items() if steps},
                "changes": {objective: _in_words(run, objective) for objective in run.objectives},
                "law": {objective: [_rounded(row) for row in law_intervals(run, objective)] for objective in run.objectives},
                "samples": [_sample(row, run.objectives, prompts) for row in samples],
                "left_out": left_out,
                "training": [_sample(row, run.objectives, prompts) for row in training],
                "training_left_out": steps_left_out,
                "training_cut": cut,
                "verdict": _verdict(run) if finished(run) else "",
                "table": _table(run) if finished(run) else [],
            }
        )
    progress = [f"{name}: {_progress(run)}" for run, name in zip(runs, names, strict=True)]
    return {
        "state": state,
        "status": " · ".join([HEADS[state].format(datetime.now()), *progress]),
        "every": every,
        "changed": max((run.path / "metrics.jsonl").stat().st_mtime for run in runs),
        "patience": max(60, 10 * max(_pace(run) for run in runs)),  # seconds without a step before the page asks whether the run lives
        "alarms": [f"{name}: {text}" for run, name in zip(runs, names, strict=True) if not finished(run) for text in alarms(run)],
        "last": max(1, *(_steps(run) for run in runs), *(run.rows[-1]["step"] for run in runs)),
        "half": max(_half(run) for run in runs),
        "looks": [{"colour": look.colour, "dash": _dashes(look.dash)} for look in map(objective_look, range(len(objectives)))],
        "small": SMALL,
        "prompts": list(prompts),
        "runs": shown,
    }


# --- what is said of a run ---


def alarms(run: Run) -> list[str]:
    """A sentence for each objective that is being lost now: its last evaluation is below its first beyond NOISE standard errors, and its
    covariance with the update is negative, averaged as the page's line is at its end. Without standard errors there is no alarm."""
    told = []
    for name in run.objectives:
        recent = run.series(f"cov/{name}")[1][-_half(run) - 1 :]
        try:
            change = change_of(run, name)
        except UserError:
            continue
        if change.status == "degraded" and recent and fmean(recent) < 0:
            fall = f"{change.start:.2f} → {change.end:.2f} ({change.change:+.2f} ± {NOISE * change.se:.2f}, {NOISE:g} standard errors)"
            over = f"mean of the last {len(recent)} steps" if len(recent) > 1 else "the last step"
            told.append(f"interference: held-out {name} fell, {fall}, and its covariance with the update is {fmean(recent):+.3f} ({over})")
    return told


def law_intervals(run: Run, name: str) -> list[tuple[int, int, float, float, float]]:
    """For each two neighbouring evaluations: their steps, the change of eval/<name> between them, its standard error (from those of the
    two, taken as independent; 0 where there are none), and the sum of law/<name>, which is the first-order prediction of that change.

    An interval in which a step has no law/<name> is left out: a run of older code, or steps of a single mini-batch.
    """
    steps, values = run.series(f"eval/{name}")
    errors, law = (dict(zip(*run.series(key), strict=True)) for key in (f"eval/{name}_se", f"law/{name}"))
    found = []
    for (a, before), (b, after) in pairwise(zip(steps, values, strict=True)):
        between = range(a + 1, b + 1)
        if all(step in law for step in between):
            se = math.hypot(errors.get(a, 0), errors.get(b, 0))
            found.append((a, b, after - before, se, sum(law[step] for step in between)))
    return found


def _in_words(run: Run, name: str) -> str:
    steps, values = run.series(f"eval/{name}")
    if len(values) < 2:
        return f"{values[0]:.2f} at step {steps[0]}" if values else ""
    try:
        status = change_of(run, name).status
        status = f"{SIGNS[status]} {status}"
    except UserError:  # no standard errors, no status
        status = ""
    return f"{values[0]:.2f} → {values[-1]:.2f} {status}".rstrip()


def _verdict(run: Run) -> str:
    try:
        return verdict(run).text
    except UserError as error:
        return str(error)


def _table(run: Run) -> list[list[str]]:
    """The verdict's numbers, a row of heads and one per objective and for the length; nothing where there is no verdict."""
    try:
        judged = verdict(run)
    except UserError:
        return []
    rows = [["", "verdict", "start", "end", "change ± 2 se", "lowest (step)", "greedy"]]
    for change in (*judged.objectives, judged.length):
        digits = 1 if change is judged.length else 3
        start, end, moved, error, lowest = (
            f"{value:.{digits}f}" for value in (change.start, change.end, abs(change.change), NOISE * change.se, change.lowest)
        )
        status = f"{SIGNS[change.status]} {change.status}" if change.status in SIGNS else change.status
        greedy = " → ".join(f"{value:.{digits}f}" for value in change.greedy) if change.greedy else ""
        sign = "−" if change.change < 0 else "+"
        rows.append([change.name, status, start, end, f"{sign}{moved} ± {error}", f"{lowest} ({change.lowest_step})", greedy])
    return rows


def _dashes(dash: Dash) -> str:
    """As SVG has it, for lines 1.7 wide."""
    return " ".join(f"{1.7 * length:g}" for length in dash[1]) if isinstance(dash, tuple) else ""


def _steps(run: Run) -> int:
    return run.args.get("steps", run.rows[-1]["step"])


def _half(run: Run) -> int:
    return _steps(run) // 25  # of the planned length: the smoothing must not change as the run goes on


def _pace(run: Run) -> float:
    """Seconds per step, evaluations not counted; 0 where nothing was timed."""
    totals = [sum(value for key, value in row.items() if key.startswith("time/") and value) for row in run.rows[-20:]]
    return fmean(total for total in totals if total) if any(totals) else 0.0


def _progress(run: Run) -> str:
    step, steps = run.rows[-1]["step"], _steps(run)
    if finished(run):
        return f"{step} steps"
    if gone(run):
        return f"step {step} of {steps}, not running: its process is gone; --resume {run.path} goes on"
    seconds = round(_pace(run) * (steps - step))
    if seconds > 0 and held(run) is False:  # no time left of what may be dead
        return f"step {step} of {steps}; no process of this machine trains it: it has just stopped, or runs on another machine"
    hours = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}" if seconds >= 3600 else f"{seconds // 60}:{seconds % 60:02}"
    return f"step {step} of {steps}" + (f", about {hours} left" if seconds > 0 else "")


# --- numbers and texts, made fewer ---


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def read_samples(run: Run, name: str = "completions.jsonl") -> list[dict]:
    """The lines of a run's file of completions, none where there is no such file; a half written last line is passed over. Raises
    `UserError` for any other line that is broken."""
    file = run.path / name
    samples = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1] if file.is_file() else [], start=1):
        try:
            samples.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{file} line {number}: not JSON ({error}); delete the line to read the rest") from None
    return samples


def _fewer(samples: list[dict], room: int) -> tuple[list[dict], int]:
    """Leave out every second evaluation, never the first or the last, until the texts take `room` bytes at most; also how many went."""
    sizes: dict[int, int] = {}
    for sample in samples:
        sizes[sample["step"]] = sizes.get(sample["step"], 0) + len(json.dumps(sample["completion"]))
    kept = fewer(sizes, room)
    return [sample for sample in samples if sample["step"] in kept], len(sizes) - len(kept)


def _fewer_training(samples: list[dict], room: int) -> tuple[list[dict], int, int]:
    """The same of training completions, counting their prompts and rewards: how many steps went, and how many completions of the others.
    These go from the end of a step, of which at least one stays, where the first and the last step are too long by themselves."""
    weights, sizes, seen = [], {}, set()
    for sample in samples:
        step, prompt = sample["step"], json.dumps(sample["prompt"])
        own = {key: value for key, value in sample.items() if key not in ("step", "row", "prompt")}
        weights.append(len(json.dumps(own)) + (0 if (step, prompt) in seen else len(prompt)))
        seen.add((step, prompt))
        sizes[step] = sizes.get(step, 0) + weights[-1]
    steps = fewer(sizes, room)
    share = room / len(steps) if sum(sizes[step] for step in steps) > room else math.inf
    used, kept = dict.fromkeys(steps, 0), []
    for sample, weight in zip(samples, weights, strict=True):
        step = sample["step"]
        if step in used and (not used[step] or used[step] + weight <= share):
            kept.append(sample)
        if step in used:
            used[step] += weight  # also of one that is left out: what follows it is, too
    return kept, len(sizes) - len(steps), sum(sample["step"] in used for sample in samples) - len(kept)


def fewer(sizes: dict[int, int], room: int, spared: Collection[int] = ()) -> list[int]:
    """Steps, every second of which is left out, never the first or the last, until their sizes add up to `room` at most or two are left.
    Those that are `spared` stay as long as there are others."""
    kept = list(sizes)
    while len(kept) > 2 and sum(sizes[step] for step in kept) > room:
        inner = [step for step in kept[1:-1] if step not in spared] or kept[1:-1]
        kept = [step for step in kept if step not in inner[::2]]
    return kept


def _sample(row: dict, objectives: list[str], prompts: dict[str, int]) -> list:
    """[step, which of `prompts`, text, rewards]; a prompt that is new is added to `prompts`, so that each stands on the page once."""
    rewards = [row[name] if math.isfinite(row.get(name, math.nan)) else None for name in objectives]
    prompt = row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"])
    return [row["step"], prompts.setdefault(prompt, len(prompts)), row["completion"], rewards]
