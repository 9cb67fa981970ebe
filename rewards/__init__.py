"""Rewards: find the functions that `--rewards` names and call them on a batch, with errors that say what to mend.

A reward is a function in the convention of TRL: it takes keyword arguments only and returns one number per completion. `score` says
which keywords arrive.
"""

import copy
import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch

from common.errors import UserError

TAKEN = ("length", "rate", "nats", "step", "row", "prompt", "completion")  # stand beside the objectives in a run's files
ARGUMENTS = {"prompts", "completions", "completion_ids", "mean_length", "answer_check"}  # of a reward, from the trainer
OBJECTIVES = ("accuracy", "conciseness", "clarity")  # the paper's three, in the order of the columns of `rewards [B, K]`
DEFAULT = tuple(f"rewards.{objective}:{objective}" for objective in OBJECTIVES)  # of --rewards


def load(paths: Sequence[str]) -> dict[str, Callable]:
    """Import reward functions.

    Args:
        paths: `module:function` (`rewards.accuracy:accuracy`, or a module of the user's in the current directory) or
            `path/to/file.py:function`. The directory that the process runs in is put at the end of `sys.path` if it is not there.

    Returns:
        `{objective: function}` in the order of `paths`; the function's name is the objective's.

    Raises:
        UserError: no paths, a malformed path, a module or function that does not exist, a module that fails when imported, something
            that cannot be called with any keyword, two objectives of one name, or one whose name is TAKEN or ends in `_se`.
    """
    if not paths:
        raise UserError(f"--rewards is empty: name at least one function, for example {DEFAULT[0]}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    functions = {}
    for path in paths:
        module_name, _, name = path.rpartition(":")
        if not module_name or not name.isidentifier():
            raise UserError(f"--rewards {path!r} is not of the form module:function or path/to/file.py:function{_did_you_mean(path)}")
        module = _import(module_name, path)
        if not hasattr(module, name):
            names = [n for n, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
            nearest = difflib.get_close_matches(name, names, n=1) or names
            raise UserError(f"--rewards {path!r}: {module_name} has no {name!r}; its functions: {', '.join(nearest) or 'none'}")
        function = getattr(module, name)
        if not callable(function):
            raise UserError(f"--rewards {path!r}: {name} is of type {type(function).__name__}, not a function")
        if not _takes_every_keyword(function):
            raise UserError(f"--rewards {path!r}: {name} must accept every keyword: end its parameters with **kwargs")
        if name in TAKEN or name.endswith("_se"):
            raise UserError(f"--rewards {path!r}: a run logs {name!r}, or what ends in _se, as something else: rename the function")
        if name in functions:
            raise UserError(f"--rewards has two objectives named {name!r}: rename one of the functions")
        functions[name] = function
    return functions


def score(
    functions: dict[str, Callable],
    *,
    prompts: list[str],
    completions: list[str],
    completion_ids: list[list[int]],
    mean_length: float,
    columns: dict[str, list],
    **options,
) -> torch.Tensor:
    """Score a batch by every reward.

    A reward must not compare completions beyond a prompt's own, except through `mean_length`: on several ranks it gets a share of them.

    Args:
        functions: `K` rewards by objective, from `load`. Each is called once, by keyword, with all that follows.
        prompts, completions: `B` texts each.
        completion_ids: `B` token lists, end-of-sequence token included.
        mean_length: mean length in tokens of all training completions before this batch.
        columns: the other columns of the dataset, `B` values each; they arrive under their own names.
        **options: passed on to every reward, for example `answer_check="boxed"`.

    Returns:
        Rewards `[B, K]`, float32, on the CPU, columns in the order of `functions`.

    Raises:
        UserError: a reward raises, wants a column that is not there, or does not return `B` finite numbers. One that a reward raises
            itself passes unchanged.
        ValueError: lists of unequal length.
    """
    batch = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    clash = sorted((batch.keys() | options.keys() | {"mean_length"}) & columns.keys())
    if clash:
        raise UserError(f"the dataset column {clash[0]!r} has the name of an argument that rewards get from the trainer: rename the column")
    batch |= columns
    for name, values in batch.items():
        if len(values) != len(completions):
            raise ValueError(f"{name} has {len(values)} values for {len(completions)} completions")
    constants = {"mean_length": mean_length, **options}
    rows = _call(batch, constants, functions, columns)
    return torch.tensor(rows, dtype=torch.float32).view(len(completions), len(functions))


def unusable(functions: Mapping[str, Callable], answers: Iterable[str], answer_check: str) -> dict[str, str]:
    """Those of the reference answers that no completion could match, each with the reason: none where no reward is our accuracy, since
    others may read answers as they like."""
    from rewards import accuracy

    return accuracy.unusable(answers, answer_check) if accuracy.accuracy in functions.values() else {}


def _call(batch: dict[str, list], constants: dict, functions: dict[str, Callable], columns: dict[str, list]) -> list[tuple[float, ...]]:
    """One row of K rewards per completion of the batch."""
    rewards = []
    for objective, function in functions.items():
        required = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        missing = [name for name in required if name not in batch and name not in constants]
        if missing:
            raise UserError(
                f"the reward {objective!r} wants the dataset column {missing[0]!r}; the columns there are {_listed(columns)}: "
                "add it to the data or take the reward out of --rewards"
            )
        try:
            values = function(**{name: _copies(values) for name, values in batch.items()}, **constants)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            culprit = _culprit(error, function, batch, constants)
            hint = f"; the columns there are {_listed(columns)}" if isinstance(error, TypeError | KeyError) else ""
            raise UserError(f"the reward {objective!r} raised {_describe(error)} {culprit}{hint}") from error
        rewards.append(_numbers(objective, values, batch["completions"]))
    return list(zip(*rewards, strict=True))


def _copies(values: list) -> list:
    """The values for one reward alone: what it changes in place must not reach the next one."""
    return [_copy(value) if isinstance(value, list | dict) else value for value in values]


def _copy(value: list | dict) -> list | dict:
    flat = isinstance(value, list) and {int, float, str}.issuperset(map(type, value))  # token ids: a hundred times faster than deepcopy
    return value.copy() if flat else copy.deepcopy(value)


def _numbers(objective: str, values: object, completions: list[str]) -> list[float]:
    if hasattr(values, "tolist"):  # a tensor or an array
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise UserError(f"the reward {objective!r} returned a {type(values).__name__}: it must return a list, one number per completion")
    if len(values) != len(completions):
        raise UserError(f"the reward {objective!r} returned {len(values)} values for {len(completions)} completions")
    numbers = []
    for i, value in enumerate(values):
        number = value.item() if getattr(value, "ndim", None) == 0 else value
        # The comparison is false for NaN, infinity and what float32 would round to it.
        if not isinstance(number, int | float) or not abs(number) <= torch.finfo(torch.float32).max:
            raise UserError(
                f"the reward {objective!r} returned {_shorten(number)} for completion {i}, {_shorten(completions[i])}: "
                "it must return a finite number for each"
            )
        numbers.append(float(number))
    return numbers


def _culprit(error: BaseException, function: Callable, batch: dict[str, list], constants: dict) -> str:
    """Find the completion that makes the reward raise, by giving it one at a time."""
    for i, completion in enumerate(batch["completions"]):
        try:
            function(**{name: _copies(values[i : i + 1]) for name, values in batch.items()}, **constants)
        except (Exception, SystemExit) as alone:
            # A reward may be undefined on a single completion; that is another error than the one looked for.
            if type(alone) is type(error):
                return f"on completion {i}, {_shorten(completion)}"
    return f"on the batch of {len(batch['completions'])}, but on none of its completions alone"


def _import(module_name: str, path: str) -> ModuleType:
    is_file = module_name.endswith(".py")
    if is_file and not Path(module_name).is_file():
        raise UserError(f"--rewards {path!r}: there is no file {module_name!r}; a relative path starts in the current directory")
    importlib.invalidate_caches()  # a module written a moment ago counts
    try:
        return _import_file(Path(module_name).resolve()) if is_file else importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        # Of `a.b`, `a` or `a.b` itself may be missing; any other missing module is one that it imports.
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"--rewards {path!r}: there is no module {error.name!r}{_did_you_mean(path)}") from error
        raise UserError(f"--rewards {path!r}: importing {module_name} raised {_describe(error)}") from error


def _import_file(file: Path) -> ModuleType:
    # by its own name where that hides nothing, so that a process pool finds the functions that it is sent
    spec = _spec(file.stem)
    if spec is None and file.stem.isidentifier():
        sys.path.append(str(file.parent))
        return importlib.import_module(file.stem)
    if spec is not None and spec.origin and Path(spec.origin).resolve() == file:
        return importlib.import_module(file.stem)
    name = f"rewards_file:{file}"  # no import statement can mean this one, so a file called math.py hides nothing
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up while it is executed
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _spec(name: str):
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, such as __main__
        return importlib.util.spec_from_loader(name, None)


def _takes_every_keyword(function: Callable) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions written in C tell no signature
        return False
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _did_you_mean(path: str) -> str:
    nearest = [f"rewards.{path}:{path}"] if path in OBJECTIVES else difflib.get_close_matches(path, DEFAULT, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _describe(error: BaseException) -> str:
    """Type, message and the line of the user's code that led to it, in one line."""
    text = f"{type(error).__name__}: {_shorten(' '.join(str(error).split()), quote=False)}"
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename != __file__ and "importlib" not in frame.filename:
            return f"{text} ({Path(frame.filename).name}, line {frame.lineno})"
    return text


def _listed(columns: dict[str, list]) -> str:
    return ", ".join(columns) or "none"


def _shorten(value: object, quote: bool = True) -> str:
    text = repr(value) if quote else str(value)
    return text if len(text) <= 160 else f"{text[:110]} ... {text[-45:]}"
