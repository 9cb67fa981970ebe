"""The first half hour on a GPU: everything that has not been run on one, in the order of what it would tell, a report for each.

python -m study.gpu [--out results/gpu] [--only check scale vllm trl words] [--tiny]

Each part is a few commands that can be run by themselves; --dry-run prints them. A part that fails, or passes its time, is noted, and the
next one begins. --tiny takes the smallest sizes, to try this script on a CPU.
"""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from common.errors import plain_errors, require

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Part:
    asks: str  # what is to be learned from it
    minutes: float  # after which it is stopped
    commands: tuple[str, ...]
    tiny: tuple[str, ...]  # the same on a CPU


SCALE, TRL = "python -m study.scale", "python -m study.trl_step_time"
SMALL = "--size tiny --steps 5 --prompts 2 --max-new-tokens 16"
PARTS = {
    "check": Part(
        "versions; what doctor says; ranks, sharding and prompts read once on the card",
        5,
        (
            "nvidia-smi",
            "python run.py doctor",
            "python -m pytest -n0 tests/plumbing/test_models.py tests/plumbing/test_prompts_once.py tests/plumbing/test_grads.py",
        ),
        ("python run.py doctor", "python -m pytest -n0 tests/plumbing/test_prompts_once.py"),
    ),
    "scale": Part(
        "every script at 0.5B; three at 1.5B: seconds per step by parts, share of the card's peak, peak memory beside the formula",
        10,
        (
            f"{SCALE} --size 0.5b --steps 5",
            f"{SCALE} --size 1.5b --steps 6 --algorithms linear ctwa mgda",
            f"{SCALE} --size 1.5b --steps 6 --algorithms linear --no-activation-checkpointing --micro-batch-tokens 8192",
        ),
        (f"{SCALE} {SMALL} --algorithms linear ctwa", f"{SCALE} {SMALL} --algorithms linear --no-activation-checkpointing"),
    ),
    "vllm": Part(
        "vLLM on CUDA: the gap between sampler and trainer after each sync, sleep and wake, tokens per second beside transformers'",
        5,
        (
            f"{SCALE} --size 0.5b --steps 8 --algorithms linear --engine vllm",
            f"{SCALE} --size 0.5b --steps 8 --algorithms linear --engine vllm --vllm-sleep",
            f"{SCALE} --size 0.5b --steps 8 --algorithms linear",
        ),
        (f"{SCALE} {SMALL} --algorithms linear",),
    ),
    "trl": Part(
        "seconds per step beside TRL's on the same model, batch and tokens",
        4,
        (f"{TRL} --model 0.5b --prompts 16 --completions 16 --max-new-tokens 256 --steps 5 --rounds 2",),
        (f"{TRL} --model testbed --steps 1 --rounds 1",),
    ),
    "words": Part(
        "interference on SmolLM2-135M, which nobody planted: linear, CTWA and ratchet, 100 steps, with curves",
        8,
        ("python run.py bench --algos linear ctwa ratchet --seeds 1 --out results/gpu-words -- --preset smollm2-135m-words --steps 100",),
        ("python run.py bench --algos linear ratchet --seeds 1 --steps 2 --out results/gpu-tiny -- --eval-prompts 16",),
    ),
}


@dataclass
class Args:
    out: str = "results/gpu"
    """a new folder for the reports"""
    only: tuple[str, ...] = tuple(PARTS)
    """parts, in this order"""
    tiny: bool = False
    """the smallest sizes, on a CPU"""
    dry_run: bool = False
    """print the commands and run none"""


def report(part: Part, commands: tuple[str, ...], path: Path) -> str:
    """Run the commands one after the other, with what they print in the file; what became of them, in a word or two."""
    end, failed = time.monotonic() + 60 * part.minutes, []
    with open(path, "w", encoding="utf-8") as file:
        for command in commands:
            file.write(f"\n$ {command}\n")
            file.flush()
            words = shlex.split(command)
            words[0] = sys.executable if words[0] == "python" else words[0]
            try:
                left = max(end - time.monotonic(), 1)
                done = subprocess.run(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=left, env=os.environ, check=False)
                failed += [f"exit code {done.returncode}: {command}"] if done.returncode else []
            except (subprocess.TimeoutExpired, OSError) as error:
                failed.append(f"{type(error).__name__}: {command}")
    return "; ".join(failed) or "done"


def main(args: Args) -> None:
    """Run the parts. Raises UserError naming --only or --out."""
    unknown = sorted(set(args.only) - set(PARTS))
    require(not unknown, f"--only {' '.join(unknown)}: the parts are {', '.join(PARTS)}")
    folder = Path(args.out)
    require(args.dry_run or not folder.exists(), f"--out {folder} exists already; give another folder")
    for name, part in PARTS.items():
        if name not in args.only:
            continue
        commands = part.tiny if args.tiny else part.commands
        print(f"{name}: {part.asks} (at most {part.minutes:g} minutes)")
        if args.dry_run:
            print("".join(f"    {command}\n" for command in commands))
            continue
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        told = report(part, commands, folder / f"{name}.txt")
        print(f"    {told}; {time.monotonic() - start:.0f} s; {folder / name}.txt", flush=True)


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__))
