"""The documents as a reader has them: lines that fit, links that lead somewhere, commands and files
that exist."""

import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.running import ROOT
from support.tree import own_files

PAGES = [ROOT / "README.md", *own_files("docs/*.md")]
DOCUMENTS = [*PAGES, ROOT / "CONTRIBUTING.md"]
COLUMNS = 120
FOLDERS = "algos|common|docs|integrations|prompts|rewards|study|testbed|tests|tools"
BLOCK = re.compile(r"^ *```.*?^ *```", re.M | re.S)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """Without code and comments."""
    return SPAN.sub("", re.sub(r"<!--.*?-->", "", BLOCK.sub("", text), flags=re.S))


def code(text: str) -> str:
    """Code alone, each block or span on lines of its own; a wrapped span is one line."""
    spans = (" ".join(span.split()) for span in SPAN.findall(BLOCK.sub("", text)))
    return "\n".join([*BLOCK.findall(text), *spans])


@cache
def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        found.append(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return {
        f"{slug}-{found[:i].count(slug)}" if slug in found[:i] else slug
        for i, slug in enumerate(found)
    }


def links(page: Path) -> list[tuple[str, Path, str]]:
    """Relative links of a page: as written, the file they lead to, and the anchor there."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            found.append((target, (page.parent / path).resolve() if path else page, anchor))
    return found


@cache
def commands() -> set[str]:
    """What `python run.py` knows: the scripts, the modules of tools/, and the names in its help."""
    done = subprocess.run(
        [sys.executable, "run.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = {
        path.stem for folder in ("algos", "tools") for path in (ROOT / folder).glob("[a-z]*.py")
    }
    return files | set(re.findall(r"^  ([a-z]\w*)\b", done.stdout, re.M))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_prose_fits(page):
    """Tables, code and addresses apart, which do not wrap."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        inside ^= line.lstrip().startswith("```")
        if not inside and not re.match(r"\s*\||\[\w+\]: ", line):
            assert len(line) <= COLUMNS, f"{name(page)}:{number} has {len(line)} columns"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_formulas_have_what_github_takes(page):
    """It refuses \\operatorname, and takes a backslash off a sign that follows it."""
    text = prose(page.read_text(encoding="utf-8"))
    for formula in re.findall(r"\$\$?([^$]+)\$", text):
        assert not re.search(r"\\(operatorname|[^\w\s])", formula), f"{name(page)}: {formula}"


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_links_lead_somewhere(page):
    for target, file, anchor in links(page):
        assert file.exists(), f"{name(page)}: {target}"
        assert not anchor or anchor in anchors(file), f"{name(page)}: {target}: no such heading"


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_commands_exist(page):
    """Of `python run.py X` and `python -m X`; words in capitals stand for something."""
    text = code(page.read_text(encoding="utf-8"))
    told = {
        word for words in re.findall(r"\brun\.py +([a-z][\w|]*)", text) for word in words.split("|")
    }
    assert told <= commands(), name(page)
    for module in re.findall(r"python -m ([a-z][\w.]*)", text):
        here = ROOT / module.replace(".", "/")
        assert here.with_suffix(".py").exists() or ("." not in module and find_spec(module)), (
            f"{name(page)}: python -m {module}"
        )


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_files_named_exist(page):
    for path in re.findall(
        rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*)", code(page.read_text(encoding="utf-8"))
    ):
        assert (ROOT / path.rstrip(".")).exists(), f"{name(page)}: {path}"


def test_every_page_is_reached_from_the_readme():
    reached, at_hand = {PAGES[0]}, [PAGES[0]]
    while at_hand:
        for _, file, _ in links(at_hand.pop()):
            if file.suffix == ".md" and file not in reached:
                reached.add(file)
                at_hand.append(file)
    assert set(DOCUMENTS) <= reached, [name(page) for page in set(DOCUMENTS) - reached]


def test_every_term_of_the_glossary_is_linked_where_it_is_used():
    glossary = ROOT / "docs/glossary.md"
    told = {
        anchor
        for page in PAGES
        if page != glossary
        for _, file, anchor in links(page)
        if file == glossary
    }
    assert anchors(glossary) - {"glossary"} <= told


def test_the_lines_that_the_readme_says_ctwa_adds():
    linear, ctwa = ((ROOT / f"algos/{name}.py").read_text() for name in ("linear", "ctwa"))
    added = re.findall(r"^\+(.+)$", PAGES[0].read_text(encoding="utf-8"), re.M)
    assert len(added) == 10
    assert all(line in ctwa.splitlines() and line not in linear for line in added)


def test_the_readme_is_short_and_its_first_commands_set_up():
    text = PAGES[0].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90
    first, second = (block.splitlines()[1] for block in BLOCK.findall(text)[:2])
    assert first.endswith("-r requirements.txt && .venv/bin/python run.py ctwa")
    assert second.endswith("-r requirements-dev.txt && .venv/bin/python -m pytest")


def test_what_the_checks_read():
    text = (
        "a `b c` [d](e.md#f)\n```\n[no](no.md)\n```\n<!-- [no](no.md) -->\n`python run.py\nctwa`\n"
    )
    assert re.findall(r"\]\(([^)\s]+)\)", prose(text)) == ["e.md#f"]
    assert code(text).splitlines()[-2:] == ["b c", "python run.py ctwa"]
    assert "before-training-runpy-score" in anchors(ROOT / "docs/data.md")
    assert {"linear", "explain", "plot"} <= commands()
    assert not {"nothing", "A"} & commands()
