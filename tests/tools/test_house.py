"""Who may import whom: each layer by itself, and tests from support/ alone."""

import ast
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest

from support.running import ROOT
from support.tree import own_files

FORBIDDEN = {
    "common": {"algos", "tools", "tools"},
    "rewards": {"algos", "tools", "tools"},
    "prompts": {"algos", "tools", "tools"},
    "testbed": {"algos", "tools", "tools"},
    "integrations": {"algos", "tools", "tools"},
    "tools": {"algos", "tools"},  # it reads run folders, and is given the scripts where it needs them
    "algos": {"algos"},  # a script is complete
}


def imported(source: str) -> set[str]:
    """The modules that a file imports, at its top or later, `from a import b` as a and as a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def faults(paths: list[Path], forbidden: set[str]) -> list[str]:
    return sorted(
        f"{path.relative_to(ROOT)} imports {module}"
        for path in paths
        for module in imported(path.read_text(encoding="utf-8"))
        if module.split(".")[0] in forbidden
    )


@pytest.mark.parametrize(("layer", "forbidden"), FORBIDDEN.items())
def test_a_layer_does_not_know_those_above_it(layer, forbidden):
    assert faults(own_files(f"{layer}/*.py"), forbidden) == []


def test_rewards_are_plain_functions():
    assert [module for path in own_files("rewards/*.py") for module in imported(path.read_text()) if module.endswith("ranks")] == []


def test_common_stays_small():
    assert sum(len(path.read_text().splitlines()) for path in own_files("common/*.py")) <= 2000


def test_tests_import_from_no_other_test():
    own = own_files("tests/*.py")
    tests = {path.stem for path in own if path.stem.startswith("test_") or path.stem == "conftest"}
    assert len(tests) > 30
    assert faults(own, tests) == []


def test_imports_are_found_wherever_they_stand():
    source = "import a.b\n\n\ndef f():\n    from c import d as e\n    import g as h\n"
    assert imported(source) == {"a.b", "c", "c.d", "g"}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git: nothing tells a user's files from ours")
def test_what_a_user_puts_into_the_folder_is_not_judged():
    with NamedTemporaryFile(dir=ROOT, prefix="mine_", suffix=".py") as file:
        known = own_files("*.py")
        assert Path(file.name) not in known
    assert {ROOT / "run.py", ROOT / "algos/linear.py", Path(__file__)} <= set(known)
