r"""Problems of reasoning-gym's tasks: `--dataset reasoning-gym:TASK` or `reasoning-gym:TASK:NAME=VALUE,...` with the task's own settings.

Source: Stojanovski et al., "Reasoning Gym", arXiv 2505.24760; the package of that name, which makes problems and scores answers.
"""

import dataclasses
import difflib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from common.errors import require
from prompts.files import Columns
from rewards.gym import NAME, library

SUFFIX = "\n\nLet's think step by step and output the final answer, exactly as asked for and as plain text, within \\boxed{}."
MADE = {"seed": 42, "size": 1280}  # settings that every task has: 768 problems to train on, 256 each to tune and to test

_NEXT = re.compile(r",(?=\w+=)")  # so that a list has its commas
_SETTING = re.compile(r"(\w+)=(.+)", re.DOTALL)
_WORD = re.compile(r"[\w+*/. -]+")
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list, as in [1, 2]"}


def is_ours(dataset: str) -> bool:
    """Is this a task of reasoning-gym, or the package's name alone?"""
    return dataset.partition(":")[0] == NAME


def problems(dataset: str) -> Columns:
    """Columns of a table of the task's problems: `question` and `answer`, as texts, and `entry`, the JSON that `rewards.gym.scorer` wants.
    The same whenever and wherever it is called. The answer is empty for tasks that have only a scorer.

    dataset: `reasoning-gym:TASK`, with the task's settings behind another colon. Raises UserError naming --dataset: no package, no such
    task or setting, a value of the wrong kind or that the task refuses.
    """
    task, _, given = dataset.removeprefix(NAME).removeprefix(":").partition(":")
    library()
    from reasoning_gym.factory import DATASETS

    near = difflib.get_close_matches(task, DATASETS, n=3, cutoff=0.5)
    known = f"did you mean {' or '.join(near)}?" if near else f"its tasks are {', '.join(sorted(DATASETS))}"
    require(task in DATASETS, f"--dataset {dataset}: {NAME} has no task {task!r}; {known}")
    settings = MADE | _settings(given, DATASETS[task][1], dataset, task)
    entries = _made(task, settings, dataset)
    head = {"task": task, "settings": settings}
    return {
        "question": [entry["question"] for entry in entries],
        "answer": ["" if entry["answer"] is None else str(entry["answer"]) for entry in entries],
        "entry": [json.dumps(head | entry, ensure_ascii=False) for entry in entries],
    }


def _made(task: str, settings: dict, dataset: str) -> list[dict]:
    """A task's entries. The order of Python's sets decides a few tasks' problems: without a process that has a fixed one, every run, and
    a resumed one, would have others, and test problems of one would be training problems of the next."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("gym_problems.py")), task, json.dumps(settings)]
    done = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "0"}, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    require(done.returncode == 0, f"--dataset {dataset}: making its problems ended with exit code {done.returncode}")
    found = json.loads(done.stdout)
    require("error" not in found, f"--dataset {dataset}: {task} cannot make problems with these settings ({found.get('error')})")
    return found["entries"]


def _settings(given: str, config: type, dataset: str, task: str) -> dict[str, object]:
    """The settings in NAME=VALUE,... of a task with this dataclass: values as in JSON, or a bare word."""
    found = {}
    fields = {field.name: field for field in dataclasses.fields(config)}
    for part in _NEXT.split(given) if given else []:
        setting = _SETTING.fullmatch(part)
        require(setting is not None, f"--dataset {dataset}: {part!r} is no setting; write them as {NAME}:{task}:NAME=VALUE,NAME=VALUE")
        name, text = setting.groups()
        told = f"--dataset {dataset}: {task} has no setting {name!r}; its settings are"
        require(name in fields, f"{told} {', '.join(f'{other}={_shown(field)}' for other, field in fields.items())}")
        require(name not in found, f"--dataset {dataset}: {name} is given twice")
        kind, value = _kind(fields[name]), _value(text)
        fits = type(value) is kind or (kind is float and type(value) is int) or kind is type(None)
        wanted = f"{_KINDS.get(kind, kind.__name__)}; its default is {_shown(fields[name])}"
        require(fits, f"--dataset {dataset}: {name} is {text!r} and must be {wanted}")
        found[name] = value
    return found


def _value(text: str) -> object:
    """A value as JSON has it, or a bare word; None for what is neither."""
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except ValueError:
        return {"True": True, "False": False}.get(text, text if _WORD.fullmatch(text) else None)


def _default(field: dataclasses.Field) -> object:
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


def _kind(field: dataclasses.Field) -> type:
    kind = type(_default(field))
    return list if kind is tuple else kind


def _shown(field: dataclasses.Field) -> str:
    return json.dumps(_default(field), default=str)[:60]
