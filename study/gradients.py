"""Do the objectives' gradients conflict while one is lost? And the PL ratio: how steep the scalar
reward is where training stands.

    python -m study.gradients [--algos linear ctwa] [--seeds 2]

Trains with the scripts, and every --every steps takes each objective's policy gradient on fresh
completions of two disjoint halves of fixed training prompts of the testbed. <g_i of one half, g_j
of the other> has no bias; on one batch the gradients share the noise of its completions, and a
cosine comes out too high. A run folder is left with gradients.jsonl in it: `gram` [K,K],
`objective` [K] and, for equal weights, `gap` = V* - V and `pl_ratio` = |grad V|^2 / (2 gap), which
Theorem 6.4 bounds from below (docs/theory.md). The same command continues one that was stopped.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from common.batch import Batch, pad
from common.data import Prompts
from common.model import load_whole, token_logprobs
from common.rollout import TransformersEngine
from common.runs import load_run, read_rows
from common.seeds import derive
from rewards.accuracy import accuracy
from rewards.clarity import clarity
from rewards.conciseness import conciseness
from testbed.arithmetic import base_path, problems, tokenizer
from tools.scripts import ROOT

LONGEST = 56  # tokens of a completion, as in the scripts


@dataclass
class Args:
    algos: tuple[str, ...] = ("linear", "ctwa")
    """algorithms to train"""
    seeds: int = 2
    """number of seeds, 1 to this"""
    steps: int = 100
    """training steps"""
    every: int = 10
    """measure every so many steps, and before the first"""
    prompts: int = 64
    """training prompts to measure on, half of them in either half"""
    completions: int = 16
    """completions of each"""
    out: Path = Path("results/gradients")
    """results folder"""


def training_prompts(count: int, seed: int) -> Prompts:
    """Those of the first step of a run on the testbed."""
    columns = problems("train")
    ids = tokenizer()(columns["prompt"], add_special_tokens=False)["input_ids"]
    return Prompts(ids, columns).batch(1, count, seed)


def sampled(
    policy: nn.Module, prompts: Prompts, group: int, seeds: list[int], mean_length: float = 0.0
) -> tuple[Batch, Tensor]:
    """Completions of the testbed's prompts, a prompt's `group` in adjacent rows, and their rewards
    [P, G, K] for accuracy, conciseness and clarity; by default conciseness compares with their own
    mean length, as in the first step of a run."""
    encoder = tokenizer()
    engine = TransformersEngine(None, {encoder.eos_token_id}, encoder.pad_token_id, policy.device)
    engine.sync(policy, 0)
    ids, _ = engine.generate(prompts.ids, group, LONGEST, 1.0, seeds)
    texts = encoder.batch_decode(ids, skip_special_tokens=True)
    asked = prompts.repeat(group)
    batch = pad(asked.ids, ids, encoder.pad_token_id)
    mean_length = mean_length or batch.lengths.mean().item()
    rewards = accuracy(completions=texts, answer=asked.columns["answer"])
    rewards += conciseness(completion_ids=ids, mean_length=mean_length)
    rewards += clarity(completions=texts)
    return batch, Tensor(rewards).view(3, len(prompts), group).permute(1, 2, 0)


def policy_gradients(policy: nn.Module, batch: Batch, rewards: Tensor) -> Tensor:
    """Unbiased gradient of every objective's mean reward in float64:
    E[(r - mean of the prompt's other completions) grad log pi(y)]. rewards [P, G, K] -> [K, D]."""
    size, parameters = rewards.size(1), list(policy.parameters())
    weights = (rewards - rewards.mean(1, keepdim=True)) / (size - 1) / len(rewards)  # [P, G, K]
    likelihood = token_logprobs(policy, batch, 1.0).sum(1)  # [B]
    found = []
    for mean in weights.flatten(0, 1).T.to(likelihood) @ likelihood:
        gradient = torch.autograd.grad(mean, parameters, retain_graph=True)
        found.append(torch.cat([part.flatten() for part in gradient]).double())
    return torch.stack(found)


def cross_gram(first: Tensor, second: Tensor) -> Tensor:
    """Inner products of gradients [K, D] of disjoint halves, the mean of <g_i, h_j> and <h_i, g_j>:
    unbiased also on the diagonal. [K, K]."""
    products = first @ second.T
    return (products + products.T) / 2


def measure(model: Path, args: Args, mean_length: float, seed: int) -> dict:
    """A line of gradients.jsonl for a policy; the highest reward is 1."""
    policy, prompts = load_whole(str(model), "cpu"), training_prompts(args.prompts, 0)
    gradients, means = [], []
    for half in range(2):
        part = prompts.select(range(half, args.prompts, 2))
        seeds = [derive(seed, half, i) for i in range(len(part))]
        batch, rewards = sampled(policy, part, args.completions, seeds, mean_length)
        gradients.append(policy_gradients(policy, batch, rewards))
        means.append(rewards.mean((0, 1)))
    gram, objective = cross_gram(*gradients), torch.stack(means).mean(0)
    gap = 1 - objective.mean().item()
    line = {"gram": gram.tolist(), "objective": objective.tolist(), "gap": gap}
    return line | {"pl_ratio": gram.mean().item() / (2 * gap) if gap > 0 else None}


def follow(name: str, seed: int, args: Args) -> None:
    """Train one run in pieces of `every` steps and measure after each."""
    folder = args.out / "runs" / f"{name}-s{seed}"
    file = folder / "gradients.jsonl"
    for step in range(args.every, args.steps + 1, args.every):
        done = [row["step"] for row in read_rows(file)] if file.exists() else []
        if step in done:
            continue
        begun = (folder / "args.json").exists()
        where = ["--resume", folder] if begun else ["--out", folder, "--seed", seed]
        command = [sys.executable, ROOT / "algos" / f"{name}.py", *where, "--steps", step]
        subprocess.run(list(map(str, command)), check=True)
        length = load_run(folder).series("eval/length")[1][0]
        for at, model in ((0, base_path("fragile")), (step, folder / "model")):
            if at not in done:
                line = {"step": at} | measure(model, args, length, derive(seed, at))
                with file.open("a") as lines:
                    lines.write(json.dumps(line) + "\n")


def main(args: Args) -> None:
    for seed in range(1, args.seeds + 1):
        for name in args.algos:
            follow(name, seed, args)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__.splitlines()[0]))
