"""Any two scripts can be read side by side: what is shared is the same text in the same order, and
`python run.py diff` shows the rest, in the terminal and on a page."""

import re
import subprocess
import sys
from contextlib import closing
from html import unescape
from itertools import combinations
from pathlib import Path

import pytest

from common.errors import UserError
from support.browser import Browser, needs_driver
from support.running import ROOT
from tools.diff import compared, main, side_by_side
from tools.page import page, typeset
from tools.regions import excerpt, read_script

DOCS = ROOT / "docs/algos"
HEADINGS = re.findall("^## (.*)", (DOCS / "linear.md").read_text(), re.M)
SCRIPTS = sorted((ROOT / "algos").glob("[a-z]*.py"))
LINEAR, CTWA = ROOT / "algos/linear.py", ROOT / "algos/ctwa.py"
A, B = "# --- SHARED: a ---\na = 1\n", "# --- SHARED: b ---\nb = 1\n"
LEFT = """\"\"\"Adds.\"\"\"
import os
# --- SHARED: imports ---
import math
# --- ALGO: mathematics ---
def f(x):
    # Each number
    # is given
    # its successor.
    return x + 1
# --- SHARED: set-up ---
seed = 1
steps = 3
# --- SHARED: close ---
"""
RIGHT = """\"\"\"Multiplies.

In two paragraphs.
\"\"\"
import re
# --- SHARED: imports ---
import math
# --- ALGO: mathematics ---
def f(x):
    # Each number
    # is given
    # its successor.
    x = 2 * x
    return x
# --- SHARED: set-up ---
seed = 2
steps = 3
# --- ALGO: more ---
more = True
# --- SHARED: close ---
"""
SHOWN = """--- 0.py
Adds.

+++ 1.py
Multiplies.

In two paragraphs.

@@ -2 +5 @@ opening
-import os
+import re
  … SHARED: imports, 2 lines, the same in both
@@ -7 +10 @@ ALGO: mathematics
     # Each number
     # is given
     # its successor.
-    return x + 1
+    x = 2 * x
+    return x
@@ -11 +15 @@ SHARED: set-up
 # --- SHARED: set-up ---
-seed = 1
+seed = 2
 steps = 3
@@ -0 +18 @@ ALGO: more
+# --- ALGO: more ---
+more = True
  … SHARED: close, 1 line, the same in both

9 lines differ: 3 -, 6 + (docstrings not counted)"""


def write(folder: Path, *texts: str) -> list[Path]:
    for n, text in enumerate(texts):
        (folder / f"{n}.py").write_text(text)
    return sorted(folder.glob("*.py"))


def drifted(scripts: list[Path]) -> list[str]:
    """Pairs of scripts whose shared regions of one name differ, or come in another order."""
    shared = {
        script.stem: {
            region.name: region.lines
            for region in read_script(script)[1]
            if region.name.startswith("SHARED")
        }
        for script in scripts
    }
    return [
        f"{one} {other}"
        for (one, a), (other, b) in combinations(shared.items(), 2)
        if [each for each in a.items() if each[0] in b]
        != [each for each in b.items() if each[0] in a]
    ]


def differing(left: Path, right: Path) -> int:
    return sum(kind in ("-", "+") for kind, _ in compared(left, right))


# --- the scripts ---


def test_shared_regions_are_the_same_text_in_the_same_order(tmp_path):
    assert drifted(SCRIPTS) == []
    assert drifted(write(tmp_path, A + B, B + A, A + B[:-1] + " ", B)) == [
        "0 1",
        "0 2",
        "1 2",
        "2 3",
    ]


def test_every_marker_is_shared_or_of_the_algorithm():
    for script in SCRIPTS:
        text = script.read_text()
        names = re.findall(r"^ *# --- ((?:SHARED|ALGO): [a-z ,-]+) ---$", text, re.M)
        assert text.count("# ---") == len(names) == len({*names}) > 5, script


def test_a_script_differs_from_linear_by_120_lines_at_most():
    counts = {script.stem: differing(LINEAR, script) for script in SCRIPTS}
    assert counts.pop("linear") == 0 < min(counts.values())
    assert max(counts.values()) <= 120, counts


