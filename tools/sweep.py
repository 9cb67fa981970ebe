"""`python run.py sweep ctwa --lr 3e-5 1e-4 3e-4 --seeds 2`: one script with every combination of
the values given to its flags. Training, continuing and the table are those of `run.py bench`."""

import shlex
from dataclasses import dataclass, fields
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import get_origin

import tyro

from common.errors import require
from tools.jobs import carry_out
from tools.scripts import algorithms

USAGE = "ALGORITHM --FLAG VALUE VALUE ... [--seeds N]"
DESCRIPTION = """\
Train an algorithm with every combination of the values given to its flags, any number of them, and
compare.

--lr 3e-5 1e-4 --kl-coef 0 1e-3   four settings.
--weights "2 1 1" "1 1 1"         two: of a flag that takes several values, a setting's are quoted.
--weights 2 1 1                   one: without quotes they belong together, as in the script.
--normalize false true            two: a switch off and on.

Evaluates on the tuning prompts (--eval-split tune) unless told otherwise: who chooses by a table
has chosen on its prompts."""
TOLD = (
    "**Who takes the best setting of this table has chosen on the prompts it was measured on**: "
    "the tuning prompts or, with `--eval-split test`, those, which are then no longer held out. "
    "Report it on others: `python run.py bench --algos ALGORITHM --seeds 5 -- FLAGS`."
)


@dataclass
class Args:
    seeds: int = 1
    """number of seeds, 1 to this, of each setting"""
    jobs: int = 0
    """runs at a time, each on one thread; 0 is the number of cores, or 1 where there is a GPU"""
    out: str = ""
    """results folder, default results/sweep-ALGORITHM; the same command continues one that was
    stopped, more values add runs to it"""
    dry_run: bool = False
    """say what would be started or resumed, and start nothing"""


def main(argv: list[str]) -> None:
    """one script with several values of its flags: train every combination, and write a table"""
    prog = f"python run.py sweep {USAGE}"
    args, words = tyro.cli(
        Args, prog=prog, description=DESCRIPTION, args=argv, return_unknown_args=True
    )
    given = {}
    names = own = []
    for word in words:
        if word.startswith("--"):
            own = given.setdefault(word, [])
        else:
            own.append(word)
    name = " ".join(names)
    require(name in algorithms(), f"sweep: {name!r} is none of {', '.join(algorithms())}")
    types = {field.name: field.type for field in fields(import_module(f"algos.{name}").Args)}
    options = [
        _options(flag, types.get(flag[2:].replace("-", "_")), own) for flag, own in given.items()
    ]
    told = f"several values, as in --lr 3e-5 1e-4; `run.py bench --algos {name}` trains one setting"
    require(any(len(choices) > 1 for choices in options), f"sweep: give a flag {told}")
    args.out = args.out or f"results/sweep-{name}"
    carry_out(args, names, options, ["--eval-split", "tune"], TOLD)


def _options(flag: str, kind: type | None, given: list[str]) -> list[list[str]]:
    """The command-line words of each value of a flag."""
    if kind is bool:
        words = {"true": flag, "false": f"--no{flag[1:]}"}
        return [[words.get(value, value)] for value in given or ["true"]]
    if get_origin(kind) is not tuple:
        return [[flag, value] for value in given] or [[flag]]
    # quoted, a word has the values of one setting, unless it is a file's path with spaces
    parts = [[v] if Path(v.rpartition(":")[0]).is_file() else shlex.split(v) for v in given]
    if max(map(len, parts), default=0) > 1:
        return [[flag, *part] for part in parts]
    return [[flag, *chain(*parts)]]
