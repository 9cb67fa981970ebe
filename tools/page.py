"""Two scripts in two columns on one HTML page: update equations on top, what differs marked, what
is the same folded. It loads nothing, neither files nor scripts."""

import html
import re
from difflib import SequenceMatcher
from itertools import starmap, zip_longest
from pathlib import Path
from string import Template

import pygments
from markdown_it import MarkdownIt
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from pygments.token import Generic

from tools.regions import Region, pair_regions, read_script

FORMATTER = HtmlFormatter(nowrap=True)


def page(left: Path, right: Path, docs: Path) -> str:
    """The page's HTML, on which every line of both scripts stands once,
    but for blank ones between regions.

    docs: folder of the algorithms' pages, from which "The update" is taken where `<name>.md`
    exists. Raises `UserError` when a script is not Python.
    """
    return Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).substitute(
        title=html.escape(f"{left.stem} and {right.stem}"),
        columns="".join(_column(path, docs / f"{path.stem}.md") for path in (left, right)),
        regions="".join(starmap(_region, pair_regions(left, right))),
    )


def _column(script: Path, told: Path) -> str:
    """The section "The update" of an algorithm's page, and the script's docstring.

    What the script's margin broke is one line again, for the page to break where its own margin is:
    a short line was meant to end there; an indented one, one of a list or one with a label, such as
    `Run: `, is no running text.
    """
    text = told.read_text(encoding="utf-8") if told.is_file() else ""
    update = "".join(re.findall(r"^## The update\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    update = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", update)  # from elsewhere, links lead nowhere
    docstring = re.sub(
        r"(?m)^(\S.{65,})\n(?=\S)(?![-*] |[A-Z][\w .]*: )", r"\1 ", read_script(script)[0]
    )
    return (
        f"<section><h2>{html.escape(str(script))}</h2>"
        f"{update and '<h3>The update</h3>'}{MarkdownIt('js-default').render(update)}"
        f'<h3>What it is</h3><div class="doc">{html.escape(docstring)}</div></section>'
    )


def _region(a: Region, b: Region) -> str:
    """A pair of regions as a table, folded where they are the same; of each change, what was taken
    away and what was put in its place are a group of rows."""
    left, right = (list(enumerate(_words(side.lines), side.first)) for side in (a, b))
    matcher = SequenceMatcher(None, a.lines, b.lines, autojunk=False)
    table = '<table class="code">'
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        table += f'<tbody class="{tag}">'
        for pair in zip_longest(left[i:i_end], right[j:j_end], fillvalue=("", [])):
            table += f"<tr>{_cells(*pair)}{_cells(*reversed(pair))}</tr>"
    name = html.escape(b.name or a.name)
    if a.lines != b.lines:
        return f"<h3>{name}</h3>{table}</table>"
    name += f": {len(a.lines)} line{'s' * (len(a.lines) > 1)}, the same in both"
    return f"<details><summary>{name}</summary>{table}</table></details>"


def _words(lines: list[str]) -> list[list]:
    """For each line its words as (kind, text), the end of the line among them."""
    found = [[]]
    for kind, text in PythonLexer(stripnl=False).get_tokens("\n".join(lines)):
        for word in re.findall(r"\n|\w+|[^\w\n]+", text):
            found[-1].append((kind, word))
            if word == "\n":
                found.append([])
    return found


def _cells(line: tuple, partner: tuple) -> str:
    """A line's number and its code, both empty where only the partner has a line.

    Words that the partner does not have are strong, unless that would be most of them.
    """
    number, words = line
    if SequenceMatcher(None, words, partner[1]).ratio() > 0.5:
        words = [(k if (k, word) in partner[1] else Generic.Strong, word) for k, word in words]
    return f"<td>{number}</td><td>{pygments.format(words, FORMATTER)}</td>"
