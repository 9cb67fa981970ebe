"""Seconds per training step, in turn and on equal work: of scripts, of two checkouts, of TRL.

    python -m study.step_time
    python -m study.step_time linear ctwa mgda --checkouts . /tmp/before
    python -m study.step_time linear --trl --model smollm2-135m --dataset words --max-new-tokens 40
    python -m study.step_time linear mgda --model 0.5b -- --engine vllm

With a learning rate of 0 all sample and train on the same completions; trained, they soon differ in
length. What follows -- is passed to the scripts. TRL's GRPOTrainer (pip install trl==1.16.0)
samples as many completions of the same problems and takes one optimizer step without a KL term, so
ours do so beside it: in float32, on a GPU in bfloat16, without gradient checkpointing.
"""

import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import torch
import tyro

from common.model import load_tokenizer, load_whole
from common.pretrained import model_path
from testbed import arithmetic, words
from tools.scripts import ROOT, algorithms

SIZES = {  # hidden and intermediate size, layers and heads of Qwen2.5's; the weights are random
    "0.5b": (896, 4864, 24, 14),
    "1.5b": (1536, 8960, 28, 12),
}
WARM_UP = 2  # steps of a run that do not count


@dataclass
class Args:
    scripts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """names; the first is what the others are compared with; default: all, beside TRL linear"""
    checkouts: tuple[str, ...] = (str(ROOT),)
    """folders of this project, each with the scripts"""
    trl: bool = False
    """TRL beside them"""
    model: str = "testbed"
    """as in the scripts, or 0.5b, 1.5b: a Qwen2 of random weights"""
    dataset: Literal["arithmetic", "words"] = "arithmetic"
    """problems"""
    prompts: int = 16
    """prompts per step"""
    completions: int = 16
    """completions per prompt"""
    max_new_tokens: int = 56
    """longest completion; random weights seldom end one"""
    steps: int = 10
    """steps of a run that count"""
    threads: int = 1
    """of each side"""
    rounds: int = 2
    """runs of each side, in turn, so that a drift of the machine falls on all"""


def written(model: str, folder: Path) -> str:
    """The model's name, or the folder of one of SIZES with the testbed's tokenizer, in bfloat16."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    if model not in SIZES:
        return model
    encoder, (hidden, intermediate, layers, heads) = arithmetic.tokenizer(), SIZES[model]
    config = Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=encoder.eos_token_id,
        pad_token_id=encoder.pad_token_id,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    encoder.save_pretrained(folder)
    return str(folder)


def run_script(
    checkout: str, script: str, args: Args, passed: list[str], out: Path
) -> pd.DataFrame:
    """The metrics of the steps that count. Raises CalledProcessError if the script fails."""
    flags = {name: getattr(args, name) for name in ("model", "dataset", "prompts", "completions")}
    flags |= {"max-new-tokens": args.max_new_tokens, "steps": args.steps + WARM_UP, "out": out}
    flags |= {"lr": 0, "desired-kl": 0, "eval-prompts": 2}  # no step, so none too long
    flags |= {"eval-every": 1000, "checkpoint-every": 1000}
    flags |= {"mini-batches": 1, "kl-coef": 0} if args.trl else {}
    command = [f"--{name}={value}" for name, value in flags.items()]
    command = [sys.executable, f"algos/{script}.py", *command, *passed]
    subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.DEVNULL)
    return pd.read_json(out / "metrics.jsonl", lines=True).iloc[1 + WARM_UP :]


def run_trl(args: Args, out: Path) -> pd.DataFrame:
    """The same of GRPOTrainer, with the seconds of a step as `time/step`."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rewards.accuracy import accuracy
    from rewards.clarity import clarity

    class Clock(TrainerCallback):
        def on_train_begin(self, *args, **kwargs) -> None:
            self.at = [time.perf_counter()]

        def on_step_end(self, *args, **kwargs) -> None:
            self.at.append(time.perf_counter())

    clock, gpu = Clock(), torch.cuda.is_available()
    total = args.prompts * args.completions
    # about 32 at a time, whole prompts: activations of more fill a card
    parts = math.gcd(args.prompts, max(total // 32, 1)) if gpu else 1
    columns = {"arithmetic": arithmetic, "words": words}[args.dataset].problems("train")
    path = model_path(args.model)
    GRPOTrainer(
        model=load_whole(path, "cuda" if gpu else "cpu"),
        processing_class=load_tokenizer(path),
        reward_funcs=[accuracy, clarity],
        train_dataset=Dataset.from_dict({key: columns[key] for key in ("prompt", "answer")}),
        callbacks=[clock],
        args=GRPOConfig(
            output_dir=str(out),
            max_steps=args.steps + WARM_UP,
            per_device_train_batch_size=total // parts,
            gradient_accumulation_steps=parts,
            num_generations=args.completions,
            max_completion_length=args.max_new_tokens,
            learning_rate=0.0,
            beta=0.0,
            gradient_checkpointing=False,
            use_cpu=not gpu,
            bf16=gpu,
            report_to=[],
            save_strategy="no",
        ),
    ).train()
    return pd.DataFrame({"time/step": pd.Series(clock.at).diff()[1 + WARM_UP :]})


def main(args: Args, passed: list[str]) -> None:
    """Print a line per side: medians of the seconds of a step and its parts, the ratio to the first
    side, tokens per second, the gap between sampler and trainer, and of a GPU the peak memory."""
    rows, scripts = [], args.scripts or (["linear"] if args.trl else algorithms())
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args.model = written(args.model, folder / "model")
        for _ in range(args.rounds):
            for checkout in args.checkouts:
                for script in scripts:
                    found = run_script(checkout, script, args, passed, folder / f"run-{len(rows)}")
                    rows.append(found.assign(side=f"{checkout}/{script}"))
            if args.trl:
                rows.append(run_trl(args, folder / "trl").assign(side="TRL"))
    medians = pd.concat(rows).groupby("side", sort=False).median(numeric_only=True)
    shown = medians.filter(like="time/").rename(columns=lambda key: key.removeprefix("time/"))
    seconds = shown.sum(axis=1)
    shown["s/step"], shown["ratio"] = seconds, seconds / seconds.iloc[0]
    shown["tokens/s"] = medians["length/mean"] * args.prompts * args.completions / seconds
    print(shown.join(medians.filter(regex="peak|gap")).to_string(float_format="{:.3f}".format))


if __name__ == "__main__":
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    own = tyro.cli(Args, args=sys.argv[1:cut], description=__doc__.splitlines()[0])
    main(own, sys.argv[cut + 1 :])
