"""Seconds per step and their parts, tokens per second, share of the GPU's peak, peak memory beside the formula, and the largest mean gap
between sampler and trainer, of every algorithm on a model of random weights.

Nothing is downloaded: the model is a Qwen2 configuration of the named size, written to a temporary folder with random weights, and the
prompts are the testbed's. Random weights seldom end a completion, so each is --max-new-tokens long: the work is the same for all.

python -m study.scale --size 0.5b [--algorithms all] [--ranks 1] [--steps 20] [--engine transformers]
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import torch
import tyro
from tqdm import tqdm

from tools import memory

ROOT = Path(__file__).resolve().parents[1]
SIZES = {  # of Qwen2.5's released models; "tiny" is for a look at this script on a CPU
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2},
}
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}  # dense bfloat16 FLOP/s, from the makers' data sheets
# Floating-point operations of the update per token and parameter, of which a forward pass takes 2 and a backward pass 4, with K = 3: of
# plain algorithms; with a gradient of each objective and the KL term in every update; with one of each objective before the updates
PLAIN, WEIGHED, BEFORE = 2 + 4, 2 + 4 * (3 + 1), (2 + 4 * 3) + (2 + 4)
WORK = {"mgda": WEIGHED, "gradnorm": WEIGHED, "nash_mtl": WEIGHED, "dynamic_weighting": BEFORE}


@dataclass
class Args:
    size: Literal["tiny", "0.5b", "1.5b"] = "0.5b"
    """the model's shape"""
    algorithms: tuple[str, ...] = ("all",)
    """names of scripts, or all"""
    ranks: int = 1
    """processes, one per GPU"""
    steps: int = 20
    """training steps; the first three warm up and do not count in the times"""
    prompts: int = 16
    """prompts per step, of 16 completions each"""
    max_new_tokens: int = 512
    """length of every completion, in tokens"""
    micro_batch_tokens: int = 16384
    """as in the scripts"""
    engine: Literal["transformers", "vllm"] = "transformers"
    """as in the scripts"""
    activation_checkpointing: bool = True
    """as in the scripts; without it a prompt is read once for all its completions where that saves a third of the tokens"""
    vllm_sleep: bool = False
    """as in the scripts: vLLM gives its memory back while the policy trains"""


def write_model(size: str, folder: Path):
    """A Qwen2 checkpoint in bfloat16 of random weights, and the testbed's tokenizer. Returns its config."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    from testbed.arithmetic import tokenizer

    logging.disable_progress_bar()
    vocabulary = 72 if size == "tiny" else 151936
    torch.manual_seed(0)
    config = Qwen2Config(**SIZES[size], vocab_size=vocabulary, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0, bos_token_id=None)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return Qwen2Config.from_pretrained(folder)


def measure(name: str, model: Path, args: Args, out: Path) -> list[dict]:
    """Run one algorithm and return its lines of metrics, without the first three."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.ranks}"] if args.ranks > 1 else []
    command = [sys.executable, *command, f"algos/{name}.py", "--model", str(model), "--out", str(out), "--lr=1e-6", "--eval-prompts=16"]
    command += [f"--{flag}={args.steps}" for flag in ("steps", "eval-every", "checkpoint-every")] + ["--max-prompt-length=16"]
    command += [f"--prompts={args.prompts}", f"--max-new-tokens={args.max_new_tokens}", f"--micro-batch-tokens={args.micro_batch_tokens}"]
    command += [f"--engine={args.engine}", *(["--activation-checkpointing"] if args.activation_checkpointing else [])]
    command += ["--vllm-sleep"] if args.vllm_sleep else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][4:]


def main(args: Args) -> None:
    """Print the table. Raises SystemExit if a run fails."""
    names = sorted(p.stem for p in (ROOT / "algos").glob("[a-z]*.py")) if args.algorithms == ("all",) else args.algorithms
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((flops for known, flops in PEAKS.items() if known in gpu), None)
    workload = f"{args.prompts} x 16 completions of {args.max_new_tokens} tokens, {args.engine}"
    print(f"{gpu or 'no GPU'}, {args.ranks} rank(s), Qwen2 {args.size}, {workload}")
    columns = {"s/step": 8, "rollout": 9, "logprobs": 10, "update": 9, "tokens/s": 10, "of peak": 9, "peak GiB": 10, "formula": 9, "gap": 9}
    print(" " * 18 + "".join(f"{name:>{width}}" for name, width in columns.items()))
    with tempfile.TemporaryDirectory() as folder:
        config = write_model(args.size, Path(folder) / "model")
        shape = memory.shape_of(config)
        for name in tqdm(names, desc="runs"):
            rows = measure(name, Path(folder) / "model", args, Path(folder) / name)
            times = {part: median(row[f"time/{part}"] for row in rows) for part in ("rollout", "reward", "logprobs", "update", "weights")}
            tokens = median(row["length/mean"] for row in rows) * args.prompts * 16
            # old and reference log-probabilities are one forward pass each; what is computed again is no useful work
            useful = (2 + 2 + WORK.get(name, PLAIN)) * shape.parameters * tokens
            update = times["logprobs"] + times["update"]
            share = f"{useful / update / (peak * args.ranks):9.1%}" if peak else f"{'-':>9}"
            setup = memory.Setup(
                ranks=args.ranks, local_ranks=args.ranks, sharded=bool(gpu) or args.ranks > 1, compute_bytes=2 if gpu else 4,
                device_bytes=torch.cuda.get_device_properties(0).total_memory if gpu else 0, gradients=3 if name in WORK else 1,
                prompts=args.prompts, max_prompt_length=16, max_new_tokens=args.max_new_tokens, micro_batch_tokens=args.micro_batch_tokens,
                activation_checkpointing=args.activation_checkpointing, engine=args.engine,
            )  # fmt: skip
            held = max((row["memory/peak_gib"] for row in rows), default=0) if gpu else None
            step, gap = sum(times.values()), max(row["sampler/gap"] for row in rows)
            print(
                f"{name:18}{step:8.2f}{times['rollout']:9.2f}{times['logprobs']:10.2f}{times['update']:9.2f}{tokens / step:10,.0f}{share}"
                f"{f'{held:10.1f}' if held else '         -'}{memory.peak(memory.terms(shape, setup), device=1) / 2**30:9.1f}"
                f"{gap:9.1e}"
            )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
