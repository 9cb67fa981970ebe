"""`python run.py bench`: train algorithms × seeds as far as they are missing (tools/jobs.py), and
make the leaderboard of them (tools/leaderboard.py)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from common.errors import require
from tools.jobs import carry_out
from tools.leaderboard import make_table
from tools.scripts import algorithms

USAGE = "[--algos A B ...] [--from RUN ...]"
DESCRIPTION = """Train algorithms on several seeds and compare them. What follows -- is passed on to
every script."""
QUICK = {"algos": ("linear", "ctwa", "pama"), "seeds": 2, "steps": 60, "out": "results/quick"}
FROM = ("--from", "--out")
TOLD = (
    "**This is the quick form**: few algorithms, few seeds and fewer steps than a full run. It "
    "shows what to expect; it is no ranking."
)


@dataclass
class Args:
    algos: tuple[Literal["all", *algorithms()], ...] = ("all",)
    """algorithms, or all"""
    seeds: int = 5
    """number of seeds, 1 to this"""
    models: tuple[str, ...] = ()
    """--model of the runs, a table each, such as testbed testbed:robust; default: the scripts'"""
    estimator: tuple[Literal["reinforce", "grpo"], ...] = ()
    """one or both, a table each; default: the scripts'"""
    steps: int = 0
    """steps of each run; 0 is the scripts' default, or what a --preset after -- says"""
    jobs: int = 0
    """runs at a time, each on one thread; 0 is the number of cores, or 1 where there is a GPU"""
    dry_run: bool = False
    """say what would be started or resumed, and start nothing"""
    quick: bool = False
    """linear, ctwa and pama, 2 seeds and 60 steps, in less than ten minutes on two cores; a flag
    given beside it wins"""
    out: str = "results/bench"
    """results folder; the same command continues one that was stopped and keeps what is finished"""
    runs: Annotated[tuple[str, ...] | None, tyro.conf.arg(name="from", metavar="RUN [RUN ...]")] = (
        None
    )
    """train nothing: make the table of these run folders, or of all runs in a results folder, and
    write it to --out"""


def main(argv: list[str]) -> None:
    """the leaderboard: train algorithms × seeds as far as they are missing, or read runs"""
    cut = argv.index("--") if "--" in argv else len(argv)
    own, passed = argv[:cut], argv[cut + 1 :]
    default = Args(**QUICK) if "--quick" in own else Args()
    prog = "python run.py bench"
    args = tyro.cli(Args, prog=prog, description=DESCRIPTION, args=own, default=default)
    if args.runs is not None:
        idle = [word for word in argv if word.startswith("--") and not word.startswith(FROM)]
        require(not idle, f"--from trains nothing, so {' '.join(idle)} has no use; drop it")
        print(make_table(args.runs, Path(args.out)))
        return
    names = algorithms() if "all" in args.algos else args.algos
    models = [["--model", model] for model in args.models] or [[]]
    estimators = [["--estimator", estimator] for estimator in args.estimator] or [[]]
    fixed = [*passed, *(["--steps", str(args.steps)] if args.steps else [])]
    carry_out(args, names, [models, estimators], fixed, TOLD if args.quick else "")
