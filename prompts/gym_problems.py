"""Make the problems of a task of reasoning-gym, in a process of its own: `python -P prompts/gym_problems.py TASK SETTINGS` with JSON for
settings prints JSON, `{"entries": [...]}` or `{"error": "..."}`. Imports nothing of ours."""

import contextlib
import io
import json
import random
import sys

import numpy as np
from reasoning_gym import create_dataset
from tqdm import tqdm


def tagged(value: object) -> object:
    """The value with every tuple as {"tuple": [...]}: JSON has none, and scorers tell them from lists."""
    if isinstance(value, dict):
        return {key: tagged(cell) for key, cell in value.items()}
    if isinstance(value, list | tuple):
        cells = [tagged(cell) for cell in value]
        return cells if isinstance(value, list) else {"tuple": cells}
    return value


def main(task: str, settings: dict) -> dict:
    random.seed(0)  # a few tasks draw from these, too
    np.random.seed(0)
    try:
        made = create_dataset(task, **settings)
        rows = tqdm(range(len(made)), f"making problems of {task}", disable=None, leave=False, delay=2)  # a bar only on a terminal
        return {"entries": [tagged(made[row]) for row in rows]}
    except Exception as error:  # an assertion about the settings, or whatever the problems come to
        return {"error": " ".join(str(error).split())[:200] or type(error).__name__}


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):  # some tasks print
        result = json.dumps(main(sys.argv[1], json.loads(sys.argv[2])), default=str)
    print(result)
