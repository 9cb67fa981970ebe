"""`python run.py presets`: what stands in algos/presets.toml, as flags that can be typed."""

import shlex
from dataclasses import dataclass

import tyro

from algos import linear
from common.launch import presets
from tools.scripts import algorithms

USAGE = ""


@dataclass
class Args:
    """The presets, and the flags they set. A flag given beside --preset wins."""


def main(argv: list[str]) -> None:
    """the presets that `run.py ALGORITHM --preset NAME` knows, and the flags they set"""
    tyro.cli(Args, prog="python run.py presets", args=argv)
    defaults, every = vars(linear.Args()), presets()
    for name, values in every.items():
        changed = {flag: value for flag, value in values.items() if value != defaults[flag]}
        print(f"{name}\n  {typed(changed)}")
    paper = next(iter(every))  # one of those with the paper's values, to which a script may add
    for script in algorithms():
        if own := presets(script)[paper].items() - every[paper].items():
            print(f"the paper's, for {script}\n  {typed(dict(own))}")


def typed(values: dict) -> str:
    """Flags, by the names of their fields, as on a command line."""
    words = []
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}"]
        words += [] if value is True else map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)
