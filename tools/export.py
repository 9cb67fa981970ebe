"""`python run.py export`: the model of a run that was stopped, or could not write it, from its
newest checkpoint, or of an earlier step."""

from pathlib import Path

import torch
import tyro

from common.checkpoint import load_checkpoint
from common.errors import require
from common.model import add_adapters, export, load_tokenizer, load_whole
from common.pretrained import model_path
from common.runs import load_run

USAGE = "RUN [--step N] [--out DIR]"


def main(argv: list[str]) -> None:
    """write model/ from the newest checkpoint of a run that was stopped or could not write it"""
    tyro.cli(write, prog="python run.py export", args=argv)


def write(run: Path, /, step: int = 0, out: str = "", trust_remote_code: bool = False) -> None:
    """Write the model of a run from its newest checkpoint.

    Args:
        run: run folder with a checkpoint, of any number of ranks
        step: of the checkpoint of this step, such as the one that --keep-safe kept; 0: the newest
        out: a new folder for the model; default: model/ in the run folder, with --step
            model-step<N>/, replaced if it exists
        trust_remote_code: run the code that comes with the run's --model, if it needs its own; a
            run folder alone cannot ask for that
    """
    saved = load_run(run).args
    folder = Path(out or run / (f"model-step{step}" if step else "model"))
    require(not (out and folder.exists()), f"--out {out} exists already; give another folder")
    model = model_path(saved["model"])
    policy = load_whole(model, "cpu", trust_remote_code)
    if rank := saved.get("lora_rank"):
        add_adapters(policy, rank)
    found, state = load_checkpoint(run, policy, of=step or None)
    name = state.get("computed", "float32")  # as the run itself would write it
    export(policy, load_tokenizer(model, trust_remote_code), folder, getattr(torch, name))
    print(f"wrote {folder}, the model of step {found}, in {name}")
