"""CTWA under other covariance targets, the runs of figure 4: trains what is missing; the same command continues one that was stopped.

python -m study.targets [--seeds 2] [--jobs 2] [--settings negative ...] [-- flags for every run]
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from common.errors import plain_errors, require

ROOT = Path(__file__).resolve().parents[1]
# Targets for accuracy, conciseness and clarity: the paper's, times -1, 0, 1/2 and 2, all three alike, and with the hard objective's lowest.
SETTINGS = {
    "default": (0.15, 0.08, 0.08),
    "negative": (-0.15, -0.08, -0.08),
    "zero": (0.0, 0.0, 0.0),
    "half": (0.075, 0.04, 0.04),
    "double": (0.30, 0.16, 0.16),
    "symmetric-low": (0.05, 0.05, 0.05),
    "symmetric": (0.10, 0.10, 0.10),
    "reversed": (0.08, 0.15, 0.15),
}


@dataclass
class Args:
    seeds: int = 2
    """number of seeds, 1 to this"""
    steps: int = 0
    """steps of each run; 0 is the script's default"""
    jobs: int = 0
    """runs at a time, each on one thread; 0 is the number of cores, or 1 where there is a GPU"""
    settings: tuple[Literal[tuple(SETTINGS)], ...] = tuple(SETTINGS)
    """which of the settings"""
    out: str = "results/targets"
    """results folder; a setting's runs go to OUT/<setting>/runs"""


def plans(args: Args, passed: list[str]) -> dict[Path, list]:
    """The runs of every setting by its folder, on the testbed with REINFORCE. Raises UserError for flags that CTWA does not take."""
    from algos import ctwa
    from tools.bench import plan

    require(bool(args.settings), f"--settings: give at least one of {', '.join(SETTINGS)}")
    require(args.jobs >= 0, f"--jobs {args.jobs} must be at least 1; 0 is one per core")
    taken = next((flag for flag in passed if flag.split("=")[0].replace("_", "-") == "--cov-targets"), "")
    require(not taken, f"-- {taken}: the settings are targets; choose among them with --settings")
    scripts = {"ctwa": (ROOT / "algos" / "ctwa.py", ctwa.Args)}
    jobs = {}
    for setting in args.settings:
        out, targets = Path(args.out) / setting, ["--cov-targets", *map(str, SETTINGS[setting])]
        jobs[out] = plan(scripts, args.seeds, ("testbed",), ("reinforce",), args.steps, [*passed, *targets], out)
    return jobs


def main(args: Args, argv: list[str], passed: list[str]) -> int:
    """Train setting after setting; returns how many runs failed."""
    import shlex

    from tools.jobs import default_jobs, train_missing

    failures = 0
    for out, jobs in plans(args, passed).items():
        print(f"{out.name}: targets {' '.join(map(str, SETTINGS[out.name]))}", flush=True)
        failed = train_missing(jobs, out, args.jobs or default_jobs(), shlex.join(["python", "-m", "study.targets", *argv]))
        for name, printed in failed.items():
            print(f"{name} failed; {out / 'logs'} has what it printed, the same command tries it again\n{printed}", file=sys.stderr)
        failures += len(failed)
    return failures


if __name__ == "__main__":
    with plain_errors():
        argv = sys.argv[1:]
        cut = argv.index("--") if "--" in argv else len(argv)
        sys.exit(min(main(tyro.cli(Args, args=argv[:cut], description=__doc__), argv, argv[cut + 1 :]), 1))
