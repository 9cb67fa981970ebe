"""Any two scripts can be read side by side: shared text is the same text in the same order, and knows no algorithm."""

import ast
import dis
import re
import subprocess
import types
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import pytest

from algos import linear
from study.differing_lines import MARKS, PAGE, insert, table
from tools.diff import differing_lines, side_by_side
from tools.page import page, write_page
from tools.regions import read_script
from common.errors import UserError
from support.running import ROOT, run_script
from support.tree import own_files

SCRIPTS = sorted((ROOT / "algos").glob("[a-z]*.py"))
NAMES = r"(?<![a-z])(ctwa|linear_?scalari\w*|mgda|gradnorm|nash|famo|tcheby\w*|lagrang\w*|pama|dynamic_weighting)(?![a-z])"


def drifted(scripts: list[Path]) -> list[str]:
    """SHARED regions of one name with more than one text, and pairs of scripts that have regions in another order."""
    regions = {script: [r for r in read_script(script)[1] if r.name.startswith("SHARED")] for script in scripts}
    texts: dict[str, set[str]] = {}
    for script in scripts:
        for region in regions[script]:
            texts.setdefault(region.name, set()).add("\n".join(region.lines).strip())
    faults = [name for name, found in texts.items() if len(found) > 1]
    for one, other in combinations(scripts, 2):
        order, other_order = ([r.name for r in regions[s]] for s in (one, other))
        common = set(order) & set(other_order)
        if [name for name in order if name in common] != [name for name in other_order if name in common]:
            faults.append(f"order of {one.stem} and {other.stem}")
    return faults


def naming(texts: dict[str, str]) -> list[str]:
    return [name for name, text in texts.items() if re.search(NAMES, text, re.I)]


def shared_texts() -> dict[str, str]:
    return {f"{s.stem}: {r.name}": "\n".join(r.lines) for s in SCRIPTS for r in read_script(s)[1] if r.name.startswith("SHARED")}


