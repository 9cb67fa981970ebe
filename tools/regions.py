"""A script by its SHARED and ALGO regions, and the regions of two scripts side by side: what `diff`
folds and compares, and what pages show."""

import ast
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from common.errors import require, told_as


class Region(NamedTuple):
    """Lines from a marker up to the next, or from the docstring up to the first marker, without the
    blank ones at the end: how many there are depends on what comes next."""

    name: str  # "SHARED: update"
    first: int  # number of its first line in the file
    lines: list[str]


def read_script(path: Path) -> tuple[str, list[Region]]:
    """The module docstring, and the lines after it by region.

    Raises `UserError` when the file is not Python.
    """
    with told_as(f"{path} is not Python, as the scripts in algos/ are"):
        source = path.read_text(encoding="utf-8")
        module = ast.parse(source, path.name)
    docstring = ast.get_docstring(module)
    start = module.body[0].end_lineno if docstring else 0
    regions = [Region("opening", start + 1, [])]
    for number, line in enumerate(source.splitlines()[start:], start + 1):
        if marker := re.match(r"\s*# --- ((?:SHARED|ALGO): .+?) ---\s*$", line):
            regions.append(Region(marker[1], number, []))
        regions[-1].lines.append(line)
    for region in regions:
        while region.lines and not region.lines[-1]:
            region.lines.pop()
    return docstring or "(no docstring)", [region for region in regions if region.lines]


def pair_regions(left: Path, right: Path) -> Iterator[tuple[Region, Region]]:
    """The regions of two scripts in order: those of the same name together, of others the first
    with the first and so on; one without a partner has an empty one. Raises as `read_script`."""
    sides = [read_script(path)[1] for path in (left, right)]
    names = ([region.name for region in side] for side in sides)
    for _, i, i_end, j, j_end in SequenceMatcher(None, *names).get_opcodes():
        yield from zip_longest(sides[0][i:i_end], sides[1][j:j_end], fillvalue=Region("", 0, []))


def excerpt(path: Path, name: str) -> Region:
    """A part of a script by its name: a region as its marker has it, or a function, a class or,
    with a dot, a method.

    Raises `UserError` when there is none, or as `read_script`.
    """
    for region in read_script(path)[1]:
        if region.name == name:
            return region
    source = path.read_text(encoding="utf-8")
    node = ast.parse(source)
    for part in name.split("."):
        inside = getattr(node, "body", [])
        node = next((each for each in inside if getattr(each, "name", "") == part), None)
    require(node is not None, f"{path.name} has no {name!r}")
    return Region(name, node.lineno, source.splitlines()[node.lineno - 1 : node.end_lineno])
