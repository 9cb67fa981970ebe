"""Seconds per training step of every algorithm on the testbed, where they go, ratios to linear, and peak memory, measured in one run.

With a learning rate of 0, so that all of them sample and train on the very same completions: trained, they soon differ in length.

python -m study.step_time [--steps 20] [--rounds 2] [--threads 2]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "rollout",
    "reward",
    "logprobs",
    "update",
    "weights",
)  # logprobs: of the policy and the reference before it; weights: what an algorithm does after it


@dataclass
class Args:
    steps: int = 20
    """training steps of each run; the first three warm up and do not count"""
    rounds: int = 2
    """runs of each algorithm, taken in turn, so that a drift of the machine falls on all of them"""
    threads: int = os.cpu_count() or 1
    """threads of each run (OMP_NUM_THREADS); runs never overlap"""


def measure(name: str, steps: int, threads: int) -> tuple[list[dict[str, float]], float]:
    """Run one algorithm; returns the seconds of every step after the third by part, and the peak resident memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, f"algos/{name}.py", "--steps", str(steps), "--eval-every", str(steps), "--lr", "0", "--out", str(out)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)  # this child's own peak, not the largest of all children
        if os.waitstatus_to_exitcode(status) != 0:
            raise RuntimeError(f"{name} failed:\n{errors}")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return [{part: row[f"time/{part}"] for part in PARTS} for row in rows[4:]], usage.ru_maxrss * unit / 1e6


def forward_and_backward(threads: int, repeats: int = 20) -> tuple[float, float]:
    """Median seconds of a forward pass with its graph, and of a backward pass through it, over a step's mini-batch on the testbed."""
    import torch

    from common.batch import pad
    from common.model import load_model, load_tokenizer, token_logprobs
    from common.rollout import TransformersEngine
    from prompts import load_prompts

    torch.set_num_threads(threads)
    tokenizer, policy = load_tokenizer("testbed"), load_model("testbed", torch.device("cpu"))
    prompts = load_prompts("arithmetic", tokenizer, "", "", "", 64)["train"].batch(1, 8, 1).ids
    ids, _ = TransformersEngine(policy, tokenizer).generate(prompts, 16, 56, 1.0, list(range(8)))
    batch = pad([prompt for prompt in prompts for _ in range(16)], ids, tokenizer.pad_token_id)
    seconds = []
    for _ in range(repeats):
        clock = [time.perf_counter()]
        loss = (token_logprobs(policy, batch, 1.0) * batch.mask).mean()
        clock.append(time.perf_counter())
        loss.backward()
        clock.append(time.perf_counter())
        seconds.append((clock[1] - clock[0], clock[2] - clock[1]))
    forward, backward = (median(values) for values in zip(*seconds, strict=True))
    return forward, backward


def law_and_statistics(threads: int, repeats: int = 20) -> float:
    """Median seconds of what a step spends on the covariance law and on statistics.jsonl: 16 prompts x 16 completions, 3 objectives, with
    the Gram matrices of two mini-batches. The drift that it reads is a by-product of the update."""
    import torch

    from common.observe import first_order_change
    from common.track import Tracker

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rewards, (drift, advantages) = torch.randint(0, 2, (256, 3)).float(), torch.randn(2, 256)
    age, lengths, gram = torch.arange(256) // 128, torch.randint(4, 57, (256,)), torch.randn(2, 3, 3)
    kept = {"rewards": rewards, "advantages": advantages, "lengths": lengths, "drift": drift, "age": age, "gram": gram}
    with tempfile.TemporaryDirectory() as folder:
        tracker, seconds = Tracker(Path(folder), {}, None, False, False), []
        for step in range(repeats):
            start = time.perf_counter()
            first_order_change(drift, age, advantages, rewards, 16, 2)
            tracker.keep(step, kept)
            seconds.append(time.perf_counter() - start)
    return median(seconds)


def main(args: Args) -> None:
    """Print the table."""
    names = sorted((path.stem for path in (ROOT / "algos").glob("[a-z]*.py")), key=lambda name: (name != "linear", name))
    seconds: dict[str, list] = {name: [] for name in names}
    memory = dict.fromkeys(names, 0.0)
    for name in tqdm(names * args.rounds, desc="runs"):
        steps, peak = measure(name, args.steps, args.threads)
        seconds[name] += steps
        memory[name] = max(memory[name], peak)
    totals = {name: median(sum(step.values()) for step in steps) for name, steps in seconds.items()}
    print(f"\nmedian seconds per step, 16 prompts x 16 completions, {args.threads} threads, {args.rounds} runs of {args.steps} steps each")
    print(f"{'':18}{'step':>8}{'/linear':>9}" + "".join(f"{part:>9}" for part in PARTS) + f"{'update/linear':>15}{'peak MB':>9}")
    update = {name: median(step["update"] for step in steps) for name, steps in seconds.items()}
    for name in names:
        parts = "".join(f"{median(step[part] for step in seconds[name]):9.3f}" for part in PARTS)
        ratios = totals[name] / totals["linear"], update[name] / update["linear"]
        print(f"{name:18}{totals[name]:8.3f}{ratios[0]:9.2f}{parts}{ratios[1]:15.2f}{memory[name]:9.0f}")
    forward, backward = forward_and_backward(args.threads)
    print(
        f"\nforward {forward:.3f} s, backward {backward:.3f} s over a mini-batch: with K = 3 objectives, one forward and K backward passes"
    )
    print(f"are (F + 3 B) / (F + B) = {(forward + 3 * backward) / (forward + backward):.2f} times one of each")
    logged = law_and_statistics(args.threads)
    print(f"the covariance law and statistics.jsonl of a step: {1000 * logged:.1f} ms, {logged / totals['linear']:.1%} of linear's step")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
