"""Runs by the dozen, for the commands that compare: started as a user would start them, continued, and made into a table.

Each run is a process of its own, a script with its flags. A results folder holds `runs/` the run folders, `logs/` what they printed,
`stopped/` folders of runs that died before their first checkpoint, `started.json` what code each run was started with.
"""

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
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.curves import plain
from tools.leaderboard import commit, make_table, versions
from tools.runs import load_run
from common.errors import UserError
from common.files import write_whole

FREE = {"out", "resume", "tensorboard", "wandb"}  # flags of a run that may differ from the plan


@dataclass(frozen=True, eq=False)
class Job:
    """One run: its name and folder, the script, and the flags it is to have."""

    name: str
    folder: Path
    script: Path
    argv: list[str]  # without --out
    args: dict  # as args.json will hold them
    steps: int


def make_job(name: str, out: Path, script: Path, argv: Sequence[str], args) -> Job:
    """args: what the script's command line makes of these flags, with the run's seed, which is added to them."""
    held = json.loads(json.dumps({"script": script.stem, **asdict(args)}))
    return Job(name, out / "runs" / name, script, [*argv, "--seed", str(args.seed)], held, args.steps)


def carry_out(
    jobs: Sequence[Job], out: Path, at_once: int, command: str, dry_run: bool, title: str = "Leaderboard", notes: Sequence[str] = ()
) -> None:
    """Train what is missing, print the table of all that is finished, and exit with 1 where a run failed.

    at_once: runs at a time, 0 is `default_jobs`. command: as it can be typed again, which is noted beside the runs. dry_run: say what would
    be started, and touch nothing. title and notes: of the table. Raises UserError as `train_missing` does.
    """
    if dry_run:
        for job in jobs:
            words = ["--resume", str(job.folder)] if (state := _state(job)) == "resume" else [*job.argv, "--out", str(job.folder)]
            print(f"{job.name}: {'finished' if state == 'done' else shlex.join(['python', str(job.script), *words])}")
        print(f"{len(jobs)} runs; nothing was started")
        return
    failed = train_missing(jobs, out, at_once or default_jobs(), command)
    finished = [job.folder for job in jobs if job.name not in failed]
    if finished:
        print(make_table(finished, out, command, failed, title, notes))
    if failed:
        told = f"{', '.join(failed)}; what they printed is in {out / 'logs'}, and the same command tries them again"
        print(f"failed: {told}", file=sys.stderr)
        sys.exit(1)


def default_jobs() -> int:
    """One run per core this process may use; one where there is a GPU, which runs would share."""
    import torch

    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    UserError, before anything is started, when a run of other settings is in the way or another command is at work in `out`.
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
    bar = tqdm(total=steps, initial=done, unit="step", smoothing=0, mininterval=every, desc=out.name)
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
    """Hold the folder. The runs inherit the lock: those of a command that was killed outright hold it until they end. Not on Windows."""
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
            told = f"another command is at work there, or runs that one left behind (processes {who})"
            raise UserError(f"--out {out}: {told}; wait, or end them") from None
        file.truncate(0)
        print(os.getpid(), "run.py", file=file, flush=True)
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
