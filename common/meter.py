"""What a step did, for the log. Nothing here changes what is trained."""

from statistics import fmean

import torch
from torch import Tensor

from common import ranks
from common.batch import Batch
from common.controllers import first_order_change, within_prompt_covariance


class Meter:
    """Adds up what the updates of one step do: `see` every micro-batch, `updated` every update."""

    def __init__(self, batch: Batch, epochs: int, mini_batches: int) -> None:
        self.epochs, self.mini_batches = epochs, mini_batches
        # what first_order_change wants, and the share of tokens with a gradient. [B] each
        self.drift, self.age, self.active = batch.mask.new_zeros(3, len(batch.mask))
        self.norms: list[float] = []  # of the gradient, one per update
        self.sums: list[Tensor] = []  # per update: policy loss, KL, clipped share. [3] each
        self.open = batch.mask.new_zeros(3)
        # of scripts that weigh one gradient per objective: their inner products, the weighted loss
        self.grams: list[Tensor] = []  # [K, K] each
        self.losses: list[float] = []

    def see(self, micro: Batch, logp: Tensor, active: Tensor, tokens: Tensor, *losses) -> None:
        """A micro-batch: log-probabilities, and where the loss has a gradient [b, T]; policy loss
        and KL as its part of the means over the mini-batch's tokens."""
        active = active * micro.mask
        clipped = (micro.mask - active).sum() / tokens
        self.open = self.open + torch.stack([*losses, clipped]).detach()
        self.active[micro.rows] += active.sum(1) / micro.mask.sum(1) / self.epochs
        if len(self.norms) < self.mini_batches:  # later epochs train on the same completions again
            self.drift[micro.rows] = ((logp.detach() - micro.old_logp) * micro.mask).sum(1)
            self.age[micro.rows] = len(self.norms)

    def weighed(self, gram: Tensor, loss: Tensor) -> None:
        """The gradients of a mini-batch's objectives were weighed; both are of all ranks."""
        self.grams.append(gram)
        self.losses.append(loss.item())

    def updated(self, grad_norm: float) -> None:
        """All micro-batches of a mini-batch were seen; the norm of its gradient."""
        self.norms.append(grad_norm)
        self.sums.append(self.open)
        self.open = torch.zeros_like(self.open)

    def gather(self) -> None:
        """Every rank has seen its own completions, now all have those of all. Collective."""
        self.drift, self.age, self.active = ranks.all_sum(
            torch.stack([self.drift, self.age, self.active])
        )
        self.sums = list(ranks.all_sum(torch.stack(self.sums)))

    def means(self) -> dict[str, float]:
        """Losses, clipped share and gradient norm: means over the updates."""
        policy, kl, clipped = torch.stack(self.sums).double().mean(0).tolist()
        policy, norm = fmean(self.losses or [policy]), fmean(self.norms)
        return {"loss/policy": policy, "loss/kl": kl, "clip/fraction": clipped, "grad/norm": norm}

    def kept(self) -> dict[str, Tensor]:
        """What of it goes into statistics.jsonl."""
        grams = {"gram": torch.stack(self.grams)} if self.grams else {}
        return {"drift": self.drift, "age": self.age.int(), **grams}


def describe(
    meter: Meter,
    objectives: list[str],
    rewards: Tensor,
    advantages: Tensor,
    group_size: int,
    weights: Tensor,
    logged: dict,
) -> dict[str, float]:
    """Metrics per objective, as <name>/<objective>, and of the whole step.

    rewards [B,K], advantages [B], weights [K]; logged: what the algorithm logs beside, numbers and
    tensors [K] by name.
    """
    groups = rewards.view(-1, group_size, rewards.size(1))
    most = groups.nan_to_num(-torch.inf).amax(1)
    law, rate, nats = first_order_change(
        meter.drift, meter.age, advantages, rewards, group_size, len(meter.norms)
    )
    active = advantages * meter.active  # as far as the clip does not act
    observed = {
        "reward": rewards.nanmean(0),
        "reward_std": torch.stack([r[~r.isnan()].std() for r in rewards.T]),
        # share of prompts whose completions differ in this reward
        "signal": (groups < most[:, None]).any(1).float().mean(0),
        "weight": weights,
        "weight_share": weights / weights.sum(),
        "cov": within_prompt_covariance(advantages, rewards, group_size),
        "cov_active": within_prompt_covariance(active, rewards, group_size),
        "law": law,
        "law/rate": rate.item(),
        "law/nats": nats.item(),
        **logged,
    }
    row = {}
    for key, value in observed.items():
        if isinstance(value, Tensor):
            named = zip(objectives, value.tolist(), strict=True)
            row |= {f"{key}/{name}": number for name, number in named}
        else:
            row[key] = value
    return row


def next_scale(scale: float, nats: float, desired_kl: float) -> float:
    """The share of --lr with which the next step will have the KL divergence `desired_kl`, by what
    this one had with `scale`. nats: see `first_order_change`; half its square is the divergence
    from the policy before, to second order. Moves by a third or a quarter at most, and not above 1.
    The adaptive learning rate of PPO in locomotion (Rudin et al., 2022), with the exact ratio."""
    if not nats > 0:  # nothing moved, or nothing was seen of it
        return scale
    factor = (2 * desired_kl) ** 0.5 / nats
    return min(1.0, scale * min(max(factor, 2 / 3), 5 / 4))
