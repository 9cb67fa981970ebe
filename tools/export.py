"""`python run.py export`: the model of a run that was stopped, or could not write it, from its newest checkpoint, or of an earlier step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from common.runs import load_run
from common.checkpoint import load_checkpoint
from common.errors import UserError, require
from common.model import compute_dtype, load_model, load_tokenizer
from integrations.export import export

USAGE = "RUN [--step N] [--out DIR]"


@dataclass
class Args:
    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
    """run folder with a checkpoint, of any number of ranks"""
    step: int = 0
    """of the checkpoint of this step, such as the one that --keep-safe kept; default: the newest"""
    out: str = ""
    """a new folder for the model; default: model/ in the run folder, with --step model-step<N>/, replaced if it exists"""
    trust_remote_code: bool = False
    """run the code that comes with the run's --model, if it needs its own; a run folder alone cannot ask for that"""


def main(argv: list[str]) -> None:
    """write model/ from a run's newest checkpoint: of a run that was stopped, or one that could not write it"""
    args = tyro.cli(Args, prog="python run.py export", description="Write the model of a run from its newest checkpoint.", args=argv)
    run = Path(args.run)
    out = Path(args.out) if args.out else run / (f"model-step{args.step}" if args.step else "model")
    saved = load_run(run).args
    require(not (args.out and out.exists()), f"--out {out} exists already; give another folder")
    there = sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*") if path.name[5:].isdigit())
    told = f"--step {args.step}: {run / 'checkpoints'} has none of that step; there are {', '.join(map(str, there)) or 'none'}"
    require(not args.step or args.step in there, told)
    # as the run itself would write it here: in the dtype of its activations
    dtype = compute_dtype(saved.get("compute_dtype", "auto"), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer = load_tokenizer(saved["model"], args.trust_remote_code)
    policy = load_model(saved["model"], torch.device("cpu"), args.trust_remote_code)
    try:
        step, _ = load_checkpoint(run, policy, None, args.step or None)
    except UserError as error:
        raise UserError(f"RUN: {run / 'checkpoints'} has no checkpoint that can be read, so there is no model to write") from error
    export(policy, tokenizer, out, dtype)
    print(f"wrote {out}, the model of step {step}, in {str(dtype).removeprefix('torch.')}")
