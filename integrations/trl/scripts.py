"""The functions of the scripts in algos/, without what a script needs to be run: its flags, its loop, and the folders these import.

To import a script as a module would put the folders `common` and `rewards` into the namespace of a user who may have files of the same
names, and would need tyro.
"""

import ast
import math
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

HERE = Path(__file__).resolve()
FOLDER = next(folder for folder in (HERE.parents[1] / "algos", HERE.parents[2] / "algos") if folder.is_dir())  # installed, or in a clone


@cache
def mathematics(script: str) -> ModuleType:
    """The functions and constants at the top level of algos/<script>.py, but for `main`.

    Their code is the script's own, to which tracebacks lead. Neither sys.path nor sys.modules is changed; what a function may use is torch
    and math. Raises FileNotFoundError for a script that does not exist.
    """
    path = FOLDER / f"{script}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    tree.body = [node for node in tree.body if _is_function(node) or _is_constant(node)]
    module = ModuleType(f"{__name__}.{script}")
    vars(module).update(math=math, torch=torch, Tensor=Tensor, __file__=str(path))
    exec(compile(tree, str(path), "exec"), vars(module))
    return module


def _is_function(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name != "main"


def _is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
