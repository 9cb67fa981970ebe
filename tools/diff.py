"""`python run.py diff`: two scripts side by side, a unified diff in which a region that is the same in both is folded into one line."""

import difflib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tools.page import write_page
from tools.regions import CONTEXT, Region, pair_regions, read_script
from tools.scripts import ROOT, algorithms, nearest
from common.errors import UserError

USAGE = "A B [--html FILE]"
ESCAPES = {"bold": "\033[1m", "dim": "\033[2m", "-": "\033[31m", "+": "\033[32m", "@": "\033[36m"}


@dataclass
class Args:
    left: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="A")]]
    """an algorithm, or the path of a script"""
    right: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="B")]]
    """another"""
    html: str = ""
    """instead of printing, write a page with both scripts in two columns and their update equations on top, replaced if it exists"""


def main(argv: list[str]) -> None:
    """what one algorithm does differently from another; what they share is folded"""
    args = tyro.cli(Args, prog="python run.py diff", description="Compare two algorithms.", args=argv)
    left, right = _script(args.left), _script(args.right)
    if args.html:
        write_page(left, right, ROOT / "docs" / "algos", Path(args.html))
        print(f"wrote {args.html}")
        return
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(side_by_side(left, right, colour), flush=True)


def _script(name: str) -> Path:
    known = algorithms()
    path = known.get(name, Path(name))
    if not path.is_file():
        raise UserError(f"diff: no algorithm or file {name!r}{nearest(name, known)}")
    return path


def side_by_side(left: Path, right: Path, colour: bool = False) -> str:
    """Both module docstrings, the diff of what follows them, and how many lines differ. `colour` adds terminal escapes.

    Raises `UserError` when a file is not Python.
    """

    def paint(style: str, line: str) -> str:
        return f"{ESCAPES[style]}{line}\033[0m" if colour and line else line

    docstrings, scripts = zip(read_script(left), read_script(right), strict=True)
    shown = []
    for sign, path, docstring in zip(("---", "+++"), (left, right), docstrings, strict=True):
        shown += [paint("bold", f"{sign} {path}"), docstring, ""]
    counts = {"-": 0, "+": 0}
    for a, b in pair_regions(*scripts):
        if len(a) == len(b) == 1 and a[0].lines == b[0].lines:
            n = len(a[0].lines)
            if any(a[0].lines):
                shown.append(paint("dim", f"  … {a[0].name or 'opening'}, {n} line{'s' * (n > 1)}, the same in both"))
            continue
        for line in _hunks(a, b):
            if line[0] in counts:
                counts[line[0]] += 1
            shown.append(paint(line[0], line) if line[0] in ESCAPES else line.rstrip())
    total = sum(counts.values())
    words = f"{total} line{' differs' if total == 1 else 's differ'}: {counts['-']} -, {counts['+']} + (docstrings not counted)"
    shown += ["", paint("bold", words if total else "no line differs (docstrings not counted)")]
    return "\n".join(shown)


def differing_lines(left: Path, right: Path) -> Counter[str]:
    """How many lines differ, removed and added, by the name of the region they stand in; docstrings are not counted."""
    counts: Counter[str] = Counter()
    for a, b in pair_regions(read_script(left)[1], read_script(right)[1]):
        lines = sum(line[0] in "-+" for line in _hunks(a, b))
        if lines:
            counts[(b or a)[0].name] += lines
    return counts


def _hunks(left: list[Region], right: list[Region]) -> Iterator[str]:
    """Lines of a unified diff; the head of a hunk holds its first line number in each file and the region."""
    a, b = ([line for region in regions for line in region.lines] for regions in (left, right))
    a_first, b_first = (regions[0].first if regions else 0 for regions in (left, right))
    name = (right or left)[0].name
    for group in difflib.SequenceMatcher(None, a, b, autojunk=False).get_grouped_opcodes(CONTEXT):
        yield f"@@ -{a_first + group[0][1]} +{b_first + group[0][3]} @@ {name}".rstrip()
        for tag, i, i_end, j, j_end in group:
            if tag == "equal":
                yield from (f" {line}" for line in a[i:i_end])
            else:
                yield from (f"-{line}" for line in a[i:i_end])
                yield from (f"+{line}" for line in b[j:j_end])