def test_every_script_has_its_page():
    for script in SCRIPTS:
        told = DOCS / f"{script.stem}.md"
        assert told.is_file(), f"write {told.relative_to(ROOT)}, with the headings of linear.md"
        headings = re.findall("^## (.*)", told.read_text(), re.M)
        assert [name for name in headings if name in HEADINGS] == HEADINGS, told.name
        shown = re.findall(r"^\[([\w.]+)\]\((\S+)\) <!-- code -->$", told.read_text(), re.M)
        assert shown, f"{told.name} shows no function of its script"
        for name, file in shown:
            excerpt(told.parent / file, name)
        assert f"]({told.name})" in (DOCS / "README.md").read_text(), (
            f"README.md links no {told.name}"
        )


# --- in the terminal ---


def test_what_is_the_same_is_folded_and_what_differs_is_counted(tmp_path):
    scripts = write(tmp_path, LEFT, RIGHT)
    assert side_by_side(*scripts).replace(f"{tmp_path}/", "") == SHOWN
    coloured = side_by_side(*scripts, colour=True)
    assert re.sub(r"\033\[\d+m", "", coloured) == side_by_side(*scripts)
    assert "no line differs: 0 -, 0 +" in side_by_side(scripts[0], scripts[0])


def test_a_region_that_was_moved_is_not_folded(tmp_path):
    scripts = write(tmp_path, A + B, B + A)
    assert side_by_side(*scripts).count("the same in both") == 1
    assert differing(*scripts) == 4


def test_colour_on_a_terminal_unless_no_color(monkeypatch, capsys):
    for terminal, no_color in ((True, ""), (True, "1"), (False, "")):
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setattr(sys.stdout, "isatty", lambda there=terminal: there)
        main([str(LINEAR), "ctwa"])
        assert ("\033[31m-" in capsys.readouterr().out) == (terminal and not no_color)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["linaer", "ctwa"], "no algorithm or file 'linaer'; did you mean 'linear'?"),
        (["linear", "ctwa", "--html", "none/x.html"], "--html none/x.html cannot be written"),
        (["linear", "LICENSE"], "LICENSE is not Python"),
        (["linear", "docs/figures/figure-1.png"], "figure-1.png is not Python"),
    ],
)
def test_mistakes(arguments, told, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=re.escape(told)):
        main(arguments)


def test_output_into_head_does_not_complain():
    run = f"PYTHONUNBUFFERED= {sys.executable} run.py diff linear linear | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {run}"], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


# --- the page ---


def code_of(text: str) -> list[str]:
    """The lines of each block of code on a page."""
    blocks = re.findall("<pre><span></span><code>(.*?)\n?</code>", text, re.S)
    return [unescape(re.sub("<.*?>", "", block)) for block in blocks]


def test_the_page_has_every_line_and_folds_only_what_is_the_same():
    scripts = ROOT / "algos/mgda.py", ROOT / "algos/nash_mtl.py"
    text = page(*scripts, DOCS)
    regions, folded = text.partition("Line by line")[2], "<details.*?</details>"
    for script, sign in zip(scripts, "-+", strict=True):
        found = []
        for part in re.split(f"({folded})", regions, flags=re.S):
            whole = part.startswith("<details")
            for line in "\n".join(code_of(part)).splitlines():
                found += [line] if whole else [line[1:]] if line[:1] in f" {sign}" else []
        lines = [line for region in read_script(script)[1] for line in region.lines]
        assert [line for line in found if line] == [line for line in lines if line]
    same = code_of("".join(re.findall(folded, regions, re.S)))
    assert len(same) > 3
    changed = re.findall('<span class="g[di]">([-+].*)', re.sub(folded, "", regions, flags=re.S))
    assert len(changed) == differing(*scripts)
    assert not re.search(r"<script|<[^>]*(src|href)=|url\(|@import", text)  # it loads nothing


