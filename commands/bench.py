"""`python run.py bench`: train algorithms × seeds as far as they are missing, and make the leaderboard of them (analysis/leaderboard.py).

Training (`plan`, `train_missing`) starts the scripts as a user would, each a process of its own, and keeps to results/NAME:
`runs/` the run folders, `logs/` what they printed, `stopped/` folders of runs that died before their first checkpoint,
`started.json` what code each run was started with.
"""

import importlib
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from analysis.curves import plain
from analysis.leaderboard import commit, make_table, slug, versions
from analysis.runs import load_run
from commands.scripts import algorithms, nearest
from common.errors import UserError, require
from common.files import write_whole

USAGE = "[--algos A B ...] [--from RUN ...]"
OWN = {"seed": "--seeds", "model": "--models", "estimator": "--estimator", "steps": "--steps", "out": "--out", "resume": "--out"}
FREE = {"out", "resume", "tensorboard", "wandb"}  # flags of a run that may differ from the plan


@dataclass
class Args:
    algos: tuple[str, ...] = ("all",)
    """algorithms, or all"""
    seeds: int = 5
    """number of seeds, 1 to this"""
    models: tuple[str, ...] = ()
    """--model of the runs, a table each, such as testbed testbed:robust; default: the scripts' own"""
    estimator: tuple[Literal["reinforce", "grpo"], ...] = ()
    """one or both, a table each; default: the scripts'"""
    steps: int = 0
    """steps of each run; 0 is the scripts' default, or what a --preset after -- says"""
    jobs: int = 0
    """runs at a time, each on one thread; 0 is the number of cores, or 1 where there is a GPU"""
    quick: bool = False
    """linear, ctwa and pama, 2 seeds and 60 steps, in less than ten minutes on two cores; a flag given beside it wins"""
    out: str = "results/bench"
    """results folder; the same command continues one that was stopped and keeps what is finished"""
    runs: Annotated[tuple[str, ...], tyro.conf.arg(name="from", metavar="RUN [RUN ...]")] = ()
    """train nothing: make the table of these run folders, or of all runs in a results folder, and write it to --out"""


def main(argv: list[str]) -> None:
    """the leaderboard: train algorithms × seeds as far as they are missing, or read runs, and write a table with intervals"""
    cut = argv.index("--") if "--" in argv else len(argv)
    own, passed = argv[:cut], argv[cut + 1 :]
    default = Args()
    if "--quick" in own:
        default = Args(algos=("linear", "ctwa", "pama"), seeds=2, steps=60, out="results/quick")
    description = "Train algorithms on several seeds and compare them. What follows -- is passed on to every script."
    args = tyro.cli(Args, prog="python run.py bench", description=description, args=own, default=default)
    known = algorithms()
    if args.runs:
        own_flags = ("algos", "seeds", "models", "estimator", "steps", "jobs")
        if given := [name for name in own_flags if getattr(args, name) != getattr(default, name)]:
            raise UserError(f"--from trains nothing, so --{given[0]} has no use; drop it")
        if args.quick or passed:
            raise UserError(f"--from trains nothing, so {'--quick' if args.quick else 'flags after --'} have no use; drop them")
    elif "--from" in own:
        raise UserError("--from: which runs? python run.py bench --from RUN [RUN ...], such as runs/ctwa-s1")
    if args.jobs < 0:
        raise UserError(f"--jobs {args.jobs} must be at least 1; 0 is one per core")
    if unknown := [name for name in args.algos if name not in known and name != "all"]:
        raise UserError(f"--algos {unknown[0]} does not exist{nearest(unknown[0], [*known, 'all'])}")
    command, out = command_line(argv), Path(args.out)
    if args.runs:
        print(make_table(args.runs, out, command))
        return
    names = list(known) if "all" in args.algos else list(dict.fromkeys(args.algos))
    scripts = {name: (known[name], importlib.import_module(f"algos.{name}").Args) for name in names}
    jobs = plan(scripts, args.seeds, args.models, args.estimator, args.steps, passed, out)
    failed = train_missing(jobs, out, args.jobs or default_jobs(), command)
    finished = [job.folder for job in jobs if job.name not in failed]
    if finished:
        print(make_table(finished, out, command, failed))
    if failed:
        told = f"{', '.join(failed)}; what they printed is in {out / 'logs'}, and the same command tries them again"
        print(f"failed: {told}", file=sys.stderr)
        sys.exit(1)


def command_line(argv: Sequence[str]) -> str:
    """The command as it can be typed again."""
    return shlex.join(["python", "run.py", "bench", *argv])


# --- what is to be run ---


