"""One entrance: `python run.py ctwa --seed 2` trains, `python run.py plot RUN` draws, `python
run.py diff linear ctwa` compares, `python run.py doctor` checks the machine before a long run,
`python run.py bench` makes the leaderboard.

Training is `python algos/<algorithm>.py` with the same flags, to the letter. A command is a module
of tools/ with `USAGE`, its arguments, and a `main` whose docstring says what it does.
"""

import importlib
import os
import re
import runpy
import sys
import textwrap
from pathlib import Path

from common.errors import UserError, plain_errors
from tools.scripts import ROOT, algorithms, nearest

# GNU OpenMP's threads spin while they wait for each other, and starve every other process. It reads
# this once, when it is loaded: before torch is imported, which nothing above does.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# modules of tools/, as a user comes to need them
COMMANDS = "doctor", "presets", "score", "diff", "bench"
COMMANDS += "sweep", "explain", "explore", "plot", "export"


def described(path: Path) -> str:
    """A command's name, arguments and the docstring of its `main`; of a script, which has no
    `USAGE`, the name and the first paragraph of its docstring. In lines of 80 columns.

    Files are read, not imported: importing some would load torch first.
    """
    docstring = r'(?:\A.*?^USAGE = "(.*?)"\n.*?^def main\(.*?)?"""(.*?)(?:"""|\n\n)|\Z'
    told = re.search(docstring, path.read_text(encoding="utf-8"), re.M | re.S)
    head = f"  {path.stem} {told[1] or ''}  ".ljust(21)
    text = told[2] or "(no docstring)"
    return textwrap.fill(text, 80, initial_indent=head, subsequent_indent=" " * 21)


def main() -> None:
    """Run the command on the command line. Raises `UserError` for one that does not exist."""
    command, *argv = sys.argv[1:] or ["--help"]
    scripts = algorithms()
    if command in scripts:
        del sys.argv[1]
        runpy.run_path(str(scripts[command]), run_name="__main__")
    elif command in COMMANDS:
        importlib.import_module(f"tools.{command}").main(argv)
    elif command == "--version":
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        print("cleanmoa", re.search(r'^version = "(.*)"', project, re.M)[1])
    elif command in ("-h", "--help"):
        print(
            "usage: python run.py COMMAND ...\n",
            "train with an algorithm (its flags: python run.py ALGORITHM --help)",
            *map(described, scripts.values()),
            "\nbefore a run and after it",
            *(described(ROOT / f"tools/{name}.py") for name in COMMANDS),
            sep="\n",
        )
    else:
        raise UserError(f"unknown command {command!r}{nearest(command, [*scripts, *COMMANDS])}")


if __name__ == "__main__":
    with plain_errors():
        try:
            main()
        except ModuleNotFoundError as error:
            if "." in f"{error.name}":  # a part of a package that is there: no wrong environment
                raise
            raise UserError(
                f"{error} in {sys.executable}; use the environment that has it "
                "(. .venv/bin/activate), or make it with README's first command"
            ) from None
