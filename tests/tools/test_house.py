"""The house: who may import whom, how much `algos/linear.py` brings along, how long scripts are."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

from support.running import ROOT
from support.tree import own_files

# What each folder may import of ours: arrows point down only, and a script imports no other.
BELOW = "rewards|prompts|testbed"
ARROWS = {
    "run": r"tools|common\.errors",
    "docs": r"tools|common\.errors",
    "study": f"study|tools|integrations|algos|common|{BELOW}",
    "tools": f"tools|algos|common|{BELOW}",
    "integrations": "integrations|algos|common",
    "algos": f"common|{BELOW}",
    "common": f"common|{BELOW}",
    **{name: rf"{name}|common\.errors" for name in BELOW.split("|")},
}
SCRIPTS = own_files("algos/[a-z]*.py")
FILES = {}
for path in own_files("*.py"):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    FILES[name.removesuffix(".__init__")] = path


def imported(name: str, nodes: Callable = ast.walk) -> set[str]:
    """Our modules that one of them imports, `from a import b` as a.b where that is one.

    nodes: of its tree, in which imports are looked for.
    """
    package, found = ".".join(FILES[name].relative_to(ROOT).parent.parts), []
    for node in nodes(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            full = [f"{base}.{alias.name}" for alias in node.names]
            found += [each if each in FILES else base for each in full]
    return FILES.keys() & found


def code_tokens(path: Path) -> int:
    """Tokens of the code: no comments, docstrings or blank lines."""
    source, said = path.read_text(encoding="utf-8"), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str):
            said |= set(range(node.lineno, node.end_lineno + 1))
    free = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER"}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(tokenize.tok_name[t.type] not in free and t.start[0] not in said for t in tokens)


def test_arrows_point_down_only():
    faults = [
        f"{name} imports {other}"
        for name in FILES
        if not name.startswith("tests.")
        for other in imported(name)
        if not re.match(rf"({ARROWS[name.split('.')[0]]})(\.|$)", other)
    ]
    assert faults == []


def test_no_files_import_each_other_in_a_circle():
    TopologicalSorter({name: imported(name) for name in FILES}).prepare()  # a CycleError has them


def test_integrations_are_trl_alone_and_load_without_ours():
    for name in FILES:
        if name.startswith("integrations."):
            loaded = {name} | imported(name, ast.iter_child_nodes)
            assert all(each.startswith("integrations.trl") for each in loaded), loaded


def test_nothing_below_the_scripts_knows_an_algorithm():
    stems = "|".join(script.stem for script in SCRIPTS if script.stem != "linear")
    named = re.compile(rf"(?i)algos\.|(?<![a-z])({stems})(?![a-z])")
    below = (name for name in FILES if re.match(f"common|{BELOW}", name))
    assert [name for name in below if named.search(FILES[name].read_text())] == []


def test_what_linear_imports_stays_small():
    reached, waiting = set(), ["algos.linear"]
    while waiting:
        name = waiting.pop()
        if name in FILES and name not in reached:
            reached.add(name)
            for other in imported(name):
                waiting += [other, other.rpartition(".")[0]]  # its package, too
    assert len(reached) <= 32
    if sys.version_info < (3, 12):  # later ones take an f-string for many tokens
        assert sum(code_tokens(FILES[name]) for name in reached) <= 27200


def test_scripts_stay_short():
    lines = {script.stem: len(script.read_text().splitlines()) for script in SCRIPTS}
    assert lines["linear"] <= 210
    assert {name: count for name, count in lines.items() if count > 300} == {}


def test_lines_have_100_columns():
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--output-format=concise"]
    command += ["--select=E501", "--line-length=100", *map(str, own_files("*.py"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
