"""`python run.py sweep ctwa --lr 3e-5 1e-4 3e-4 --seeds 2`: one script with every combination of the values given to its flags.

Training, continuing and the table are those of `run.py bench` (tools/jobs.py, tools/leaderboard.py).
"""

import importlib
import io
import shlex
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import get_origin

import tyro

from tools.curves import BOOKKEEPING
from tools.jobs import Job, carry_out, make_job
from tools.scripts import algorithms, nearest
from common.errors import UserError, require

USAGE = "ALGORITHM --FLAG VALUE VALUE ... [--seeds N]"
DESCRIPTION = """\
Train an algorithm with every combination of the values given to its flags, any number of them, and compare.

--lr 3e-5 1e-4 --kl-coef 0 1e-3   four settings.
--weights "2 1 1" "1 1 1"         two: of a flag that takes several values each setting's are quoted.
--weights 2 1 1                   one: without quotes they belong together, as in the script.
--normalize false true            two: a switch off and on.

Evaluates on the tuning prompts (--eval-split tune) unless told otherwise: who chooses by a table has chosen on its prompts."""
SWITCH = {"true": "", "on": "", "false": "no-", "off": "no-"}


@dataclass
class Args:
    seeds: int = 1
    """number of seeds, 1 to this, of each setting"""
    jobs: int = 0
    """runs at a time, each on one thread; 0 is the number of cores, or 1 where there is a GPU"""
    out: str = ""
    """results folder, default results/sweep-ALGORITHM; the same command continues one that was stopped, more values add runs to it"""
    dry_run: bool = False
    """say what would be started or resumed, and start nothing"""


WITHOUT_VALUE = {"help", "dry_run"}
OWN = {field.name for field in fields(Args)} | WITHOUT_VALUE
SET = {"seed": "sweep sets it for each run; use --seeds", "resume": "the same sweep continues what was stopped; drop it"}
TOLD = (
    "**Chosen on what is reported**: who takes the best setting of this table has chosen on the prompts it was measured on, and its "
    "numbers here are no longer held out. Choose with `--eval-split tune`, the default of a sweep."
)


def main(argv: list[str]) -> None:
    """one script with several values of its flags: train every combination, and write a table to choose by"""
    name, own, given = divided(argv)
    prog = "python run.py sweep ALGORITHM --FLAG VALUE VALUE ..."
    args = tyro.cli(Args, prog=prog, description=DESCRIPTION, args=own)
    known = algorithms()
    require(bool(name), f"sweep: which algorithm? python run.py sweep ctwa --lr 3e-5 1e-4; there are {', '.join(known)}")
    require(name in known, f"sweep: {name} does not exist{nearest(name, known)}")
    require(args.jobs >= 0, f"--jobs {args.jobs} must be at least 1; 0 is one per core")
    out = Path(args.out or f"results/sweep-{name}")
    jobs = plan(known[name], importlib.import_module(f"algos.{name}").Args, given, args.seeds, out)
    held_out = any(job.args["eval_split"] != "tune" for job in jobs)
    command = shlex.join(["python", "run.py", "sweep", *argv])
    carry_out(jobs, out, args.jobs, command, args.dry_run, "Sweep", [TOLD] if held_out else [])
    print(f"held-out numbers of a setting: python run.py bench --algos {name} --out results/chosen -- FLAGS OF THE SETTING")


def divided(argv: Sequence[str]) -> tuple[str, list[str], dict[str, list[str]]]:
    """The algorithm's name ("" where none is given), the words that are sweep's own, and the words behind each flag of the script's.

    Raises UserError for a flag that stands twice and for a word that belongs to no flag.
    """
    name, own, given, into = "", [], {}, None
    for word in argv:
        flag, equals, value = word.removeprefix("--").partition("=")
        flag = flag.replace("_", "-")
        if word == "-h" or (word.startswith("--") and flag.replace("-", "_") in OWN):
            own.append(word)
            into = own if not equals and word != "-h" and flag.replace("-", "_") not in WITHOUT_VALUE else None
        elif word.startswith("--"):
            require(flag not in given, f"--{flag} is given twice: give all its values behind one")
            given[flag] = into = [value] if equals else []
        elif into is not None:
            into.append(word)
            into = None if into is own else into
        else:
            require(not name, f"sweep: {word!r} belongs to no flag; give the algorithm, then flags with their values")
            name = word
    return name, own, given


