"""How many lines of every script differ from linear.py, by region; docstrings are not counted.

python -m study.differing_lines [--write]
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from tools.diff import differing_lines
from common.errors import UserError, plain_errors
from common.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "algos" / "README.md"
MARKS = ("<!-- differing lines: begin -->", "<!-- differing lines: end -->")


@dataclass
class Args:
    write: bool = False
    """put the table into docs/algos/README.md instead of printing it"""


def table(scripts: list[Path], base: Path) -> str:
    """A Markdown table: each script's differing lines, - and +, in all, in its mathematics, in its flags and elsewhere."""
    lines = ["| script | lines that differ | mathematics | flags | set-up and loop |", "|---|---|---|---|---|"]
    for script in scripts:
        counts = differing_lines(base, script)
        mathematics, flags = counts["ALGO: mathematics"], counts["ALGO: args"]
        total = counts.total()
        lines.append(f"| `{script.stem}` | {total} | {mathematics} | {flags} | {total - mathematics - flags} |")
    return "\n".join(lines)


def insert(page: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Replace what stands between the marks of a page, written whole. Raises `UserError` when it has no marks."""
    content = page.read_text(encoding="utf-8")
    if not all(content.count(mark) == 1 for mark in marks):
        raise UserError(f"{page} must have {marks[0]} and {marks[1]} once each, to say where the table goes")
    before, rest = content.split(marks[0])
    write_whole(page, f"{before}{marks[0]}\n{text}\n{marks[1]}{rest.split(marks[1])[1]}")


def put(text: str, page: Path, marks: tuple[str, str], write: bool) -> None:
    """Print a table, or `insert` it into its page and say so."""
    if write:
        insert(page, text, marks)
    print(f"wrote {page.relative_to(ROOT)}" if write else text)


def main(args: Args) -> None:
    """Print the table, or write it into the page."""
    base = ROOT / "algos" / "linear.py"
    scripts = sorted(path for path in (ROOT / "algos").glob("[a-z]*.py") if path != base)
    put(table(scripts, base), PAGE, MARKS, args.write)


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__))
