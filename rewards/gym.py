r"""reasoning-gym's own scorers, which judge what a completion boxes by the problem's entry: pip install reasoning-gym."""

import contextlib
import functools
import io
import json
import re
import warnings
from collections.abc import Callable
from types import ModuleType

from common.errors import UserError

NAME = "reasoning-gym"  # of the answer check, and what the name of such a data set begins with

# Tasks whose scorers hand the answer to Python's eval, five of them through sympy.parse_expr. A policy that is trained could find
# `__import__("os")`; a scorer gets of it what neither calls, but for these functions, nor looks an attribute up.
EVALUATED = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
EVALUATED |= {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
_FUNCTIONS = {
    "exp",
    "log",
    "ln",
    "sqrt",
    "Abs",
    *(a + f + h for a in ("", "a") for f in ("sin", "cos", "tan", "sec", "csc", "cot") for h in ("", "h")),
}
_CALL = re.compile(r"([^\W\d]\w*|[^\s\w+*/^,(=\[<>-])\s*\(")  # behind a name, or a bracket or quote that closes
_ATTRIBUTE = re.compile(r"\.\s*[^\W\d]|__")


def library() -> ModuleType:
    """The package. Raises UserError where it is not installed."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(f"--dataset {NAME}:TASK cannot import the package ({error}): pip install reasoning-gym") from error
    return reasoning_gym


def scorer(entry: str) -> Callable[[str], float]:
    """What scores an answer, the content of a box, by the task's own scorer: partial credit too, and 0.0 where that raises, and for code.

    entry: JSON with `task` and `settings`, by which the scorer is made (some read the task's settings), and `question`, `answer` and
    `metadata`, which it gets. Raises UserError where the package is missing or the entry is none.
    """
    try:
        problem = json.loads(entry, object_hook=_untagged)
        task, settings = problem["task"], json.dumps(problem["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the dataset column 'entry' has {entry!r:.80}, which is no problem of --dataset {NAME}:TASK") from error
    judge = _task_scorer(task, settings)

    def score(content: str) -> float:
        if not content or (task in EVALUATED and _is_code(content)):
            return 0.0
        try:
            with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
                return float(judge(content, problem))
        except Exception:  # whatever a scorer raises on a completion that it did not expect
            return 0.0

    return score


def _untagged(value: dict) -> object:
    return tuple(value["tuple"]) if value.keys() == {"tuple"} else value  # as prompts/gym_problems.py writes it


@functools.lru_cache(maxsize=64)
def _task_scorer(task: str, settings: str) -> Callable[[str, dict], float]:
    return library().create_dataset(task, **json.loads(settings)).score_answer


def oracle(entry: str) -> str | None:
    """The task's own answer to a problem; None where it has only a scorer."""
    return json.loads(entry)["answer"]


def _is_code(content: str) -> bool:
    calls = _CALL.findall(content)
    quoted = "'" in content or '"' in content  # sympy's functions evaluate a text once more
    return bool(_ATTRIBUTE.search(content)) or not _FUNCTIONS.issuperset(calls) or bool(calls and quoted)
