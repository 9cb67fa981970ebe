"""Which of the testbed's six habits a model has: the share of each among completions sampled from a base or from a finished run.

python -m study.habits testbed runs/linear-s1 runs/ctwa-s1

A completion has a habit if it is laid out like it, whatever its numbers are; what is laid out otherwise is `other`, and the commonest of
it is printed, with # for a number and ± for an operator.
"""

import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tqdm import tqdm

from common.errors import plain_errors, require
from common.model import load_tokenizer, load_whole
from common.rollout import TransformersEngine, sample
from common.seeds import derive
from integrations.pretrained import TESTBED, model_path
from prompts import ARITHMETIC, load_prompts
from rewards.accuracy import accuracy
from testbed.arithmetic import BASES, SLIPS, solution, split

AT_ONCE = 64  # problems
SHOWN = 0.05  # share from which the commonest other layout is printed


@dataclass
class Args:
    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    """run folders, or testbed[:base]"""
    split: Literal["test", "tune"] = "tune"
    """problems to sample on"""
    completions: int = 16
    """completions of each problem, at temperature 1"""


def layout(text: str) -> str:
    """The text with # for every number and ± for every operator."""
    return re.sub(r"[+-]", "±", re.sub(r"\d+", "#", text))


def habits(operations: int) -> dict[str, str]:
    """Layout -> habit, for problems of so many operations."""
    problem = split("tune", operations)[0]
    return {layout(solution(problem, style, random.Random(0))): style for style in SLIPS}


def source(name: str) -> tuple[str, str, int]:
    """(--model, --dataset, --max-new-tokens) of a base or a run. Raises UserError for anything else."""
    if name.split(":")[0] == TESTBED:
        operations = BASES[Path(model_path(name)).name].operations
        dataset = next(dataset for dataset, count in ARITHMETIC.items() if count == operations)
        return name, dataset, 56 if operations == 2 else 80  # the longest habit has 40 or 55 tokens
    folder = Path(name)
    require((folder / "args.json").is_file(), f"{name} is no run folder and no testbed[:base]: it has no args.json")
    args = json.loads((folder / "args.json").read_text())
    require(args["dataset"] in ARITHMETIC, f"{name} was trained on {args['dataset']}; the habits are those of {', '.join(ARITHMETIC)}")
    require((folder / "model").is_dir(), f"{name} has no model yet: finish it, python run.py {args['script']} --resume {name}")
    return str(folder / "model"), args["dataset"], args["max_new_tokens"]


def count(model: str, dataset: str, max_new_tokens: int, part: str, completions: int) -> tuple[Counter, float, float]:
    """How many completions have each layout, the mean accuracy and the mean number of tokens. Raises UserError as `load_whole` does."""
    tokenizer = load_tokenizer(model)
    engine = TransformersEngine(load_whole(model, torch.device("cpu")), tokenizer)
    prompts = load_prompts(dataset, tokenizer, "", "", "", 64)[part]
    seen, right, tokens = Counter(), 0.0, 0
    for first in tqdm(range(0, len(prompts), AT_ONCE), desc=model, leave=False):
        some = prompts.select(range(first, min(first + AT_ONCE, len(prompts))))
        seeds = [derive(0, first + i) for i in range(len(some))]
        ids = sample(engine, some.ids, completions, max_new_tokens, 1.0, seeds).ids
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        seen.update(map(layout, texts))
        right += sum(accuracy(completions=texts, answer=some.repeat(completions)["answer"], answer_check="exact"))
        tokens += sum(map(len, ids))
    return seen, right / seen.total(), tokens / seen.total()


def main(args: Args) -> None:
    """Print a line per model. Raises UserError as `source` does, before anything is sampled."""
    require(args.completions > 0, f"--completions {args.completions} must be at least 1")
    require(bool(args.models), "habits: of which models? python -m study.habits testbed runs/ctwa-s1")
    sources = [source(name) for name in args.models]
    width, others = max(map(len, args.models)), []
    print(f"share of every habit, accuracy and mean tokens; {args.completions} completions of each {args.split} problem, temperature 1")
    print(" " * width + "".join(f"{head:>9}" for head in (*SLIPS, "other", "accuracy", "tokens")))
    for name, (model, dataset, max_new_tokens) in zip(args.models, sources, strict=True):
        seen, right, tokens = count(model, dataset, max_new_tokens, args.split, args.completions)
        known, shares = habits(ARITHMETIC[dataset]), Counter()
        for shape, times in seen.items():
            shares[known.get(shape, "other")] += times / seen.total()
        cells = "".join(f"{shares[style]:9.3f}" for style in (*SLIPS, "other"))
        print(f"{name:{width}}{cells}{right:9.2f}{tokens:9.1f}", flush=True)
        shape, times = max(((s, n) for s, n in seen.items() if s not in known), key=lambda pair: pair[1], default=("", 0))
        if times >= SHOWN * seen.total():
            others.append(f"{name}, {times / seen.total():.3f}: " + shape.replace("\n", " ⏎ "))
    if others:
        print("\nThe commonest other layout", *others, sep="\n")


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__))
