"""Two scripts on one HTML page: their update equations on top, then every line of both, what
differs marked and what is the same folded. It loads nothing, neither files nor scripts."""

import html
import re
from difflib import ndiff
from pathlib import Path
from string import Template
from textwrap import indent

from latex2mathml.converter import convert
from markdown import Markdown

from common.errors import require
from tools.regions import Region, pair_regions, read_script

EXTENSIONS = ["tables", "pymdownx.arithmatex", "pymdownx.details", "pymdownx.superfences"]
GENERIC = {"pymdownx.arithmatex": {"generic": True}}
ROMAN = re.compile(r'<mrow>(<mi mathvariant="normal">\w</mi>){2,}</mrow>')  # letter by letter
# names of functions, which TeX sets apart from what follows unless that is a bracket
NAME, THIN = re.compile(r"<(m[io])>([A-Za-z]{2,})</\1>(?=(<mo[^>]*>&#x00028;)?)"), "0.17em"


def page(left: Path, right: Path, docs: Path) -> str:
    """The page's HTML, on which every line of both scripts stands once.

    docs: folder of the algorithms' pages, from which "The update" is taken where `<name>.md`
    exists. Raises `UserError` when a script is not Python.
    """
    title = f"{left.stem} and {right.stem}"
    told = [f"# {title}", *(_about(path, docs / f"{path.stem}.md") for path in (left, right))]
    told += ["## Line by line", *(_region(a, b) for a, b in pair_regions(left, right))]
    body = Markdown(extensions=EXTENSIONS, extension_configs=GENERIC).convert("\n\n".join(told))
    template = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    return template.substitute(title=html.escape(title), body=typeset(body))


def typeset(text: str) -> str:
    """HTML with the formulas that pymdownx.arithmatex found in Markdown as MathML.

    Raises `UserError` for a command of TeX that latex2mathml does not know.
    """

    def formula(match: re.Match) -> str:
        tex, block = html.unescape(match[2])[2:-2].strip(), match[1] == "div"  # of \( and \)
        made = convert(tex, display="block" if block else "inline")
        require("\\" not in made, f"${tex}$ has a command that latex2mathml does not know")
        made = ROMAN.sub(lambda m: f"<mi>{re.sub('<.*?>', '', m[0])}</mi>", made)
        made = NAME.sub(
            lambda m: f'<mo lspace="{THIN}" rspace="{0 if m[3] else THIN}">{m[2]}</mo>', made
        )
        return made if block or len(tex) < 60 else f'<span class="wide">{made}</span>'

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', formula, text, flags=re.S)


def _about(script: Path, told: Path) -> str:
    """The section "The update" of an algorithm's page, and the script's docstring."""
    text = told.read_text(encoding="utf-8") if told.is_file() else ""
    update = "".join(re.findall(r"^## The update\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    update = re.sub(r"\[([^]]+)\]\(\S+\) <!-- code -->", r"`\1`", update)
    update = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", update)  # from elsewhere, links lead nowhere
    docstring = read_script(script)[0].splitlines()
    return f"## `{script}`\n\n{update}\n\n{_fenced('text', docstring)}"


def _region(a: Region, b: Region) -> str:
    """A pair of regions, folded where they are the same."""
    name = b.name or a.name
    if a.lines == b.lines:
        lines = f"{len(a.lines)} line{'s' * (len(a.lines) > 1)}, the same in both"
        return f'??? "{name}: {lines}"\n{indent(_fenced("python", a.lines), "    ")}'
    lines = [line[0] + line[2:] for line in ndiff(a.lines, b.lines) if line[0] != "?"]
    return f"### {name}\n\n{_fenced('diff', lines)}"


def _fenced(kind: str, lines: list[str]) -> str:
    return "\n".join([f"``````{kind}", *lines, "``````"])
