"""What a step did, for the log. Nothing here changes what is trained: without it the run is the same.

A script tells its `Meter` of every micro-batch and update as they pass, and lets it `describe` the step at its end.
"""

import time
from collections.abc import Iterable

import torch
from torch import Tensor

from common import ranks
from common.batch import Batch


class Meter:
    """One per run. A step: `begin`, `sampled`, `see` and `updated` as often as they happen, `finish`, `describe`; `lap` wherever time is
    to be divided."""

    def __init__(self, epochs: int, mini_batches: int, optimizer: torch.optim.Optimizer, reference: bool) -> None:
        """optimizer: its learning rate is logged. reference: whether there is a model to which a KL divergence is measured."""
        self.epochs, self.mini_batches, self.updates = epochs, mini_batches, epochs * mini_batches
        self.optimizer, self.reference = optimizer, reference
        self.failures = 0  # updates in a row whose gradient was not finite

    def begin(self) -> None:
        """A step begins."""
        self.laps, self.clock = {}, time.perf_counter()
        self.made, self.skipped, self.grams = 0, 0, []
        self.parts: dict[str, Tensor] = {}  # sums over the micro-batches of one mini-batch
        self.sums = dict.fromkeys(("loss/policy", "loss/kl", "clip/fraction", "grad/norm"), 0.0)  # means over the step's updates

    def lap(self, part: str) -> None:
        """What passed since the last lap, or the beginning of the step, was spent on this part."""
        now = time.perf_counter()
        self.laps[f"time/{part}"], self.clock = now - self.clock, now

    def sampled(self, batch: Batch, mean_length: float, gaps: dict[str, float]) -> None:
        """The step's completions with their log-probabilities, the length that conciseness compares with, and what the canary found."""
        self.lap("logprobs")
        self.batch, self.gaps = batch, gaps
        self.lengths = {"mean": batch.lengths.mean().item(), "threshold": mean_length, "truncated": batch.sampled.truncated}
        # for `first_order_change`, and the share of a completion's tokens for which the loss had a gradient. [B] each
        self.drift, self.age, self.unclipped = torch.zeros(3, len(batch.mask), device=batch.mask.device)

    def see(self, micro: Batch, logp: Tensor, active: Tensor, tokens: Tensor, **losses: Tensor) -> None:
        """A micro-batch: log-probabilities and which tokens the loss has a gradient for [b, T]; losses as sums over its tokens, divided
        by the `tokens` of the mini-batch. `loss_policy` is logged as loss/policy."""
        active = active * micro.mask
        for name, value in (losses | {"clip_fraction": (micro.mask - active).sum() / tokens}).items():
            self.parts[name] = self.parts.get(name, 0.0) + value.detach()
        self.unclipped[micro.rows] += active.sum(1) / micro.mask.sum(1) / self.epochs
        if self.made < self.mini_batches:  # later epochs train on the same completions again
            self.drift[micro.rows] = ((logp.detach() - micro.old_logp) * micro.mask).sum(1)
            self.age[micro.rows] = self.made

    def see_gradients(self, gram: Tensor, loss: Tensor) -> None:
        """A mini-batch of a script that weighs one gradient per objective: their inner products [K, K] and the weighted loss, both of all
        ranks."""
        self.grams.append(gram)
        self.sums["loss/policy"] += loss.item() / self.updates

    def updated(self, grad_norm: float) -> None:
        """A mini-batch was seen on every rank, and this is the norm of its gradient."""
        totals = ranks.all_sum(torch.stack(list(self.parts.values()))).tolist()
        for name, value in [*zip(self.parts, totals, strict=True), ("grad_norm", grad_norm)]:
            self.sums[name.replace("_", "/")] += value / self.updates
        finite = grad_norm < torch.inf  # neither infinite nor NaN
        self.skipped, self.failures = self.skipped + (not finite), 0 if finite else self.failures + 1
        self.made, self.parts = self.made + 1, {}

    def finish(self) -> None:
        """After the last update: every rank has noted its own completions, now all have those of all."""
        self.drift, self.age, self.unclipped = ranks.all_sum(torch.stack([self.drift, self.age, self.unclipped]))

    def describe(
        self, objectives: Iterable[str], rewards: Tensor, advantages: Tensor, group_size: int, logged: dict[str, Tensor | float]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """(the step's row of metrics.jsonl, what it was computed from, for statistics.jsonl).

        rewards [B, K], advantages [B]; logged: numbers, and tensors [K] which stand in the row as <name>/<objective>; `weight`, `cov` and
        `cov_active` are among these.
        """
        groups = rewards.view(-1, group_size, rewards.size(1))
        law, rate, nats = first_order_change(self.drift, self.age, advantages, rewards, group_size, self.updates)
        weights = logged["weight"]
        observed = {
            "reward": rewards.mean(0),
            "reward_std": rewards.std(0),
            "signal": (groups != groups[:, :1]).any(1).float().mean(0),  # share of prompts whose completions differ in this reward
            "weight": weights,
            "weight_share": weights / weights.sum(),
            "cov": logged["cov"],
            "cov_active": logged["cov_active"],
            "law": law,
        }
        row = {}
        for key, value in (observed | logged).items():
            row |= {key: value} if isinstance(value, float) else {f"{key}/{k}": float(v) for k, v in zip(objectives, value, strict=True)}
        row |= {f"length/{name}": value for name, value in self.lengths.items()}
        row |= (
            self.sums | self.gaps | peak_memory(rewards.device) | {"grad/skipped": self.skipped, "lr": self.optimizer.param_groups[0]["lr"]}
        )
        row |= {} if self.reference else {"loss/kl": torch.nan}  # what was summed up is from the step's beginning, not from the run's
        row |= {"law/rate": rate.item(), "law/nats": nats.item()} | self.laps
        kept = {"rewards": rewards, "advantages": advantages, "lengths": self.batch.lengths, "drift": self.drift, "age": self.age}
        return row, kept | ({"gram": torch.stack(self.grams)} if self.grams else {})


def peak_memory(device: torch.device) -> dict[str, float]:
    """What this rank's GPU has held at most so far, in GiB, to be logged; nothing on a CPU, where all processes share one memory."""
    return {"memory/peak_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}


def first_order_change(
    drift: Tensor, age: Tensor, advantages: Tensor, rewards: Tensor, group_size: int, updates: int
) -> tuple[Tensor, ...]:
    """Covariance law (arXiv 2602.06869, eq. 3) with what the step really did to log pi as its score: change of each mean reward [K]; nats
    per unit of advantage; size of the step, the sd in nats within prompts.

    drift [B]: log pi(y) of a completion when its mini-batch was reached, less that when it was sampled; age [B]: updates that had been
    made in between, of `updates` in the step. At age 0 nothing had moved. The others had not been trained on either, so they tell how
    the policy moves on fresh completions, at no cost. advantages [B], rewards [B,K]. All NaN where a step is a single mini-batch.
    """
    columns = torch.cat([(drift * updates / age)[:, None], advantages[:, None], rewards], 1)[age > 0]
    groups = columns.view(-1, group_size, columns.size(1))
    centred = groups - groups.mean(1, keepdim=True)
    covariance = (centred.mT @ centred).mean(0) / (group_size - 1)
    return covariance[0, 2:], covariance[0, 1] / covariance[1, 1].clamp(min=1e-12), covariance[0, 0].sqrt()