@dataclass(frozen=True, eq=False)
class Job:
    """One run: its name and folder, the script, and the flags it is to have."""

    name: str
    folder: Path
    script: Path
    argv: list[str]  # without --out
    args: dict  # as args.json will hold them
    steps: int


def plan(
    scripts: dict[str, tuple[Path, type]],
    seeds: int,
    models: Sequence[str],
    estimators: Sequence[str],
    steps: int,
    passed: Sequence[str],
    out: Path,
) -> list[Job]:
    """The runs of algorithms × models × estimators × seeds 1 to `seeds`, all algorithms of a seed before the next seed.

    scripts: the file and the `Args` of each algorithm. Empty models or estimators and 0 steps leave the scripts' own, or what a --preset
    in `passed` says. passed: flags for every script. Raises UserError for a flag that a script does not take or that bench sets itself.
    """
    for flag in passed:
        name = flag.split("=")[0].removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in OWN:
            raise UserError(f"-- {flag}: bench sets it for each run; use its {OWN[name]}, before the --")
    require(seeds >= 1, f"--seeds {seeds} must be at least 1: they are numbered from 1")
    require(steps >= 0, f"--steps {steps} must not be negative; 0 is the scripts' own")
    settings = []
    for model in models or ("",):
        for estimator in estimators or ("",):
            chosen = {"--model": model, "--estimator": estimator, "--steps": str(steps or "")}
            flags = [word for flag, value in chosen.items() if value for word in (flag, value)]
            for name, (script, args_class) in scripts.items():
                settings.append((name, script, [*passed, *flags], _parsed(args_class, name, [*passed, *flags])))
    jobs = []
    for seed in range(1, seeds + 1):
        for name, script, argv, args in settings:
            run = f"{name}-{slug(args.model)}-{args.estimator}-s{seed}"
            held = json.loads(json.dumps({"script": name, **asdict(replace(args, seed=seed))}))
            jobs.append(Job(run, out / "runs" / run, script, [*argv, "--seed", str(seed)], held, args.steps))
    names = [job.name for job in jobs]
    twice = next((name for name in names if names.count(name) > 1), "")
    require(not twice, f"--algos, --models or --estimator name something twice: two runs would be called {twice}")
    return jobs


def default_jobs() -> int:
    """One run per core this process may use; one where there is a GPU, which runs would share."""
    import torch

    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parsed(args_class: type, name: str, argv: list[str]):
    from commands.command_line import parse  # loads torch: a mistake in bench's own flags is told at once

    try:
        return parse(args_class, name, argv)
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        raise UserError(f"flags after -- go to every script, and {name} does not take these; see python run.py {name} --help") from None


def _state(job: Job) -> str:
    """new, done, resume or broken. Raises UserError when a run of other settings stands there."""
    if not os.path.lexists(job.folder):
        return "new"
    try:
        saved = json.loads((job.folder / "args.json").read_bytes())
        kept = {key: saved[key] for key in saved.keys() & job.args.keys() - FREE}
    except (OSError, ValueError, AttributeError):
        return "broken"
    differing = sorted(key for key, value in kept.items() if value != job.args[key])
    if differing:
        told = ", ".join(f"--{key.replace('_', '-')} was {plain(saved[key])}, now {plain(job.args[key])}" for key in differing)
        where = job.folder.parents[1]
        raise UserError(f"--out {where} holds {job.name} with other settings ({told}); give another --out, or those settings")
    checkpoints = any(path.name[5:].isdigit() for path in (job.folder / "checkpoints").glob("step_*"))
    try:
        complete = load_run(job.folder).rows[-1]["step"] >= job.steps
    except UserError:
        complete = False
    # killed between its last line and its model, a run is resumed for the model; one whose checkpoints were deleted since is done
    if complete and ((job.folder / "model").is_dir() or not checkpoints):
        return "done"
    return "resume" if checkpoints else "broken"


