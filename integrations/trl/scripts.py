"""The scripts in algos/ as modules of this package alone, without what a script needs to be run.

To import them would put the folders `common` and `rewards` into the namespace of a user who may
have files of the same names, and would need tyro.
"""

import ast
import builtins
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

# installed, in cleanmoa/; or in a clone
ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "algos").is_dir())
COMMON = ("controllers", "errors", "flags")  # of common/, what a controller needs
STANDARD = {"torch", *sys.stdlib_module_names}


@cache
def load(name: str) -> ModuleType:
    """A file of the repository, such as algos/ctwa: its functions, constants and classes, compiled
    from the file, to which tracebacks lead. What else it imports than `_import` has is None, and
    its `main` of no use. Neither sys.path nor sys.modules has a trace of it. Raises
    FileNotFoundError."""
    path = ROOT / f"{name}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    # without what is no definition: a script puts the repository on sys.path
    tree.body = [node for node in tree.body if not isinstance(node, ast.Expr)]
    module = ModuleType(f"{__name__}.{path.stem}")
    vars(module)["__builtins__"] = vars(builtins) | {"__import__": _import}
    exec(compile(tree, str(path), "exec"), vars(module))
    return module


def _import(name: str, globals, locals, wanted, level: int):
    """`import` in these files: torch and the standard library; those of COMMON, loaded as they are;
    for all else a namespace in which everything is None, as the default rewards are: a trainer has
    its own."""
    top, _, file = name.partition(".")
    if top in STANDARD:
        return __import__(name, globals, locals, wanted, level)
    if file in COMMON:
        return load(f"common/{file}")
    found = {each: load(f"common/{each}") if each in COMMON else None for each in wanted or ()}
    return SimpleNamespace(**found)


@cache
def controllers() -> dict[str, str]:
    """The controllers' classes, which have no base, and their scripts: {"CTWA": "ctwa", ...}."""
    return {
        name: path.stem
        for path in sorted((ROOT / "algos").glob("[a-z]*.py"))
        for name in re.findall(r"(?m)^class (\w+):", path.read_text(encoding="utf-8"))
    }
