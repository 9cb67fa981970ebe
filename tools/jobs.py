"""Runs by the dozen, for the commands that compare: started as a user would start them, continued,
and made into a table.

Each run is a process of its own, a script with its flags. A results folder holds `runs/` the run
folders, `logs/` what they printed, after a line on the code that they were started with, and
`stopped/` folders of runs that died before their first checkpoint.
"""

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from itertools import chain, product
from pathlib import Path

from common.errors import UserError, require
from tools.leaderboard import code, load_finished, make_table
from tools.plot import BOOKKEEPING
from tools.scripts import algorithms

Jobs = dict[Path, list[str]]  # a run's folder, and the words that start it but for --out


def plan(
    names: Iterable[str], options: Sequence, fixed: Sequence[str], seeds: int, out: Path
) -> Jobs:
    """The runs of algorithms × every combination of options × seeds 1 to `seeds`, all settings of a
    seed before the next. options: of each flag, the words of its values. fixed: words of all runs.

    A run in `out` with the same flags, whatever its name, is the run. Raises UserError for flags
    that each run has of its own, for values that cannot be meant, where two runs would be one, and
    where one of other flags is in the way; SystemExit for what a script does not take.
    """
    from common.flags import check  # these load torch
    from common.launch import parse

    require(seeds >= 1, f"--seeds {seeds} must be at least 1: they are numbered from 1")
    known = {file.parent: json.loads(file.read_text()) for file in out.glob("runs/*/args.json")}
    jobs = {}
    for seed, choice, name in product(range(1, seeds + 1), product(*options), names):
        chosen = list(chain(*choice))
        words = ["--seed", str(seed), *fixed, *chosen]
        args = parse(import_module(f"algos.{name}").Args, name, words)
        told = "--seed, --out and --resume: each run has its own; --seeds says how many"
        require(args.seed == seed and not (args.out or args.resume), told)
        check(args, count=1)
        learning = {k: v for k, v in asdict(args).items() if k not in BOOKKEEPING}
        flags = json.loads(json.dumps({"script": name, "seed": seed} | learning))
        # a run of an older version may lack some: it had their defaults
        default = json.loads(json.dumps(asdict(import_module(f"algos.{name}").Args())))
        same = [f for f, had in known.items() if flags.items() <= (default | had).items()]
        label = re.sub(r"(?<=[a-z]) (?=\d)", "", " ".join([name, *chosen, f"s{seed}"]))
        label = re.sub(r" -(?=[\d.])", " minus", label)
        folder = (same or [out / "runs" / re.sub(r"[^\w.]+", "-", label)])[0]
        told = f"{folder} would be two runs: leave a value out, or give another --out"
        require(folder not in jobs and (bool(same) or folder not in known), told)
        known[folder] = flags
        jobs[folder] = [str(algorithms()[name]), *words]
    return jobs


def carry_out(
    args, names: Iterable[str], options: Sequence, fixed: Sequence[str], note: str
) -> None:
    """Train what is missing of a `plan`, print the table of all runs in `args.out`, and exit with 1
    where a run failed.

    args: a command's: `seeds`, `out`, `dry_run`, and `jobs` at a time; 0 is one per core that this
    process may use, or one where there is a GPU, which they would share. note: below the table.
    Raises UserError as `plan` and `train_missing` do.
    """
    import torch

    out = Path(args.out)
    require(args.jobs >= 0, f"--jobs {args.jobs} must be at least 1; 0 is one per core")
    jobs = plan(names, options, fixed, args.seeds, out)
    if args.dry_run:
        for folder, words in jobs.items():
            print(f"{folder.name}: {shlex.join(_missing(folder, words)) or 'finished'}")
        return
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))  # not on a Mac
    cores = 1 if torch.cuda.is_available() else len(affinity(0))
    failed = train_missing(jobs, out, args.jobs or cores)
    print(make_table([out], out, note))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the same command tries again")


def _missing(folder: Path, words: list[str]) -> list[str]:
    """The command that starts a run or resumes it; empty where it is finished."""
    checkpoints = any(folder.glob("checkpoints/step_" + 6 * "[0-9]"))
    with suppress(UserError):  # not finished
        load_finished([folder])
        # killed between its last line and its model, a run is resumed for the model; one whose
        # checkpoints were deleted since is finished
        if (folder / "model").exists() or not checkpoints:
            return []
    how = [words[0], "--resume"] if checkpoints else [*words, "--out"]
    return [sys.executable, *how, str(folder)]


def train_missing(jobs: Jobs, out: Path, at_once: int) -> list[str]:
    """Run what is not finished, `at_once` at a time with one thread each; returns what failed.

    Finished runs are kept, one with a checkpoint is resumed, any other folder is moved to
    `stopped/` and its run started anew. Stopped by Ctrl-C or SIGTERM, it waits until its runs have
    saved themselves. Raises UserError where `out` cannot be written or another command works there.
    """
    from tqdm import tqdm

    try:
        for name in ("runs", "logs", "stopped"):
            (out / name).mkdir(parents=True, exist_ok=True)
        lock = open(out / ".lock", "w")  # noqa: SIM115  the runs inherit it
        os.set_inheritable(lock.fileno(), True)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        told = "if another command, or runs that one left, are at work there, wait or end them"
        raise UserError(f"--out {out}: {error.strerror}; {told}: fuser {out}/.lock") from None
    commands = {folder: _missing(folder, words) for folder, words in jobs.items()}
    running, failed = [], []

    def train(folder: Path) -> None:
        if folder.exists() and "--out" in commands[folder]:
            folder.rename(out / "stopped" / f"{folder.name}-{time.time_ns()}")
        with open(out / "logs" / f"{folder.name}.log", "a") as log:
            print(code(), file=log, flush=True)
            how = {"stdout": log, "stderr": log, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
            process = subprocess.Popen(commands[folder], close_fds=False, **how)  # for the lock
        running.append(process)
        process.wait()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves through `finally`
    pool = ThreadPoolExecutor(at_once)
    try:
        futures = {pool.submit(train, folder): folder for folder in jobs if commands[folder]}
        for future in tqdm(as_completed(futures), total=len(futures), disable=not futures):
            folder = futures[future]
            future.result()  # an error of starting it is raised here
            if _missing(folder, jobs[folder]):
                log = out / "logs" / f"{folder.name}.log"
                tqdm.write(f"{folder.name} failed: {log.read_text().splitlines()[-1]} ({log})")
                failed.append(folder.name)
    finally:  # what it started must not go on behind its back
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        pool.shutdown()
        lock.close()
    return failed