def plan(script: Path, args_class: type, given: dict[str, list[str]], seeds: int, out: Path) -> list[Job]:
    """The runs of every combination of the values × seeds 1 to `seeds`, all settings of a seed before the next seed.

    given: the words behind each flag of the script's. Raises UserError naming the flag: one that the script does not have or that sweep
    sets itself, one without a value or with one that is not for it, values of one that changes no number, a setting that comes twice.
    """
    from tools.names import run_name  # these load torch: a mistake in the words before is told at once
    from common.flags import check_flags

    require(seeds >= 1, f"--seeds {seeds} must be at least 1: they are numbered from 1")
    options = [_options(args_class, flag, values) for flag, values in given.items()]
    for choices in options:
        for words in choices:
            _parsed(args_class, script.stem, words)  # alone, so that it can be named
    fixed = [] if "eval-split" in given else ["--eval-split", "tune"]
    explicit = {flag.removeprefix("no-").replace("-", "_") if flag.startswith("no-") else flag.replace("-", "_") for flag in given}
    default = _parsed(args_class, script.stem, [*fixed, *(["--preset", *given["preset"]] if "preset" in given else [])])
    unlike = replace(default, **dict.fromkeys(explicit, None))  # what was given stands in the name, the scripts' own values too
    settings: list[tuple[list[str], object]] = []
    for choice in product(*options):
        words = [word for part in choice for word in part]
        args = _parsed(args_class, script.stem, [*fixed, *words])
        check_flags(args, count=1)
        same = next((other for other, others in settings if others == args), None)
        require(same is None, f"{shlex.join(words)} is the same setting as {shlex.join(same or [])}: two runs would be one; drop a value")
        settings.append((words, args))
    jobs = []
    for seed in range(1, seeds + 1):
        for words, args in settings:
            own = replace(args, seed=seed)
            jobs.append(make_job(run_name(own, unlike, script.stem), out, script, [*fixed, *words], own))
    names = [job.name for job in jobs]
    twice = next((name for name in names if names.count(name) > 1), "")
    require(
        not twice, f"two settings would be called {twice}, after the ends of their paths: rename a file or a folder, or sweep one by one"
    )
    return jobs


def _options(args_class: type, flag: str, values: list[str]) -> list[list[str]]:
    """The command-line words of each value of a flag."""
    types = {field.name.replace("_", "-"): field.type for field in fields(args_class)}
    if flag.startswith("no-") and types.get(flag[3:]) is bool and not values:
        return [[f"--{flag}"]]
    own = [name.replace("_", "-") for name in sorted(OWN)]
    require(flag not in SET, f"--{flag}: {SET.get(flag)}")
    require(flag in types, f"--{flag} does not exist{nearest(flag, [*types, *own])}")
    if types[flag] is bool:
        wrong = next((value for value in values if value.lower() not in SWITCH), "")
        require(not wrong, f"--{flag} {wrong}: a switch takes true and false, or nothing, which is true")
        choices = [[f"--{SWITCH[value.lower()]}{flag}"] for value in values or ["true"]]
    else:
        require(bool(values), f"--{flag} has no value; give one or several")
        if get_origin(types[flag]) is not tuple:
            choices = [[f"--{flag}", value] for value in values]
        elif any(" " in value for value in values):
            choices = [[f"--{flag}", *value.split()] for value in values]
        else:
            choices = [[f"--{flag}", *values]]
    several = len(choices) > 1 and flag.replace("-", "_") in BOOKKEEPING
    require(not several, f"--{flag} changes no number that a run logs, so there is nothing to choose: give one value")
    return choices


def _parsed(args_class: type, name: str, words: list[str]):
    from tools.command_line import parse

    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return parse(args_class, name, words)
    except SystemExit:
        raise UserError(f"{shlex.join(words)}: not a value that {name} takes; python run.py {name} --help says which") from None
