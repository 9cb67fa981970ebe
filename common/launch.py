"""A script from the command line: its flags before, errors in one line, the ranks' end after."""

import os
import sys
import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import tyro

from common import ranks
from common.errors import plain_errors, require
from common.runs import read_args

PRESETS = Path(__file__).resolve().parents[1] / "algos" / "presets.toml"
# flags that a resumed run may be given anew, for that is what an error in mid-run advises
FREE = {"resume", "steps", "track", "lr", "compute_dtype", "max_logp_gap"}
FREE |= {"reward_max", "highest", "ridge"}


def run(main: Callable, args_class: type) -> None:
    """Call main with the flags of the command line, on every rank."""
    with plain_errors():
        main(parse(args_class, Path(sys.argv[0]).stem, sys.argv[1:]))
        ranks.stop()


def parse(args_class: Callable, script: str, argv: list[str]):
    """The flags of a script, a dataclass filled. `--preset NAME` changes the defaults; flags given
    beside it win. `--resume DIR` takes the flags of that run: others given beside it must agree
    with them, but for FREE. Raises UserError naming the flag."""
    speaks = os.environ.get("RANK", "0") == "0"
    args = tyro.cli(args_class, args=argv, console_outputs=speaks)
    if not (args.resume or args.preset):
        return args
    if args.resume:
        given = read_args(args.resume, "--resume")
        told = f"--resume {args.resume}: that run is of {given['script']}, not of {script}"
        require(given["script"] == script, told)
    else:
        given = preset(args.preset, script)
    known = asdict(args).keys()
    before = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known}
    default = replace(args_class(), **before)
    args = tyro.cli(args_class, args=argv, default=default, console_outputs=speaks)
    differing = [k for k in known - FREE if args.resume and getattr(args, k) != getattr(default, k)]
    told = ", ".join(f"--{k.replace('_', '-')} (was {before.get(k)})" for k in sorted(differing))
    require(not differing, f"--resume {args.resume}: these flags differ from the run's: {told}")
    return args


def presets(script: str = "") -> dict[str, dict]:
    """The flags of every preset, by its name; with what `script` adds to those of the paper."""
    table = tomllib.loads(PRESETS.read_text())
    own = table["scripts"].get(script, {})
    papers = {
        f"{model}-{data}": table["paper"] | flags | chosen | own
        for model, flags in table["models"].items()
        for data, chosen in table["datasets"].items()
    }
    return papers | table["others"]


def preset(name: str, script: str) -> dict:
    """The flags that --preset sets for a script. Raises UserError naming those there are."""
    known = presets(script)
    require(name in known, f"--preset {name} does not exist; there is {', '.join(known)}")
    return known[name]