def test_the_page_escapes_and_shows_the_update(tmp_path):
    told = "<script>alert(1)</script>\n\nf"
    codes = ["x = 1 < 2 and '<b>' & 3", "x = 1 < 2 and '<i>' & 3"]
    scripts = write(tmp_path, *(f'"""{told}"""\n# --- ALGO: a ---\n{code}\n' for code in codes))
    update = (
        "$a_k < c$, in\n[f](../f.py) <!-- code -->\n\n| | b |\n|---|---|\n| w | **c** [d](e.md) |"
    )
    (tmp_path / "0.md").write_text(f"# One\n\n## The update\n\n{update}\n\n## Else\n\nno\n")
    text = page(*scripts, tmp_path)
    assert re.search(
        r"<math.*<msub><mi>a</mi><mi>k</mi></msub>.*</math>, in\n<code>f</code></p>", text
    )
    assert "<td><strong>c</strong> d</td>" in text
    assert "no</p>" not in text
    assert code_of(text) == [told, told, f" # --- ALGO: a ---\n-{codes[0]}\n+{codes[1]}"]


def test_names_in_formulas_are_one_word():
    text = typeset(r'<span class="arithmatex">\(\mathrm{Cov}(r) \log w\)</span>')
    assert re.findall('<mo lspace="0.17em" rspace="(.*?)">(.*?)</mo>', text) == [
        ("0", "Cov"),
        ("0.17em", "log"),
    ]


def test_a_formula_that_cannot_be_typeset_is_told():
    with pytest.raises(UserError, match=r"\\foo.*does not know"):
        typeset(r'<span class="arithmatex">\(\foo x\)</span>')


def test_a_part_of_a_script_is_found_by_its_name():
    assert excerpt(CTWA, "CTWA.weights").lines[0].strip().startswith("def weights(")
    assert excerpt(CTWA, "ALGO: imports").lines[0] == "# --- ALGO: imports ---"
    with pytest.raises(UserError, match="ctwa.py has no 'weigh'"):
        excerpt(CTWA, "weigh")


BROKEN = """[...document.querySelectorAll('main')].flatMap(main => { const found = [];
const walk = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
for (let node; node = walk.nextNode();) {
 const whole = node.parentNode.tagName === 'CODE'; // a flag, too, with its hyphens
 for (const m of node.textContent.matchAll(whole ? /.+/g : /[\\w.]*\\w/g)) {
  const range = document.createRange(), end = m.index + m[0].length;
  range.setStart(node, m.index); range.setEnd(node, end);
  const tops = [...range.getClientRects()].map(r => Math.round(r.top));
  if (new Set(tops).size > 1) found.push(m[0]); } }
return found; })"""
READ = """(() => { const numbers = c => c.match(/[\\d.]+/g).map(Number);
const over = (a, b) => b.map((v, i) => v + ((a[3] ?? 1) * (a[i] - v)));
const back = e => e ? over(numbers(getComputedStyle(e).backgroundColor), back(e.parentElement))
  : [255, 255, 255];
const part = v => v <= 10 ? v / 3294 : ((v / 255 + .055) / 1.055) ** 2.4;
const light = c => .2126 * part(c[0]) + .7152 * part(c[1]) + .0722 * part(c[2]) + .05;
const texts = [...document.querySelectorAll('main *')].filter(e => e.innerText?.trim());
const ratio = (a, b) => Math.max(a, b) / Math.min(a, b);
const all = texts.map(e => ratio(light(numbers(getComputedStyle(e).color)), light(back(e))));
return [Math.min(...all) > 4.5, document.documentElement.scrollWidth <= innerWidth]; })()"""


@needs_driver
def test_the_page_can_be_read_on_a_phone_and_on_a_desk_in_light_and_dark(tmp_path):
    """No name is broken in its middle, nothing runs out sideways, and contrasts are WCAG's AA."""
    text = page(ROOT / "algos/mgda.py", CTWA, DOCS).replace("<details", "<details open")
    (tmp_path / "page.html").write_text(text)
    with closing(Browser(tmp_path / "profile")) as browser:
        for width, scheme in ((420, "light"), (1280, "light"), (1280, "dark")):
            browser.send("/window/rect", {"width": width, "height": 900})
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            command = {"cmd": "Emulation.setEmulatedMedia", "params": media}
            browser.send("/goog/cdp/execute", command)
            browser.open(tmp_path / "page.html")
            assert browser.ask(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
            assert browser.ask(BROKEN) == []
            assert browser.ask(READ) == [True, True]
