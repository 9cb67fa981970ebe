"""`python run.py presets`: the named flag values of common/presets.py, as flags that do the same."""

import shutil
import textwrap
from dataclasses import asdict, dataclass
from importlib import import_module

import tyro

from commands.scripts import algorithms

USAGE = ""


@dataclass
class Args:
    pass


def main(argv: list[str]) -> None:
    """the presets that `run.py ALGORITHM --preset NAME` knows, and the flags they set"""
    tyro.cli(Args, prog="python run.py presets", description="Named flag values; a flag given beside --preset wins.", args=argv)
    from algos.linear import Args as Shared  # torch is loaded here: help is told at once
    from common.presets import PRESETS

    defaults = asdict(Shared())
    differing = {name: {k: v for k, v in values.items() if v != defaults[k]} for name, values in PRESETS.items()}
    common = dict(set.intersection(*(set(values.items()) for values in differing.values())))
    columns = min(shutil.get_terminal_size().columns, 140)

    def flags(values: dict) -> str:
        shown = {k.replace("_", "-"): f'"{v}"'.replace(" ", "\0") if " " in str(v) else v for k, v in values.items()}  # not to be wrapped
        return " ".join(f"--{k}" if v is True else f"--{k} {v}" for k, v in shown.items())

    def block(name: str, text: str) -> str:
        return f"{name}\n{textwrap.fill(text, columns, initial_indent='  ', subsequent_indent='  ', break_on_hyphens=False)}".replace(
            "\0", " "
        )

    print(block("all of them", flags({k: v for k, v in next(iter(differing.values())).items() if k in common})))
    for name, values in differing.items():
        print(block(name, flags({k: v for k, v in values.items() if k not in common})))
    for name in algorithms():
        if own := dict(getattr(import_module(f"algos.{name}").Args, "PRESET", ())):
            print(block(f"any, for {name}", flags(own)))
