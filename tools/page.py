"""Two scripts in two columns on one HTML page: update equations on top, what differs marked, what is the same folded. Needs no network."""

import difflib
import html
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from tools.regions import CONTEXT, Region, pair_regions, read_script
from common.errors import UserError
from common.files import write_whole

STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#fff, #15171a); --ink: light-dark(#222, #ddd); --grey: light-dark(#595959, #a3a3a3);
  --line: #8884; --old: #d333; --new: #2a53; --word-old: #d338; --word-new: #2a56; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; background: var(--paper); color: var(--ink); }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; align-items: start; }
.two > div { min-width: 0; overflow-x: auto; }
pre.doc { white-space: pre-wrap; font: 13px/1.45 ui-monospace, monospace; }
table.update { border-collapse: collapse; font-size: 14px; }
table.update td, table.update th { border: 1px solid var(--line); padding: .25rem .5rem; text-align: left; vertical-align: top; }
table.update code, pre { overflow-wrap: anywhere; }
.whose { margin: 0 0 .3rem; font-weight: 600; }
table.code { border-collapse: collapse; table-layout: fixed; width: 100%; font: 12px/1.4 ui-monospace, monospace; }
table.code td { vertical-align: top; white-space: pre-wrap; overflow-wrap: anywhere; padding: 0 .4rem; }
table.code col.n { width: 3.2rem; }
td.n { color: var(--grey); text-align: right; user-select: none; }
td.old { background: var(--old); } td.new { background: var(--new); }
td.old b { background: var(--word-old); font-weight: inherit; } td.new b { background: var(--word-new); font-weight: inherit; }
summary { cursor: pointer; color: var(--grey); font: 13px/1.9 ui-monospace, monospace; }
h3 { font: 600 13px/1.9 ui-monospace, monospace; margin: .6rem 0 0; border-top: 1px solid var(--line); }
td.old::before, td.new::before { display: none; font-weight: 700; padding-right: .4em; }
td.old::before { content: "−"; } td.new::before { content: "+"; }
@media (max-width: 700px) { /* one under the other; a line that is the same in both stands once */
  body { margin: .7rem; } .two { grid-template-columns: 1fr; }
  table.code, table.code tbody { display: block; } table.code colgroup { display: none; }
  table.code tr { display: grid; grid-template-columns: 2.6rem 1fr; }
  table.code td { min-width: 0; padding: 0 .3rem; }
  tr.same td:nth-child(n+3), td.none { display: none; }
  td.old::before, td.new::before { display: inline; }
}
"""


def page(left: Path, right: Path, docs: Path) -> str:
    """The page's HTML. docs: folder of the algorithms' pages, from which "The update" is taken where `<name>.md` exists.

    Every line of both scripts stands on it once. Raises `UserError` when a script is not Python.
    """
    docstrings, scripts = zip(read_script(left), read_script(right), strict=True)
    names = [path.stem for path in (left, right)]
    title = " and ".join(html.escape(name) for name in names)
    body = [f"<h1>{title}</h1>"]
    whose = [f'<p class="whose">{html.escape(name)}</p>' for name in names]  # for where they stand one under the other
    updates = [_update(docs / f"{name}.md") for name in names]
    if any(updates):
        shown = [text or _mathematics(name, script) for name, text, script in zip(names, updates, scripts, strict=True)]
        body.append("<h2>The update</h2>" + _two(map("".join, zip(whose, shown, strict=True))))
    docs_of = [f'<pre class="doc">{html.escape(text)}</pre>' for text in docstrings]
    body.append("<h2>What they are</h2>" + _two(map("".join, zip(whose, docs_of, strict=True))))
    body.append("<h2>The scripts</h2>" + _two(f"<strong>{html.escape(str(path))}</strong>" for path in (left, right)))
    body += [_region(a, b) for a, b in pair_regions(*scripts)]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def _two(parts: Iterable[str]) -> str:
    return '<div class="two">' + "".join(f"<div>{part}</div>" for part in parts) + "</div>"


def _update(path: Path) -> str:
    """The section "The update" of an algorithm's page as HTML: tables, paragraphs, code and bold. Empty where there is none."""
    if not path.is_file():
        return ""
    section = re.search(r"^## The update\n(.*?)(?=^## |\Z)", path.read_text(encoding="utf-8"), re.M | re.S)
    if not section:
        return ""
    blocks = []
    for block in re.split(r"\n\s*\n", section[1].strip()):
        if block.startswith("|"):
            rows = [[cell.replace(r"\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
            rows = [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
            cells = ("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in rows if any(row))
            blocks.append('<table class="update">' + "".join(cells) + "</table>")
        else:
            blocks.append(f"<p>{_inline(block)}</p>")
    return "".join(blocks)


def _mathematics(name: str, script: list[Region]) -> str:
    """Of a script without a page: its mathematics as they are written, else its advantages, else what is missing."""
    regions = {region.name.removeprefix("ALGO: "): region.lines[1:] for region in script if region.name.startswith("ALGO: ")}
    code = "\n".join(regions.get("mathematics") or regions.get("advantages") or []).strip("\n")
    told = f"<p>From the script; docs/algos/{html.escape(name)}.md, which would say it in formulas, is not written yet.</p>"
    return told + (f'<pre class="doc">{html.escape(textwrap.dedent(code))}</pre>' if code else "")


def _inline(text: str) -> str:
    """Code, bold, italics and links of Markdown; links keep their words, code its stars."""
    text = html.escape(text, quote=False)
    text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text)
    parts = re.split(r"(`[^`]+`)", text)
    for n, part in enumerate(parts):
        if n % 2:
            parts[n] = f"<code>{part[1:-1]}</code>"
        else:
            part = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", part)
            parts[n] = re.sub(r"(?<![*\w])\*([^*\s](?:[^*]*[^*\s])?)\*(?![*\w])", r"<em>\1</em>", part)
    return "".join(parts)


def _region(left: list[Region], right: list[Region]) -> str:
    """One pair of regions: folded when they are the same, else with long stretches of equal lines folded."""
    a, b = ([line for region in regions for line in region.lines] for regions in (left, right))
    a_first, b_first = (regions[0].first if regions else 0 for regions in (left, right))
    name = html.escape(" + ".join(region.name or "opening" for region in (right or left)))
    opcodes = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    if all(tag == "equal" for tag, *_ in opcodes):
        rows = [_row(a_first + i, line, b_first + i, line) for i, line in enumerate(a)]
        lines = f"{len(a)} line{'s' * (len(a) > 1)}, the same in both"
        return f"<details><summary>{name}: {lines}</summary>{_table(rows)}</details>" if any(a) else ""
    parts = [f"<h3>{name}</h3>"]
    for tag, i, i_end, j, j_end in opcodes:
        if tag == "equal":
            rows = [_row(a_first + i + n, a[i + n], b_first + j + n, a[i + n]) for n in range(i_end - i)]
            if len(rows) <= 2 * CONTEXT + 1:
                parts.append(_table(rows))
                continue
            middle = rows[CONTEXT:-CONTEXT]
            folded = f"<details><summary>{len(middle)} lines, the same in both</summary>{_table(middle)}</details>"
            parts += [_table(rows[:CONTEXT]), folded, _table(rows[-CONTEXT:])]
            continue
        rows = []
        for n in range(max(i_end - i, j_end - j)):
            old, new = a[i + n] if i + n < i_end else None, b[j + n] if j + n < j_end else None
            rows.append(_row(a_first + i + n, old, b_first + j + n, new, changed=True))
        parts.append(_table(rows))
    return "".join(parts)


def _table(rows: list[str]) -> str:
    columns = '<colgroup><col class="n"><col><col class="n"><col></colgroup>'
    return f'<table class="code">{columns}{"".join(rows)}</table>' if rows else ""


def _row(left_number: int, old: str | None, right_number: int, new: str | None, changed: bool = False) -> str:
    """One line of each script; None where it has no partner. Words that differ stand in <b>."""
    old_html, new_html = html.escape(old or "", quote=False), html.escape(new or "", quote=False)
    if changed and old is not None and new is not None:
        a, b = (re.findall(r"\s+|\w+|.", line) for line in (old, new))
        matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
        if matcher.ratio() > 0.5:  # else nearly every word would be marked
            old_html = new_html = ""
            for tag, i, i_end, j, j_end in matcher.get_opcodes():
                before, after = (html.escape("".join(words), quote=False) for words in (a[i:i_end], b[j:j_end]))
                old_html += before if tag == "equal" or not before else f"<b>{before}</b>"
                new_html += after if tag == "equal" or not after else f"<b>{after}</b>"
    cells = []
    for number, line, text, style in ((left_number, old, old_html, "old"), (right_number, new, new_html, "new")):
        mark = f' class="{style}"' if changed and line is not None else ""
        none = ' class="n none"' if line is None else ' class="n"'
        mark = ' class="none"' if line is None else mark
        cells.append(f"<td{none}>{number if line is not None else ''}</td><td{mark}>{text}</td>")
    same = "" if changed else ' class="same"'
    return f"<tr{same}>{''.join(cells)}</tr>"


def write_page(left: Path, right: Path, docs: Path, out: Path) -> None:
    """Write the page whole: a temporary file, then rename. Raises `UserError` when the folder does not exist or cannot be written."""
    text = page(left, right, docs)
    try:
        write_whole(out, text)
    except OSError as error:
        raise UserError(f"diff: --html {out} cannot be written ({error.strerror}); name a file in a folder that exists") from None
