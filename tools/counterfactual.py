"""What each algorithm's controller would have weighed on a run's batches, from the statistics that
the run kept.

A controller watches the completions that the run sampled and moves its own weights, step by step,
as if it had been in charge of them; the policy stays the run's. So this says how controllers read
the same evidence, not where they would have led the model. The controllers are the scripts' own,
driven as common/controllers.py says of their kinds.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, inf

from common.errors import UserError, require
from common.launch import preset
from common.runs import Run
from tools.scripts import algorithms


@dataclass
class Choice:
    """Of one controller: the shares of its weights [K] at each step, None where it needs what the
    run did not keep; whether it was given the rewards' covariance in place of gradients; whether
    its advantages are those of a weighted sum of the rewards."""

    weights: list[list[float] | None]
    estimated: bool = False
    summed: bool = False


@dataclass
class Step:
    """A training step as the run kept it: B completions, K objectives."""

    rewards: Tensor  # [B, K]
    lengths: Tensor  # [B] tokens
    drift: Tensor  # [B] nats, and [B] updates: see first_order_change in common/controllers.py
    age: Tensor
    grams: list[Tensor]  # [K, K] inner products of the objectives' gradients, one for each update
    lr: float


def choices(run: Run, lines: list[dict]) -> dict[str, Choice]:
    """What every script of algos/ would have chosen at each of the lines of `load_statistics`.

    A script has its defaults, or the values of the run's preset; the run's own has the run's flags.
    """
    apart = any("gram" in line for line in lines)  # whether it took gradients apart
    steps, found = [_step(run, line) for line in lines], {}
    for name in algorithms():
        script = importlib.import_module(f"algos.{name}")
        try:
            given = preset(run.args["preset"], name) if run.args.get("preset") else {}
            given = run.args if name == run.args["script"] else given
            known = given.keys() & vars(script.Args()).keys()
            args = script.Args(**{key: given[key] for key in known})
            controller = script.controller(args, run.objectives, torch.device("cpu"))
            found[name] = _watch(controller, script, steps, run.args, apart)
        except UserError:  # nor would it have trained on these rewards
            found[name] = Choice([None] * len(steps))
    return found


def _step(run: Run, line: dict) -> Step:
    """A line of statistics.jsonl. Of a run that took no gradients apart, grams are the covariance
    within prompts of rewards scaled to variance 1: the Gram matrix of natural gradients, up to a
    common factor."""
    rewards, lengths, drift, age = (
        torch.tensor(np.array(line[key], dtype=np.float32))  # null, which is not finite, is NaN
        for key in ("rewards", "lengths", "drift", "age")
    )
    K = rewards.size(1)
    groups = rewards.double().view(-1, run.args["completions"], K)
    centred = (groups - groups.nanmean(1, keepdim=True)).nan_to_num().flatten(0, 1)
    grams = [torch.corrcoef(centred.T).nan_to_num(0.0).view(K, K)]
    if "gram" in line:
        grams = [*torch.tensor(np.array(line["gram"], dtype=np.float64))]
    if len(grams) == 1:  # of the whole batch: for every update the same
        grams = grams * run.args["mini_batches"] * run.args["epochs"]
    lr = dict(zip(*run.series("lr"), strict=True)).get(line["step"], run.args["lr"])
    return Step(rewards, lengths, drift, age, grams, lr)


def _watch(controller, script: ModuleType, steps: list[Step], args: dict, apart: bool) -> Choice:
    """What a controller weighs each step with. Raises UserError where it refuses one, or needs what
    the run did not keep."""
    G, estimator, has = args["completions"], args["estimator"], set(dir(controller))
    estimated = not apart and bool(has & {"weigh", "follow"})
    # what is remembered moves by gradients' lengths, which covariances do not tell
    require(not (estimated and controller.state), "the run took no gradients apart")
    fresh = all((step.age > 0).any() for step in steps)
    chosen = []
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        rewards, advantages = step.rewards, None
        if "see" in has:
            controller.see(rewards)
        if "advantages" in has:
            advantages, weights = controller.advantages(rewards, step.lengths, G, estimator)
        elif "follow" in has:
            weights = controller.follow(torch.stack(step.grams).mean(0), step.lr)
        elif "weigh" in has:
            weights = torch.stack([controller.weigh(gram) for gram in step.grams]).mean(0)
        else:
            weights = controller.weights(rewards)
            scores = script.scalarize(rewards, weights)
            advantages = script.estimate_advantages(scores, step.lengths, G, estimator)
        chosen.append((weights / weights.sum()).tolist())
        if "reached" in has:
            if after:
                controller.reached(after.rewards.nanmean(0))
        elif "measure" in has:  # the run kept no policy: as if the update had not moved it
            still, mask = torch.zeros(len(rewards), 1), torch.ones(len(rewards), 1)
            measured = controller.measure(still, mask, advantages, inf, inf)
            controller.learn(rewards, measured, G)
        elif "learn" in has:
            require(fresh, "a step of the run is a single mini-batch")
            updates = args["mini_batches"] * args["epochs"]
            controller.learn(rewards, step.drift, step.age, updates, G)
    return Choice(chosen, estimated, not has & {"advantages", "weigh"})
