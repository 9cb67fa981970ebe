"""SA-MRPO: GDPO with less weight on what is nearly reached, so that training goes on where there is
most left to gain.

Paper: SA-MRPO (arXiv 2608.16072), section 4.1. u_k = mean reward of the batch as a share of its
range; weight w_k (1 - u_k)^gamma; then as GDPO: normalised within prompts, summed, whitened over
the batch. gamma 0 is GDPO.
Covariance law: the weight follows the level, not the direction. An objective that falls gets more
weight, but only as fast as it falls, and one that is easy and low gets as much as one that is hard.
Against the paper (no official code was found): ranges by --lowest and --highest.
Against linear.py: GDPO's normalisation, and weights of this batch.
Run: python run.py sa_mrpo
"""

# --- SHARED: imports ---
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import flags, launch
from common.batch import micro_batches, mini_batches
from common.meter import Meter
from common.model import clip_gradients, token_logprobs, token_logprobs_no_grad
from common.run import Run
from common.seeds import generator


# --- ALGO: the algorithm ---
def saturation_weights(
    weights: Tensor, rewards: Tensor, lowest: Tensor, highest: Tensor, gamma: float
) -> Tensor:
    """w_k (1 - u_k)^gamma, scaled to sum 1; w_k where all objectives are at their best. One that no
    completion has counts as at its best.

    weights, lowest, highest [K], rewards [B,K] -> [K].
    """
    mean = rewards.nanmean(0)
    mean = torch.where(mean.isnan(), highest, mean)
    left = ((highest - mean) / (highest - lowest)).clamp(0, 1)
    discounted = weights * left**gamma
    total = discounted.sum()
    return discounted / total if total > 0 else weights


class SAMRPO:
    """weights, lowest, highest [K]: prescribed weights, least and best rewards."""

    def __init__(self, weights: Tensor, lowest: Tensor, highest: Tensor, gamma: float) -> None:
        self.prescribed, self.lowest, self.highest, self.gamma = weights, lowest, highest, gamma
        self.state, self.log = {}, {}

    def advantages(
        self, rewards: Tensor, lengths: Tensor, group_size: int, estimator: str
    ) -> tuple[Tensor, Tensor]:
        """([B], weights [K]) of the rewards [B,K]; estimator: has no use here."""
        flags.within("--highest", self.highest, rewards)
        ranges = (self.lowest, self.highest, self.gamma)
        weights = saturation_weights(self.prescribed, rewards, *ranges)
        each = estimate_each(rewards, lengths, group_size, "grpo")
        scores = scalarize(each.masked_fill(rewards.isnan(), torch.nan), weights)
        return estimate_advantages(scores, lengths, group_size, "reinforce"), weights


# --- SHARED: advantages and loss ---
def scalarize(rewards: Tensor, weights: Tensor) -> Tensor:
    """s_i = sum_k w_k r_ik (section 3). rewards [B,K], weights [K] -> scores [B].

    A reward that is NaN, for it does not apply, adds nothing; the score is NaN where none applies.
    """
    return (rewards * weights).nansum(1).masked_fill(rewards.isnan().all(1), torch.nan)


def estimate_advantages(scores: Tensor, lengths: Tensor, group_size: int, estimator: str) -> Tensor:
    """One advantage per completion, shared by all its tokens. scores, lengths in tokens [B] -> [B].

    reinforce: REINFORCE++ (Hu et al., 2025), whitened over the batch, every token counted once.
    grpo (Shao et al., 2024): centred and scaled within a prompt. In float64: where all scores are
    alike, dividing would blow up float32's rounding error. A score of NaN is left out.
    """
    lengths, exact = lengths.double(), scores.double()
    if estimator == "reinforce":
        lengths = lengths * ~exact.isnan()
        centred = (exact - (lengths * exact).nansum() / lengths.sum()).nan_to_num()
        variance = (lengths * centred**2).sum() / (lengths.sum() - 1).clamp(min=1)
        return (centred * torch.rsqrt(variance + 1e-8)).to(scores)
    groups = exact.view(-1, group_size)
    centred = (groups - groups.nanmean(1, keepdim=True)).nan_to_num()
    degrees = ((~groups.isnan()).sum(1, keepdim=True) - 1).clamp(min=1)
    std = (centred.square().sum(1, keepdim=True) / degrees).sqrt()
    return (centred / (std + 1e-6)).flatten().to(scores)