def train_missing(jobs: Sequence[Job], out: Path, at_once: int, command: str) -> dict[str, str]:
    """Run what is not finished, `at_once` at a time with one thread each; returns what failed, by name, with the end of what it printed.

    Finished runs are kept, one with a checkpoint is resumed, any other folder is moved to `stopped/` and its run started anew. Raises
    UserError, before anything is started, when a run of other settings is in the way or another bench is at work in `out`.
    """
    try:
        for name in ("runs", "logs"):
            (out / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made ({error.strerror}); give a folder that can be written") from error
    with _alone(out) as lock, _on_terminate():
        states = {job.name: _state(job) for job in jobs}
        missing = [job for job in jobs if states[job.name] != "done"]
        for job in missing:
            if states[job.name] == "broken":
                _move_aside(job.folder, out / "stopped")
        resumed = sum(states[job.name] == "resume" for job in missing)
        counts = f"{len(jobs) - len(missing)} finished, {resumed} to resume, {len(missing) - resumed} to start"
        print(f"{len(jobs)} runs: {counts}; {at_once} at a time", flush=True)
        return _train(missing, states, out, at_once, command, lock) if missing else {}


def _train(jobs: list[Job], states: dict[str, str], out: Path, at_once: int, command: str, lock) -> dict[str, str]:
    from tqdm import tqdm

    waiting, running, failed, finished = list(jobs), {}, {}, 0
    before = {job.name: _steps_done(job) for job in jobs}
    reached = dict(before)
    every = 1 if sys.stderr.isatty() else 30  # seconds; a log file is not a screen
    steps, done = sum(job.steps for job in jobs), sum(before.values())
    bar = tqdm(total=steps, initial=done, unit="step", smoothing=0, mininterval=every, desc="bench")
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                _note_start(out / "started.json", job.name, command, at_once)
                flags = ["--resume", str(job.folder)] if states[job.name] == "resume" else [*job.argv, "--out", str(job.folder)]
                with open(out / "logs" / f"{job.name}.log", "wb") as log:
                    running[job] = subprocess.Popen(
                        [sys.executable, str(job.script), *flags],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=os.environ | {"OMP_NUM_THREADS": "1"},
                        pass_fds=(lock.fileno(),) if lock else (),
                    )
                if lock:
                    print(running[job].pid, job.name, file=lock, flush=True)
            time.sleep(0.1)
            for job, process in list(running.items()):
                reached[job.name] = _steps_done(job)
                if process.poll() is None:
                    continue
                del running[job]
                finished += 1
                if process.returncode == 0 and _state(job) == "done":
                    tqdm.write(f"{job.name}: finished ({finished} of {len(jobs)})")
                else:
                    failed[job.name] = _end_of(out / "logs" / f"{job.name}.log") or f"exit code {process.returncode}, nothing printed"
                    tqdm.write(f"{job.name}: FAILED with exit code {process.returncode} ({finished} of {len(jobs)})\n{failed[job.name]}")
                    bar.total -= job.steps - reached[job.name]
            bar.update(sum(reached.values()) - bar.n)
    except KeyboardInterrupt:
        tqdm.write("stopped by Ctrl-C; the same command continues", file=sys.stderr)
        sys.exit(130)
    finally:  # what it started must not go on behind its back
        bar.close()
        for process in running.values():
            process.terminate()
        for process in running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return failed


def _steps_done(job: Job) -> int:
    try:
        return min(max((job.folder / "metrics.jsonl").read_bytes().count(b"\n") - 1, 0), job.steps)
    except OSError:
        return 0


def _end_of(log: Path, lines: int = 6) -> str:
    """The last lines of a log, without progress bars, indented."""
    text = re.split(r"[\r\n]+", log.read_text(errors="replace"))
    kept = [line.rstrip() for line in text if line.strip() and not re.search(r"\d+%\||\d+it \[", line)]
    return "\n".join(f"    {line}" for line in kept[-lines:])


def _move_aside(folder: Path, where: Path) -> None:
    where.mkdir(exist_ok=True)
    number = 1
    while os.path.lexists(target := where / f"{folder.name}-{number}"):
        number += 1
    os.rename(folder, target)
    print(f"{folder} has no checkpoint: moved to {target}, the run starts anew")


@contextmanager
def _alone(out: Path) -> Iterator:
    """Hold the folder. The runs inherit the lock: those of a bench that was killed outright hold it until they end. Not on Windows."""
    try:
        import fcntl
    except ImportError:
        yield None
        return
    with open(out / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            who = ", ".join(line.strip() for line in file)
            told = f"a bench is at work there, or runs that one left behind (processes {who})"
            raise UserError(f"--out {out}: {told}; wait, or end them") from None
        file.truncate(0)
        print(os.getpid(), "bench", file=file, flush=True)
        yield file


@contextmanager
def _on_terminate() -> Iterator[None]:
    """SIGTERM leaves through `finally` as Ctrl-C does."""
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _note_start(file: Path, name: str, command: str, at_once: int) -> None:
    notes = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    entry = {"commit": commit(), "versions": versions(), "machine": platform.machine(), "jobs": at_once, "command": command}
    notes.setdefault(name, []).append(entry)
    write_whole(file, json.dumps(notes, indent=1) + "\n")
