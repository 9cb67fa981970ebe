"""`python run.py diff`: two scripts side by side, a unified diff in which a region that is the same
in both is folded into one line."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated

import tyro

from common.errors import require, told_as
from common.runs import write_whole
from tools.regions import pair_regions, read_script
from tools.scripts import ROOT, algorithms, nearest

USAGE = "A B [--html FILE]"
ESCAPES = {"bold": "\033[1m", "dim": "\033[2m", "-": "\033[31m", "+": "\033[32m", "@": "\033[36m"}


@dataclass
class Args:
    """Compare two algorithms."""

    scripts: tyro.conf.Positional[Annotated[tuple[str, str], tyro.conf.arg(metavar="A B")]]
    """two algorithms, or the paths of scripts"""
    html: str = ""
    """instead of printing, write a page with every line of both and their update equations on top,
    replaced if it exists"""


def main(argv: list[str]) -> None:
    """what one algorithm does differently from another; what they share is folded"""
    args = tyro.cli(Args, prog="python run.py diff", args=argv)
    left, right = map(_script, args.scripts)
    if not args.html:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print(side_by_side(left, right, colour), flush=True)
        return
    from tools.page import page  # its libraries take as long to load as all of the above

    text = page(left, right, ROOT / "docs/algos")
    with told_as(f"--html {args.html} cannot be written"):
        write_whole(Path(args.html), text)
    print(f"wrote {args.html}")


def _script(name: str) -> Path:
    known = algorithms()
    path = known.get(name, Path(name))
    require(path.is_file(), f"diff: no algorithm or file {name!r}{nearest(name, known)}")
    return path


def side_by_side(left: Path, right: Path, colour: bool = False) -> str:
    """Both module docstrings, the diff of what follows them, and how many lines differ.

    `colour` adds terminal escapes. Raises `UserError` when a file is not Python.
    """
    shown = []
    for sign, path in (("---", left), ("+++", right)):
        shown += [("bold", f"{sign} {path}"), ("", f"{read_script(path)[0]}\n")]
    shown += compared(left, right)
    counts = Counter(style for style, _ in shown)
    total = counts["-"] + counts["+"]
    told = (
        f"\n{total or 'no'} line{' differs' if total < 2 else 's differ'}: "
        f"{counts['-']} -, {counts['+']} + (docstrings not counted)"
    )
    shown.append(("bold", told))
    return "\n".join(
        f"{ESCAPES[style]}{line}\033[0m" if colour and style else line for style, line in shown
    )


def compared(left: Path, right: Path) -> Iterator[tuple[str, str]]:
    """The lines of the diff without their colours, each after its kind: `dim` for a region that is
    folded, `@` for the head of a hunk, which holds its first line number in each file and the
    region, `-`, `+`, and nothing for what is the same. Module docstrings are left out."""
    for a, b in pair_regions(left, right):
        if a.lines == b.lines:
            lines = f"{len(a.lines)} line{'s' * (len(a.lines) > 1)}"
            yield "dim", f"  … {a.name}, {lines}, the same in both"
            continue
        matcher = SequenceMatcher(None, a.lines, b.lines, autojunk=False)
        for hunk in matcher.get_grouped_opcodes():
            yield "@", f"@@ -{a.first + hunk[0][1]} +{b.first + hunk[0][3]} @@ {b.name or a.name}"
            for tag, i, i_end, j, j_end in hunk:
                if tag == "equal":
                    yield from (("", f" {line}") for line in a.lines[i:i_end])
                else:
                    yield from (("-", f"-{line}") for line in a.lines[i:i_end])
                    yield from (("+", f"+{line}") for line in b.lines[j:j_end])
