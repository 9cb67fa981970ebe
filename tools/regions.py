"""A script by its SHARED and ALGO regions, and the regions of two scripts side by side: what `diff` folds and compares."""

import ast
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError

MARKER = re.compile(r"\s*# --- ((?:SHARED|ALGO): .+?) ---\s*$")
CONTEXT = 3  # unchanged lines around a change


@dataclass(frozen=True)
class Region:
    """Lines from a marker up to the next. What comes before the first marker is a region without a name."""

    name: str  # "SHARED: update"
    first: int  # number of its first line in the file
    lines: list[str]


def read_script(path: Path) -> tuple[str, list[Region]]:
    """The module docstring, and the lines after it by region. Raises `UserError` when the file is not Python."""
    try:
        source = path.read_text(encoding="utf-8")
        module = ast.parse(source)
    except SyntaxError as error:
        raise UserError(f"{path} line {error.lineno}: not Python ({error.msg}); diff compares scripts such as those in algos/") from None
    except ValueError as error:  # no text, or one with null bytes
        raise UserError(f"{path}: not Python ({error}); diff compares scripts such as those in algos/") from None
    docstring = ast.get_docstring(module)
    start = module.body[0].end_lineno if docstring is not None else 0
    regions = [Region("", start + 1, [])]
    for number, line in enumerate(source.splitlines()[start:], start + 1):
        if marker := MARKER.match(line):
            regions.append(Region(marker[1], number, []))
        regions[-1].lines.append(line)
    return docstring or "(no docstring)", regions


def pair_regions(left: list[Region], right: list[Region]) -> Iterator[tuple[list[Region], list[Region]]]:
    """Regions of the same name one to one, in order; regions in between that have no partner together."""
    matcher = difflib.SequenceMatcher(None, [r.name for r in left], [r.name for r in right], autojunk=False)
    for tag, a, a_end, b, b_end in matcher.get_opcodes():
        if tag == "equal":
            yield from (([x], [y]) for x, y in zip(left[a:a_end], right[b:b_end], strict=True))
        else:
            yield left[a:a_end], right[b:b_end]
