"""Seconds per training step of linear.py and of TRL's GRPOTrainer, on the same model and prompts, taken in turn in one run.

Both sample P prompts x G completions, all of --max-new-tokens (random weights seldom end one; a real model ends them as it does), score
them with the same rewards and take one optimizer step of AdamW, without a KL term, with a learning rate of 0, so that both meet the same
policy in every step; in float32, on a GPU in bfloat16. TRL has gradient checkpointing off (its default is on, which is slower) and its
other defaults.

python -m study.trl_step_time [--model smollm2-135m] [--threads 2]     needs: pip install trl==1.16.0
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Literal

import torch
import tyro
from tqdm import tqdm

from study.scale import SIZES
from common.errors import plain_errors, require

ROOT = Path(__file__).resolve().parents[1]
SHAPE = {  # SmolLM2-135M's; random weights
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
WARM_UP = 1  # steps that do not count


@dataclass
class Args:
    model: Literal["smollm2-135m", "smollm2-shape", "0.5b", "testbed", "tiny"] = "smollm2-135m"
    """the real model on its word problems; its shape, or Qwen2.5-0.5B's, with random weights; the testbed's default base; or two layers,
    for a look at this script"""
    prompts: int = 4
    """prompts per step, P"""
    completions: int = 6
    """completions per prompt, G"""
    prompt_tokens: int = 90
    """tokens of every prompt to random weights; word problems have about 100, the testbed's about ten"""
    max_new_tokens: int = 40
    """longest completion, in tokens"""
    steps: int = 3
    """steps of each run that count"""
    rounds: int = 2
    """runs of each side, taken in turn"""
    threads: int = os.cpu_count() or 1
    """threads of each run (OMP_NUM_THREADS); runs do not overlap, but with --together"""
    together: bool = False
    """on a machine that others use as well: both sides at the same time on one thread, a core each, swapped after each round"""
    only: Literal["", "trl"] = ""
    """used by this script itself: run TRL's side in this process"""
    folder: str = ""
    """used by this script itself: the folder with model and prompts"""


def prepare(args: Args, folder: Path) -> None:
    """Write model/ and data/train.jsonl, data/test.jsonl into folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from common.model import load_tokenizer, load_whole
    from prompts import load_prompts

    problems = {"testbed": "arithmetic", "smollm2-135m": "words"}.get(args.model)
    tokenizer = load_tokenizer(args.model if problems else "testbed")
    if problems:
        model = load_whole(args.model, torch.device("cpu"))
        loaded = load_prompts(problems, tokenizer, "", "", "", 256)["train"].select(range(512))
        tokenizer.chat_template = None  # it has been applied
        rows = [{"prompt": tokenizer.decode(ids), "answer": str(a)} for ids, a in zip(loaded.ids, loaded.columns["answer"], strict=True)]
    else:
        torch.manual_seed(0)
        shapes = {"smollm2-shape": SHAPE, "0.5b": SHAPE | SIZES["0.5b"] | {"vocab_size": 151936}, "tiny": SHAPE | {"num_hidden_layers": 2}}
        model = LlamaForCausalLM(
            LlamaConfig(**shapes[args.model], eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        )
        draw = random.Random(0)
        rows = [{"prompt": " ".join(draw.choices("0123456789", k=args.prompt_tokens)), "answer": "1"} for _ in range(64)]
    assert problems or len(tokenizer(rows[0]["prompt"])["input_ids"]) == args.prompt_tokens
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for split, part in (("train", rows[32:]), ("test", rows[:32])):
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def run_ours(args: Args, folder: Path, out: Path, core: int | None = None) -> list[float]:
    """Seconds of every step that counts."""
    flags = {"model": folder / "model", "dataset": folder / "data", "prompts": args.prompts, "completions": args.completions}
    flags |= {"max-new-tokens": args.max_new_tokens, "steps": args.steps + WARM_UP, "mini-batches": 1, "kl-coef": 0, "lr": 0}
    flags |= {"eval-prompts": 2, "eval-every": 1000, "answer-check": "exact", "out": out}
    _run(args, ["algos/linear.py", *(text for name, value in flags.items() for text in (f"--{name}", str(value)))], core)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [sum(value for key, value in row.items() if key.startswith("time/")) for row in rows[1 + WARM_UP :]]


def run_trl(args: Args, folder: Path, out: Path, core: int | None = None) -> list[float]:
    """Seconds of every step that counts, in a process of its own."""
    names = ("model", "prompts", "completions", "max_new_tokens", "steps")
    flags = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    out.mkdir()
    _run(args, ["-m", "study.trl_step_time", *flags, "--only", "trl", "--folder", str(folder)], core)
    return json.loads((folder / "trl.json").read_text())[WARM_UP:]


def _run(args: Args, command: list[str], core: int | None) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    pinned = ["taskset", "--cpu-list", str(core)] if core is not None else []
    done = subprocess.run([*pinned, sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")


def train_with_trl(args: Args) -> None:
    """Take the steps, and write their seconds into trl.json."""
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from common.model import load_tokenizer
    from rewards.accuracy import accuracy
    from rewards.clarity import clarity

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *args, **kwargs) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *args, **kwargs) -> None:
            self.seconds.append(time.perf_counter() - self.start)

    folder, clock, size = Path(args.folder), Clock(), args.prompts * args.completions
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        max_steps=args.steps + WARM_UP,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=1,
        num_generations=args.completions,
        max_completion_length=args.max_new_tokens,
        learning_rate=0.0,
        beta=0.0,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        logging_steps=1,
    )
    data = load_dataset("json", data_files=str(folder / "data" / "train.jsonl"), split="train")
    model = str(folder / "model")
    GRPOTrainer(
        model=model,
        reward_funcs=[accuracy, clarity],
        args=config,
        train_dataset=data,
        processing_class=load_tokenizer(model),
        callbacks=[clock],
    ).train()
    (folder / "trl.json").write_text(json.dumps(clock.seconds))


def main(args: Args) -> None:
    """Print the medians and their ratio. Raises UserError where TRL is not installed."""
    if args.only:
        return train_with_trl(args)
    args.threads = 1 if args.together else args.threads
    require(find_spec("trl"), "TRL is not installed here: pip install trl==1.16.0")
    import transformers
    import trl

    seconds: dict[str, list[float]] = {"TRL": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(args, folder)
        for i in tqdm(range(args.rounds), desc="rounds"):
            outs = folder / f"trl-{i}", folder / f"ours-{i}"
            with ThreadPoolExecutor(2 if args.together else 1) as pool:  # one worker: one after the other
                cores = (i % 2, (i + 1) % 2) if args.together else (None, None)
                theirs = pool.submit(run_trl, args, folder, outs[0], cores[0])
                ours = pool.submit(run_ours, args, folder, outs[1], cores[1])
            seconds["TRL"] += theirs.result()
            seconds["ours"] += ours.result()
    work = f"{args.model}, {args.prompts} prompts x {args.completions} completions of at most {args.max_new_tokens} tokens"
    print(
        f"\n{work}, {args.threads} threads{', side by side' if args.together else ''}; median of {args.rounds} runs of {args.steps} steps"
    )
    print(f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    for side, values in seconds.items():
        print(f"{side:6}{median(values):8.2f} s a step  ({min(values):.2f} to {max(values):.2f})")
    print(f"ours / TRL: {median(seconds['ours']) / median(seconds['TRL']):.2f}")
    return None


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__))
