"""Do the objectives' gradients conflict while one of them is lost? And the PL ratio, how steep the scalar reward is where training stands.

python -m study.gradients [--algos linear ctwa] [--seeds 2]

Trains with the scripts, and every --every steps takes each objective's policy gradient on fresh completions of two disjoint halves of
fixed training prompts. <g_i of one half, g_j of the other> has no bias; on one batch the objectives' gradients share the noise of its
completions, and a cosine comes out too high. A run folder of the script is left with gradients.jsonl in it: `gram` [K,K], `objective` [K]
and, for equal weights, `gap` = V* - V and `pl_ratio` = |grad V|^2 / (2 gap), which Theorem 6.4 bounds from below (docs/theory.md).
The same command continues one that was stopped. `python -m study.figures 5` draws it.
"""

import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

import rewards as reward_functions
from tools.command_line import parse
from common.batch import Batch, micro_batches, pad
from common.errors import plain_errors, require
from common.grads import backward_each
from common.model import load_model, load_tokenizer, token_logprobs
from common.rollout import TransformersEngine
from common.seeds import derive
from prompts import Prompts, load_prompts


@dataclass
class Args:
    algos: tuple[str, ...] = ("linear", "ctwa")
    """algorithms to train"""
    seeds: int = 2
    """number of seeds, 1 to this"""
    model: str = "testbed"
    """testbed[:base]; another model's K gradients must fit in memory twice"""
    steps: int = 100
    """training steps"""
    every: int = 10
    """measure every so many steps, and before the first"""
    prompts: int = 64
    """training prompts to measure on, half of them in either half"""
    completions: int = 16
    """completions of each"""
    out: str = "results/gradients"
    """results folder"""


def policy_gradients(policy: nn.Module, batch: Batch, rewards: Tensor, group_size: int) -> list[Tensor]:
    """Unbiased gradient of every objective's mean reward, K flat tensors: E[(r - mean of the prompt's other completions) grad log pi(y)].

    rewards [B,K]; a prompt's group_size completions in adjacent rows.
    """
    groups = rewards.view(-1, group_size, rewards.size(1))
    baselined = ((groups - groups.mean(1, keepdim=True)) * group_size / (group_size - 1)).flatten(0, 1)  # leave one out
    parameters = list(policy.parameters())
    gradients: list[list[Tensor | None]] = [[None] * len(parameters) for _ in range(rewards.size(1))]
    for micro in micro_batches(batch, torch.arange(len(rewards)), 4096):
        log_likelihood = (token_logprobs(policy, micro, 1.0) * micro.mask).sum(1)
        backward_each([(column * log_likelihood).sum() / len(rewards) for column in baselined[micro.rows].T], parameters, gradients)
    return [torch.cat([g.flatten() for g in gradient]).double() for gradient in gradients]


def cross_gram(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Inner products of gradients of disjoint halves, the mean of <g_i, h_j> and <h_i, g_j>: unbiased also on the diagonal. [K, K]."""
    products = torch.stack(first) @ torch.stack(second).T
    return (products + products.T) / 2


def measure(model: str, prompts: Prompts, tokenizer, objectives: dict, group_size: int, mean_length: float, seed: int, limit: int) -> dict:
    """A line of gradients.jsonl for a policy: gram, objective, gap and pl_ratio at equal weights and highest rewards of 1."""
    policy = load_model(model, torch.device("cpu"))
    engine = TransformersEngine(policy, tokenizer)
    halves, means = [], []
    for half in range(2):
        part = prompts.select(list(range(half, len(prompts), 2)))
        ids, _ = engine.generate(part.ids, group_size, limit, 1.0, [derive(seed, half, i) for i in range(len(part))])
        columns = part.repeat(group_size)
        rewards = reward_functions.score(
            objectives,
            prompts=columns["prompt"],
            completions=tokenizer.batch_decode(ids, skip_special_tokens=True),
            completion_ids=ids,
            mean_length=mean_length,
            columns=columns,
            answer_check="exact",
        )
        batch = pad([p for p in part.ids for _ in range(group_size)], ids, tokenizer.pad_token_id)
        halves.append(policy_gradients(policy, batch, rewards, group_size))
        means.append(rewards.mean(0))
    gram, objective = cross_gram(*halves), torch.stack(means).mean(0)
    gap = 1 - objective.mean().item()
    slope = gram.mean().item()  # |sum_k g_k / K|^2
    return {"gram": gram.tolist(), "objective": objective.tolist(), "gap": gap, "pl_ratio": slope / (2 * gap) if gap > 0 else None}


def follow(name: str, seed: int, args: Args, bar: tqdm) -> None:
    """Train one run in pieces of `every` steps and measure after each."""
    folder = Path(args.out) / "runs" / f"{name}-s{seed}"
    script, file = import_module(f"algos.{name}"), folder / "gradients.jsonl"
    for step in range(args.every, args.steps + 1, args.every):
        checkpoints = sorted((folder / "checkpoints").glob("step_??????"))
        reached = int(checkpoints[-1].name[5:]) if checkpoints else 0
        done = {json.loads(line)["step"] for line in file.read_text().splitlines()} if file.exists() else set()
        if reached < step:
            where = ["--resume", str(folder)] if reached else ["--out", str(folder), "--model", args.model, "--seed", str(seed)]
            with redirect_stdout(StringIO()):  # a verdict after each piece
                script.main(parse(script.Args, name, [*where, "--steps", str(step)]))
        flags = json.loads((folder / "args.json").read_text())
        tokenizer = load_tokenizer(args.model)
        prompts = load_prompts(flags["dataset"], tokenizer, "", "", "", flags["max_prompt_length"])["train"].batch(1, args.prompts, 0)
        start = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["eval/length"]
        objectives = reward_functions.load(flags["rewards"])
        for at, model in ((0, args.model), (step, str(folder / "model"))):
            if at not in done and (at == 0 or reached <= step):
                line = measure(model, prompts, tokenizer, objectives, args.completions, start, derive(seed, at), flags["max_new_tokens"])
                with open(file, "a") as lines:
                    lines.write(json.dumps({"step": at} | line) + "\n")
                done.add(at)
        bar.update(args.every)


def main(args: Args) -> None:
    require(args.steps % args.every == 0, f"--steps {args.steps} must be a multiple of --every {args.every}")
    require(args.prompts % 2 == 0 and args.completions >= 2, "--prompts must be even and --completions at least 2")
    (Path(args.out) / "runs").mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(args.algos) * args.seeds * args.steps, unit="step", desc="gradients") as bar:
        for seed in range(1, args.seeds + 1):
            for name in args.algos:
                follow(name, seed, args, bar)


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__.splitlines()[0]))
