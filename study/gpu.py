"""The first half hour on a GPU: what has not been run on one, in the order of what it would tell.

    python -m study.gpu [--dry-run] [--only scale trl]

Each part is a few commands that can be run by themselves. What a part prints goes into a file of
results/gpu/; a command that fails, or takes ten minutes and is stopped, does not stop the next.
"""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import tyro

LIMIT = 600  # seconds of a command
TIME = "python -m study.step_time"
LONG = "--max-new-tokens 256 --steps 5 --rounds 1"
PARTS = {
    # versions, what doctor says of the sampler with changed weights; the testbed, as on a CPU
    "check": (
        "nvidia-smi",
        "python run.py doctor",
        "python run.py doctor --compute-dtype float32",
        "python run.py ctwa --out results/gpu/ctwa",
    ),
    # seconds of a step by parts, tokens per second, peak memory
    "scale": (
        *(
            f"{TIME} {name} --model {size} {LONG} -- --activation-checkpointing"
            for size, names in (("0.5b", "linear ctwa ratchet mgda"), ("1.5b", "linear ctwa mgda"))
            for name in names.split()
        ),
        f"{TIME} linear --model 1.5b {LONG} -- --micro-batch-tokens 8192",
    ),
    # the gap between sampler and trainer after each sync, sleep and wake, beside transformers: of
    # weights that change, or a sync that does nothing would not show
    "vllm": (
        f"{TIME} linear --model 0.5b {LONG} -- --engine vllm --lr 1e-3",
        f"{TIME} linear --model 0.5b {LONG} -- --engine vllm --vllm-sleep --lr 1e-3",
        f"{TIME} linear --model 0.5b {LONG}",
    ),
    # TRL on the same model, batch and tokens
    "trl": (f"{TIME} linear --trl --model 0.5b --max-new-tokens 256 --steps 5",),
    # the effect on a real model, which nobody planted, with curves
    "words": (
        "python run.py bench --algos linear ctwa ratchet --seeds 1 --out results/gpu/words "
        "-- --preset smollm2-135m-words --steps 48",
    ),
}


def main(only: tuple[Literal[*PARTS], ...] = tuple(PARTS), dry_run: bool = False) -> None:
    """Run the parts, or print their commands."""
    folder = Path("results/gpu")
    for part in only:
        for command in PARTS[part]:
            print(f"{part}: {command}", flush=True)
            if not dry_run:
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / f"{part}.txt").open("a") as file:
                    run(command, file)


def run(command: str, file) -> None:
    """One command, with what it prints in an open file, and what became of it printed."""
    words = shlex.split(command)
    words[0] = sys.executable if words[0] == "python" else words[0]
    try:
        with subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True) as process:
            try:
                code = process.wait(LIMIT)
            except BaseException:  # Ctrl-C too, which does not reach it
                os.killpg(process.pid, signal.SIGKILL)  # what it started holds the card as well
                raise
        if code:
            print(f"    it ended with {code}", flush=True)
    except (subprocess.TimeoutExpired, OSError) as error:
        print(f"    {error}", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__.splitlines()[0])
