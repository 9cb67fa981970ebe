"""The first half hour on a GPU: what has not been run on one, in the order of what it would tell.

    python -m study.gpu [--dry-run] [--only scale trl]

Each part is a few commands that can be run by themselves. What a part prints goes into a file of
results/gpu/; a command that fails, or takes ten minutes, does not stop the next.
"""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Literal

import tyro

TIME = "python -m study.step_time"
LONG = "--max-new-tokens 512 --steps 5 --rounds 1"
PARTS = {
    # versions, what doctor says; sharding and reading prompts once, on the card
    "check": (
        "nvidia-smi",
        "python run.py doctor",
        "python -m pytest -n0 tests/plumbing/test_policy.py tests/plumbing/test_sampler.py",
    ),
    # seconds of a step by parts, tokens per second, peak memory
    "scale": (
        f"{TIME} --model 0.5b {LONG} -- --activation-checkpointing",
        f"{TIME} linear ctwa mgda --model 1.5b {LONG} -- --activation-checkpointing",
        f"{TIME} linear --model 1.5b {LONG} -- --micro-batch-tokens 8192",
    ),
    # the gap between sampler and trainer after each sync, sleep and wake, beside transformers
    "vllm": (
        f"{TIME} linear --model 0.5b {LONG} -- --engine vllm",
        f"{TIME} linear --model 0.5b {LONG} -- --engine vllm --vllm-sleep",
        f"{TIME} linear --model 0.5b {LONG}",
    ),
    # TRL on the same model, batch and tokens
    "trl": (f"{TIME} linear --trl --model 0.5b --max-new-tokens 256 --steps 5",),
    # the effect on a real model, which nobody planted, with curves
    "words": (
        "python run.py bench --algos linear ctwa ratchet --seeds 1 --out results/gpu/words "
        "-- --preset smollm2-135m-words --steps 100",
    ),
}


def main(only: tuple[Literal[*PARTS], ...] = tuple(PARTS), dry_run: bool = False) -> None:
    """Run the parts, or print their commands."""
    folder = Path("results/gpu")
    folder.mkdir(parents=True, exist_ok=True)
    for name in only:
        with (folder / f"{name}.txt").open("a") as file:
            for command in PARTS[name]:
                print(f"{name}: {command}", flush=True)
                if not dry_run:
                    run(command, file)


def run(command: str, file) -> None:
    """One command, with what it prints in an open file, and what became of it printed."""
    words = shlex.split(command)
    words[0] = sys.executable if words[0] == "python" else words[0]
    try:
        subprocess.run(words, stdout=file, stderr=file, timeout=600, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        print(f"    {error}", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__.splitlines()[0])
