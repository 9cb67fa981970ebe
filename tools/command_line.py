"""What surrounds the `main` of a script that is run from a command line: its flags before, its verdict after."""

import json
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path

import tyro

from tools.names import run_name
from tools.presets import PAPER, named_preset
from common import ranks
from common.errors import UserError
from common.flags import RETIRED, RunFlags


def parse(args_class: type, script: str, argv: list[str] | None = None):
    """The flags of a script (a dataclass, which is returned filled), and the name of its run. `--preset NAME` changes the defaults, and
    flags given beside it win.
    `--resume DIR` takes the flags of that run, a preset's values included: others given beside it must agree with them, but for --steps and
    the two trackers. Raises UserError naming --preset, or the flags that differ."""
    argv = sys.argv[1:] if argv is None else argv
    names = {field.name for field in fields(args_class)}
    chosen = named_preset(argv) if "preset" in names else {}
    if chosen.get("steps") == PAPER["steps"]:  # what the algorithm adds to a preset of so many
        chosen |= dict(getattr(args_class, "PRESET", ()))
    if missing := sorted(chosen.keys() - names):
        told = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise UserError(f"--preset sets {told}, which {script} does not have; drop it and give the flags you need one by one")
    speaks = os.environ.get("RANK", "0") == "0"  # of several ranks, which all find the same mistake
    default = args_class(**chosen)
    args = tyro.cli(args_class, args=argv, default=default, console_outputs=speaks)
    if not args.resume:
        if isinstance(args, RunFlags):  # as every script of ours
            args.name = run_name(args, default, script)
        return args
    path = Path(args.resume) / "args.json"
    if not path.is_file():
        raise UserError(f"--resume {args.resume}: no args.json there; --resume takes the folder of a run, such as runs/{script}-s1")
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved["script"] != script:
        raise UserError(f"--resume {args.resume}: that run is of {saved['script']}, not of {script}")
    for name in saved.keys() & RETIRED.keys() - names:
        if saved[name] != RETIRED[name]:
            told = f"that run had --{name} {saved[name]}, which {script} no longer has"
            raise UserError(f"--resume {args.resume}: {told}; continue it with the version that began it, or start a new run")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k in names}
    before = args_class(**{**values, "resume": args.resume})  # flags that are newer than the run have their defaults
    resumed = tyro.cli(args_class, args=argv, default=before, console_outputs=speaks)
    was, free = asdict(before), {"resume", "steps", "tensorboard", "wandb"}
    differing = [k for k, v in asdict(resumed).items() if k not in free and v != was[k]]
    if differing:
        told = ", ".join(f"--{k.replace('_', '-')} (was {was[k]})" for k in differing)
        raise UserError(f"--resume {args.resume}: these flags differ from the run's: {told}; drop them, or start a new run with --out")
    if getattr(resumed, "lr_schedule", "") == "linear" and resumed.steps != before.steps and speaks:
        print(f"warning: --lr-schedule linear falls over all --steps: with {resumed.steps} for {before.steps} the learning rate jumps here")
    return resumed


def report(folder: Path, failed: UserError | None) -> None:
    """At the end of a run: print the verdict, each objective from start to end and what was lost, and draw curves.png into its folder.

    The first rank does. failed: what went wrong before, raised once that is done. Raises UserError, on every rank, also where the picture
    cannot be written.
    """
    from common.curves import draw
    from common.runs import load_run
    from common.verdict import verdict

    def tell() -> None:
        run = load_run(folder)
        print(f"\n{verdict(run)}\n")
        draw(run, folder / "curves.png")
        print(f"curves: {folder / 'curves.png'}" + ("" if failed else f"   model: {folder / 'model'}"))

    try:
        ranks.on_first(tell)
    finally:
        if failed:
            raise failed