def test_shared_regions_are_identical_and_in_the_same_order():
    assert drifted(SCRIPTS) == []
    assert all(len([r for r in read_script(s)[1] if r.name.startswith("SHARED")]) >= 10 for s in SCRIPTS)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("optimizer.step()", "optimizer.step() ", "SHARED: optimizer step"),
        ("# --- SHARED: close ---", "# --- SHARED: set-up ---", "SHARED: set-up"),
    ],
)
def test_a_drifted_script_is_found(old, new, fault, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text((ROOT / "algos/mgda.py").read_text().replace(old, new))
    assert fault in drifted([*SCRIPTS, broken])


def test_nothing_below_the_scripts_knows_an_algorithm():
    below = {str(p): p.read_text() for folder in ("common", "prompts", "rewards", "testbed") for p in own_files(f"{folder}/*.py")}
    assert naming(below) == []
    assert naming(shared_texts()) == []
    assert [path for path, text in below.items() if "algos" in text] == []
    assert naming({"a": "if name == 'mgda':", "b": "# as in CTWA", "c": "nn.Linear"}) == ["a", "b"]


def test_every_marker_is_shared_or_of_the_algorithm():
    for script in SCRIPTS:
        markers = re.findall(r"^ *# --- .*$", script.read_text(), re.M)
        assert all(re.fullmatch(r" *# --- (SHARED|ALGO): [a-z ,-]+ ---", marker) for marker in markers), script
        names = [marker.strip() for marker in markers]
        assert len(set(names)) == len(names), script


def live_locals_at(function: types.FunctionType, line: int) -> set[str]:
    """Locals that are read, on some way through the code, after the last instruction of this line and before they are written again."""
    code = list(dis.get_instructions(function))
    place = {instruction.offset: i for i, instruction in enumerate(code)}
    jumps = {*dis.hasjrel, *dis.hasjabs}
    after: list[set[int]] = []
    for i, instruction in enumerate(code):
        ends = instruction.opname.startswith(("RETURN", "RAISE", "RERAISE")) or instruction.opname in ("JUMP_FORWARD", "JUMP_BACKWARD")
        following = set() if ends or i + 1 == len(code) else {i + 1}
        after.append(following | ({place[instruction.argval]} if instruction.opcode in jumps else set()))
    live: list[set[str]] = [set() for _ in code]
    changed = True
    while changed:
        changed = False
        for i in reversed(range(len(code))):
            name, out = code[i].argval, set().union(*(live[j] for j in after[i]))
            if code[i].opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_CLOSURE")):
                out = out | {name}
            elif code[i].opname.startswith(("STORE_FAST", "STORE_DEREF", "DELETE_FAST")):
                out = out - {name}
            changed |= out != live[i]
            live[i] = out
    lines = {i: number for start, number in dis.findlinestarts(function.__code__) for i in range(place[start], len(code))}
    last = max(i for i, number in lines.items() if number == line)
    return set().union(*(live[j] for j in after[last]))


def test_liveness_is_what_is_read_later():
    def example(a, b, c):
        for i in range(a):
            d = b + i
            d.backward()
            e = c
            print(e)
        return b

    line = example.__code__.co_firstlineno + 3
    assert live_locals_at(example, line) == {"b", "c"}  # a and d are not read again, e is written before


def test_a_reader_of_the_loss_keeps_few_names_in_mind():
    """Locals of `main` alive at `.backward()`; CleanRL's ppo.py has 16."""
    line = next(n for n, text in enumerate((ROOT / "algos/linear.py").read_text().splitlines(), 1) if ".backward()" in text)
    assert len(live_locals_at(linear.main, line)) <= 25


def test_a_run_is_no_trainer():
    """It keeps folder, log, evaluation and checkpoints; losses, advantages, weights and gradients stay in the scripts."""
    tree = ast.parse((ROOT / "common/run.py").read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | {
        node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)
    }
    assert {"policy", "optimizer"} <= names  # the check sees what it looks for
    called = {node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
    assert [name for name in names if re.search("loss|advantage|weight|grad|backward|logp|ratio", name)] == []
    assert "step" not in called  # of an optimizer


def imported_names(region: str) -> list[str]:
    tree = ast.parse(region)
    return [
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]


def test_every_import_is_used_by_some_script_and_every_own_one_by_its_script():
    sources = {script: read_script(script)[1] for script in SCRIPTS}
    texts = {script: "\n".join(line for r in regions for line in r.lines if "import " not in line) for script, regions in sources.items()}
    for script, regions in sources.items():
        for region in regions:
            users = [script] if region.name == "ALGO: imports" else SCRIPTS
            if region.name.endswith(": imports"):
                for name in imported_names("\n".join(region.lines)):
                    assert any(re.search(rf"\b{name}\b", texts[user]) for user in users), (script, name)


def test_scripts_fit_beside_each_other():
    for script in SCRIPTS:
        long = [number for number, line in enumerate(script.read_text().splitlines(), 1) if len(line) > 100]
        assert not long, (script, long)


def test_the_idea_comes_first():
    """Docstring, mathematics, advantages and loss, flags, then the loop."""
    order = ["SHARED: imports", "ALGO: mathematics", "SHARED: advantages and loss", "SHARED: args", "ALGO: args", "SHARED: set-up"]
    for script in SCRIPTS:
        assert [r.name for r in read_script(script)[1] if r.name in order] == order, script


def test_scripts_stay_short():
    assert len((ROOT / "algos/linear.py").read_text().splitlines()) <= 275
    for script in SCRIPTS:
        assert len(script.read_text().splitlines()) <= 340, script
        assert differing_lines(ROOT / "algos/linear.py", script).total() <= 175, script


# --- the table ---


def test_differing_lines_agree_with_the_diff_and_with_git(tmp_path):
    left, right = ROOT / "algos/linear.py", ROOT / "algos/ctwa.py"
    total = differing_lines(left, right).total()
    assert side_by_side(left, right).splitlines()[-1].startswith(f"{total} lines differ")
    for name, script in (("a.py", left), ("b.py", right)):
        (tmp_path / name).write_text(script.read_text().split('"""\n', 2)[-1])
    numbers = subprocess.run(["git", "diff", "--no-index", "--numstat", "a.py", "b.py"], cwd=tmp_path, capture_output=True, text=True)
    added, removed = map(int, numbers.stdout.split()[:2])
    assert total == pytest.approx(added + removed, rel=0.2)  # the two need not pair lines alike


def test_the_table_in_the_docs_is_up_to_date():
    base = ROOT / "algos/linear.py"
    assert table([s for s in SCRIPTS if s != base], base) in PAGE.read_text(), "python -m study.differing_lines --write"


def test_the_table_needs_its_place(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"a\n{MARKS[0]}\nold\n{MARKS[1]}\nb\n")
    insert(page, "new")
    assert page.read_text() == f"a\n{MARKS[0]}\nnew\n{MARKS[1]}\nb\n"
    page.write_text("nothing")
    with pytest.raises(UserError, match="differing lines: begin"):
        insert(page, "new")


# --- the page ---


class Cells(HTMLParser):
    """Line numbers and text of both columns, whether folded, and tags that were not closed."""

    def __init__(self):
        super().__init__()
        self.rows, self.open, self.folded, self.marked = [], [], [], 0

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "col"):
            self.open.append(tag)
        if tag == "table":
            self.code = ("class", "code") in attributes
        if tag == "tr" and self.code:
            self.rows.append([])
            self.folded.append("details" in self.open)
        if tag == "td" and self.code:
            self.rows[-1].append("")
            self.marked += ("class", "old") in attributes or ("class", "new") in attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open and self.code:
            self.rows[-1][-1] += data


def test_the_page_has_every_line_once_and_folds_only_what_is_the_same():
    left, right = ROOT / "algos/mgda.py", ROOT / "algos/nash_mtl.py"
    cells = Cells()
    text = page(left, right, ROOT / "docs/algos")
    cells.feed(text)
    assert cells.open == []
    for column, script in ((0, left), (2, right)):
        shown = [(int(row[column]), row[column + 1]) for row in cells.rows if row[column]]
        lines = script.read_text().splitlines()
        regions = read_script(script)[1]
        assert shown == [(r.first + i, line) for r in regions for i, line in enumerate(r.lines) if r.name or any(r.lines)]
        assert all(lines[number - 1] == line for number, line in shown)
    assert all(row[1] == row[3] for row, folded in zip(cells.rows, cells.folded, strict=True) if folded)
    assert cells.marked == differing_lines(left, right).total()
    assert sum(cells.folded) > 200
    assert "http" not in re.sub(r"<pre.*?</pre>|<table.*?</table>", "", text, flags=re.S)  # loads nothing
    assert "<script" not in text


def test_the_page_escapes_and_shows_the_update_tables(tmp_path):
    for name, line in (("one", "x = 1 < 2 and '<b>' & 3"), ("two", "x = 1 < 2 and '<i>' & 3")):
        (tmp_path / f"{name}.py").write_text(f'"""{name} <script>alert(1)</script>"""\n# --- ALGO: a ---\n{line}\n')
    (tmp_path / "one.md").write_text("# One\n\n## The update\n\n| | equation |\n|---|---|\n| w | `a < b` \\| **c** |\n\n## Else\n\nno\n")
    text = page(tmp_path / "one.py", tmp_path / "two.py", tmp_path)
    assert "<script" not in text
    assert "<td><code>a &lt; b</code> | <strong>c</strong></td>" in text
    assert "docs/algos/two.md, which would say it in formulas, is not written yet" in text
    assert "no</p>" not in text
    assert "<b>b</b>" in text  # the one word that differs
    cells = Cells()
    cells.feed(text)
    assert cells.rows[-1][1::2] == ["x = 1 < 2 and '<b>' & 3", "x = 1 < 2 and '<i>' & 3"]


def test_italics_are_italic_and_code_keeps_its_stars(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(f'"""{name}"""\n# --- ALGO: mathematics ---\ndef f(a):\n    return a * a\n')
    (tmp_path / "one.md").write_text("# One\n\n## The update\n\ncompletion *i* and *two words*, `a *b* c`, 2 * 3 * 4, **bold**\n")
    text = page(tmp_path / "one.py", tmp_path / "two.py", tmp_path)
    update = "<p>completion <em>i</em> and <em>two words</em>, <code>a *b* c</code>, 2 * 3 * 4, <strong>bold</strong></p>"
    assert update in text
    assert '<pre class="doc">def f(a):\n    return a * a</pre>' in text  # of the script without a page, what it computes


def test_on_a_phone_what_is_the_same_stands_once():
    """Its second copy is hidden there, and what differs is marked by a sign."""
    text = page(ROOT / "algos/mgda.py", ROOT / "algos/nash_mtl.py", ROOT / "docs/algos")
    phone = text.split("@media (max-width: 700px)")[1].split("</style>")[0]
    assert "tr.same td:nth-child(n+3), td.none { display: none; }" in phone
    assert "td.old::before, td.new::before { display: inline; }" in phone
    rows = re.findall(r"<tr( class=\"same\")?>(<td class=\"n.*?)</tr>", text, re.S)
    same = [re.findall(r"<td[^>]*>(.*?)</td>", cells, re.S) for marked, cells in rows if marked]
    assert same
    assert all(cells[1] == cells[3] for cells in same)
    assert not any('class="old"' in cells or 'class="new"' in cells for marked, cells in rows if marked)


def test_every_algorithms_page_has_an_update_table():
    for script in SCRIPTS:
        page = ROOT / "docs/algos" / f"{script.stem}.md"
        assert page.is_file(), f"write {page.relative_to(ROOT)}, with the headings of docs/algos/linear.md"
        text = page.read_text()
        assert "## The update\n\n|" in text, script.stem
        for heading in ("The idea", "What it needs and costs", "Hyperparameters", "In the logs", "How it fails"):
            assert f"## {heading}\n" in text, (script.stem, heading)
        source, told = script.read_text(), {flag.replace("-", "_") for flag in re.findall(r"^\| `--([a-z-]+)`", text, re.M)}
        own = set(re.findall(r"^    (\w+): [^\n]+ = ", source.split("# --- ALGO: args ---")[1].split("\ndef main(")[0], re.M))
        assert own <= told, f"docs/algos/{script.stem}.md: flags without a row: {own - told}"
        assert all(f"    {flag}: " in source for flag in told), script.stem
        linked = f"]({script.stem}.md)" in PAGE.read_text()
        assert linked, f"docs/algos/README.md: a row with a link to {script.stem}.md"


def test_the_page_by_the_command(tmp_path):
    done = run_script("run.py", "diff", "linear", "ctwa", "--html", str(tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    missing = run_script("run.py", "diff", "linear", "ctwa", "--html", str(tmp_path / "none" / "page.html"))
    assert missing.returncode == 2
    assert "--html" in missing.stderr
    assert len(missing.stderr.strip().splitlines()) == 1
    with pytest.raises(UserError, match="--html"):
        write_page(SCRIPTS[0], SCRIPTS[1], ROOT, tmp_path)
