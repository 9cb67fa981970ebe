"""`python run.py bench`: train algorithms × seeds as far as they are missing (tools/jobs.py), and make the leaderboard of them
(tools/leaderboard.py)."""

import importlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tools.leaderboard import make_table, slug
from tools.jobs import Job, carry_out, make_job
from tools.scripts import algorithms, nearest
from common.errors import UserError, require

USAGE = "[--algos A B ...] [--from RUN ...]"
OWN = {"seed": "--seeds", "model": "--models", "estimator": "--estimator", "steps": "--steps", "out": "--out", "resume": "--out"}


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
    dry_run: bool = False
    """say what would be started or resumed, and start nothing"""
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
        own_flags = ("algos", "seeds", "models", "estimator", "steps", "jobs", "dry_run")
        if given := [name for name in own_flags if getattr(args, name) != getattr(default, name)]:
            raise UserError(f"--from trains nothing, so --{given[0].replace('_', '-')} has no use; drop it")
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
    carry_out(jobs, out, args.jobs, command, args.dry_run)


def command_line(argv: Sequence[str]) -> str:
    """The command as it can be typed again."""
    return shlex.join(["python", "run.py", "bench", *argv])


# --- what is to be run ---


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
            jobs.append(make_job(run, out, script, argv, replace(args, seed=seed)))
    names = [job.name for job in jobs]
    twice = next((name for name in names if names.count(name) > 1), "")
    require(not twice, f"--algos, --models or --estimator name something twice: two runs would be called {twice}")
    return jobs


def _parsed(args_class: type, name: str, argv: list[str]):
    from tools.command_line import parse  # loads torch: a mistake in bench's own flags is told at once

    try:
        return parse(args_class, name, argv)
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        raise UserError(f"flags after -- go to every script, and {name} does not take these; see python run.py {name} --help") from None
