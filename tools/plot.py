"""`python run.py plot`: pictures and verdicts of runs, finished or still running."""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tools.curves import draw
from tools.runs import load_run
from tools.verdict import verdict
from common.errors import UserError

USAGE = "RUN [RUN ...] [--out FILE]"


@dataclass
class Args:
    runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
    """run folders, finished or still running"""
    out: str = ""
    """the picture, .png or .pdf, replaced if it exists; default: curves.png beside a single run's metrics, else ./comparison.png"""


def main(argv: list[str]) -> None:
    """curves of one run, or of several in one picture, and each run's verdict"""
    args = tyro.cli(Args, prog="python run.py plot", description="Draw runs and judge them.", args=argv)
    if not args.runs:
        raise UserError("plot: which run? python run.py plot RUN [RUN ...], such as runs/ctwa-s1")
    runs = [load_run(path) for path in args.runs]
    out = Path(args.out) if args.out else runs[0].path / "curves.png" if len(runs) == 1 else Path("comparison.png")
    for run in runs:
        try:
            text = verdict(run).text
        except UserError as error:  # such as a run that was not evaluated: the others still have their say
            text = str(error)
        print(f"{run.path}\n{textwrap.indent(text, '  ')}\n")
    replaced = out.exists()
    draw(runs, out)  # last: a folder that cannot be written keeps no verdict back
    print(f"{'replaced' if replaced else 'wrote'} {out}")