def policy_loss(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate per token, to be minimised, and where it has a gradient (eq. 6).

    ratio [B,T], advantages [B] -> [B,T] twice. Infinite clips give REINFORCE. dual_clip > 0 bounds
    the loss of negative advantages at dual_clip * |advantage| (Ye et al., 2020).
    """
    advantages = advantages[:, None]
    active = torch.where(advantages >= 0, ratio <= 1 + clip_high, ratio >= 1 - clip_low)
    loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
    if dual_clip > 0:
        active &= (advantages >= 0) | (ratio <= dual_clip)
        loss = torch.where(advantages < 0, torch.min(loss, -advantages * dual_clip), loss)
    return loss, active


def kl_penalty(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """k3 estimate of KL(policy || reference) per token, e^d - d - 1 with d = ref_logp - logp
    (Schulman, 2020). [B,T] -> [B,T]. The clamps are the official code's."""
    d = (ref_logp - logp).clamp(-20, 20)
    return (d.exp() - d - 1).clamp(-10, 10)


# --- SHARED: advantages of each objective ---
def estimate_each(rewards: Tensor, lengths: Tensor, group_size: int, estimator: str) -> Tensor:
    """The advantages of every objective by itself. rewards [B,K], lengths [B] -> [B,K]."""
    each = [estimate_advantages(r, lengths, group_size, estimator) for r in rewards.T]
    return torch.stack(each, 1)


# --- SHARED: args ---
@dataclass
class Args(flags.RunFlags):
    prompts: int = 16
    """prompts per step, P (paper: 32)"""
    completions: int = 16
    """completions per prompt, G (paper: 16)"""
    estimator: Literal["reinforce", "grpo"] = "reinforce"
    """advantages: REINFORCE++ (whitened over the batch, no clip) or GRPO (per prompt, clipped)"""
    clip_low: float = 0.2
    """grpo: lower clip of the probability ratio, 1 - clip_low"""
    clip_high: float = 0.2
    """grpo: upper clip of the probability ratio, 1 + clip_high"""
    dual_clip: float = 0.0
    """grpo: bound negative advantages' loss at dual_clip * |advantage|; 0 is off (official: 3)"""
    tis_cap: float = 0.0
    """truncated importance sampling: cap of trainer's / sampler's probability; 0 is off"""
    kl_coef: float = 1e-3
    """weight of the k3 KL divergence to the start model in the loss; 0 loads no reference model"""
    lr: float = 1e-4
    """AdamW learning rate (paper: 1e-6 for 1.5B parameters)"""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """linear falls in equal parts from --lr at the first step to --lr / --steps at the last"""
    warmup: int = 1
    """steps over which the learning rate rises to its full value; 1 is off"""
    desired_kl: float = 0.0
    """KL divergence of a step, in nats, for which --lr is lowered as it goes on; 0 leaves it"""
    weight_decay: float = 0.01
    """AdamW weight decay"""
    max_grad_norm: float = 1.0
    """clip the gradient to this norm"""
    mini_batches: int = 2
    """optimizer steps per pass over the completions"""
    epochs: int = 1
    """passes over the completions"""
    # --- ALGO: args ---
    weights: tuple[float, ...] = ()
    """prescribed weight of each objective in the order of --rewards; default: equal.
    Only their ratios matter"""
    gamma: float = 1.0
    """how fast weight falls as an objective nears its best; 0 is GDPO"""
    lowest: tuple[float, ...] = ()
    """least reward of each objective; default: 0"""
    highest: tuple[float, ...] = ()
    """best reward of each objective; default: 1"""


def controller(args: Args, objectives: list[str], device) -> SAMRPO:
    """The algorithm as the flags have it. Raises UserError naming the flag."""
    weights = flags.shares("--weights", args.weights, objectives, device)
    lowest = flags.one_each("--lowest", args.lowest, 0.0, objectives, device)
    highest = flags.one_each("--highest", args.highest, 1.0, objectives, device)
    flags.positive("--highest minus --lowest", highest - lowest)
    flags.at_least(args, 0, "gamma")
    return SAMRPO(weights, lowest, highest, args.gamma)


def main(args: Args) -> None:
    # --- SHARED: set-up ---
    run = Run(args, __file__)  # ranks and rewards
    algorithm = controller(args, run.objectives, run.device)
    policy, reference = run.load_models()  # and prompts, and the sampler
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    run.restore(optimizer, algorithm.state)  # a new folder, or where --resume left off
    G, clips = args.completions, flags.clips(args)  # clips: infinite where --estimator has none
    passes = (args.temperature, args.micro_batch_tokens)

    for step in run.steps():
        # --- SHARED: sample, generate, score ---
        decay = 1 - (step - 1) / args.steps if args.lr_schedule == "linear" else 1
        for group in optimizer.param_groups:
            group["lr"] = args.lr * decay * min(1, step / args.warmup) * run.scale
        batch = run.sample(step)  # on every rank all B = P * G completions
        rewards = run.score(batch)  # [B, K]
        old_logp = token_logprobs_no_grad(policy, batch, *passes)  # [B, T]
        ref_logp = token_logprobs_no_grad(reference, batch, *passes) if reference else old_logp
        run.check_sampler(step, batch, old_logp)  # that it has the policy's weights
        batch = batch.with_logprobs(old_logp, ref_logp, args.tis_cap)
        meter = Meter(batch, args.epochs, args.mini_batches)  # looks on, for the log

        # --- ALGO: advantages ---
        advantages, weights = algorithm.advantages(rewards, batch.lengths, G, args.estimator)

        # --- SHARED: update ---
        for epoch in range(args.epochs):
            order = generator(args.seed, step, args.prompts + epoch)
            for rows in mini_batches(args.prompts, G, args.mini_batches, order):
                tokens = batch.mask[rows].sum()
                # --- SHARED: gradient ---
                # sums over the mini-batch's tokens: its division into micro-batches changes nothing
                for micro in micro_batches(batch, rows, args.micro_batch_tokens):
                    logp = token_logprobs(policy, micro, args.temperature)  # [b, T]
                    ratio = (logp - micro.old_logp).clamp(-20, 20).exp()
                    loss, active = policy_loss(ratio, advantages[micro.rows], *clips)
                    loss = (loss * micro.token_weight).sum() / tokens
                    kl = (kl_penalty(logp, micro.ref_logp) * micro.mask).sum() / tokens
                    (loss + args.kl_coef * kl).backward()
                    meter.see(micro, logp, active, tokens, loss, kl)
                # --- SHARED: optimizer step ---
                grad_norm = clip_gradients(policy.parameters(), args.max_grad_norm)
                meter.updated(grad_norm)
                if grad_norm < torch.inf:  # nor NaN; else the policy keeps its last good weights
                    optimizer.step()
                optimizer.zero_grad()  # here, for sampling wants the memory
        run.sync(step, meter)  # new weights for the sampler; what each rank saw for all

        # --- SHARED: log, evaluate, save ---
        run.finish(step, meter, rewards, advantages, weights, algorithm.log)
    run.close()  # model/, and what became of each objective


if __name__ == "__main__":
    launch.run(main, Args)
