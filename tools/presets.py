"""Named flag values: `--preset NAME` replaces the defaults of some flags by what stands here, and does nothing else.

The training values are the paper's (arXiv 2602.06869, appendix F; those that its table does not show are in the authors' scripts): 810
steps are 90 epochs of the 300 training problems of MATH-500 at 32 prompts per step. The rate at which an algorithm moves its weights
goes with the number of steps: a script whose default is for 100 has the paper's in `PRESET`, and that is set as well. The paper turns the
KL term off for some algorithms; here it is on for all, so that they compare. Engine, checkpointing and sizes are ours, for the GPUs named.

One more preset is for a real model on two cores, with rewards and values of our own (docs/realmodel.md).
"""

import argparse
import difflib
import shutil
import textwrap
from dataclasses import asdict, dataclass
from importlib import import_module

import tyro

from tools.scripts import algorithms
from common.errors import UserError
from prompts import BOXED_SUFFIX

USAGE = ""

PAPER = {
    "steps": 810,
    "eval_every": 5,
    "prompts": 32,
    "completions": 16,
    "mini_batches": 2,
    "epochs": 1,
    "max_prompt_length": 1024,
    "max_new_tokens": 1024,
    "temperature": 1.0,
    "kl_coef": 1e-3,
    "lr": 1e-6,
    "lr_schedule": "constant",
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "answer_check": "boxed",
}
DATASETS = {
    "math500": {"dataset": "math500"},  # the paper's: 300 to train on, 100 to tune, 100 to test
    # all of MATH, its answers in a column of their own: 12,000 to train on (a tenth of them to tune), MATH-500 to test; the paper's prompt
    "math": {"dataset": "nlile/hendrycks-MATH-benchmark", "prompt_suffix": BOXED_SUFFIX},
}
SMALL = {"engine": "vllm", "activation_checkpointing": True, "micro_batch_tokens": 16384}  # 4 GPUs of 48 GB, as in the paper
LARGE = {"engine": "vllm", "activation_checkpointing": True, "micro_batch_tokens": 8192, "vllm_sleep": True}  # 4 GPUs of 80 GB
MODELS = {  # the paper's are the first four
    "qwen2.5-1.5b": {"model": "Qwen/Qwen2.5-1.5B", **SMALL},
    "qwen2.5-1.5b-instruct": {"model": "Qwen/Qwen2.5-1.5B-Instruct", **SMALL},
    "qwen3-1.7b-base": {"model": "Qwen/Qwen3-1.7B-Base", **SMALL},
    "smollm2-1.7b": {"model": "HuggingFaceTB/SmolLM2-1.7B", **SMALL},
    "qwen2.5-7b": {"model": "Qwen/Qwen2.5-7B", **LARGE},
}
PAPERS = {f"{model}-{data}": PAPER | flags | chosen for model, flags in MODELS.items() for data, chosen in DATASETS.items()}
SMOLLM2_WORDS = {
    "model": "smollm2-135m",
    "dataset": "words",
    "rewards": ("rewards.accuracy:accuracy", "rewards.units:units", "rewards.sentence:sentence"),
    "answer_check": "exact",
    "steps": 8,  # a first look: accuracy has fallen by then (docs/realmodel.md)
    "eval_every": 4,
    "eval_prompts": 48,
    "checkpoint_every": 4,
    "prompts": 4,
    "completions": 6,
    "mini_batches": 2,
    "max_prompt_length": 128,
    "max_new_tokens": 64,
    "temperature": 0.7,
    "kl_coef": 0.0,
    "lr": 3e-6,
    "micro_batch_tokens": 1024,
}
PRESETS = PAPERS | {"smollm2-135m-words": SMOLLM2_WORDS}


def named_preset(argv: list[str]) -> dict:
    """The flags, by the names of their fields, that `--preset NAME` or `--preset=NAME` on this command line sets; {} without one.

    Raises UserError naming --preset and the nearest that exists. A name that is missing is left to the command line's own parser.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", default="", const="")
    name = parser.parse_known_args(argv)[0].preset
    if not name:
        return {}
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}"
        raise UserError(f"--preset {name} does not exist; {hint}")
    return dict(PRESETS[name])


@dataclass
class Args:
    pass


def main(argv: list[str]) -> None:
    """the presets that `run.py ALGORITHM --preset NAME` knows, and the flags they set"""
    tyro.cli(Args, prog="python run.py presets", description="Named flag values; a flag given beside --preset wins.", args=argv)
    from algos.linear import Args as Shared  # torch is loaded here: help is told at once

    defaults = asdict(Shared())
    differing = {name: {k: v for k, v in values.items() if v != defaults[k]} for name, values in PRESETS.items()}
    common = dict(set.intersection(*(set(differing[name].items()) for name in PAPERS)))
    columns = min(shutil.get_terminal_size().columns, 140)

    def flags(values: dict) -> str:
        words = {k: " ".join(v) if isinstance(v, tuple) else f'"{v}"'.replace(" ", "\0") if " " in str(v) else v for k, v in values.items()}
        shown = {k.replace("_", "-"): v for k, v in words.items()}  # what is quoted is not to be wrapped
        return " ".join(f"--{k}" if v is True else f"--{k} {v}" for k, v in shown.items())

    def block(name: str, text: str) -> str:
        return f"{name}\n{textwrap.fill(text, columns, initial_indent='  ', subsequent_indent='  ', break_on_hyphens=False)}".replace(
            "\0", " "
        )

    print(block("all of the paper's", flags(common)))
    for name, values in differing.items():
        print(block(name, flags({k: v for k, v in values.items() if name not in PAPERS or k not in common})))
    for name in algorithms():
        if own := dict(getattr(import_module(f"algos.{name}").Args, "PRESET", ())):
            print(block(f"the paper's, for {name}", flags(own)))
