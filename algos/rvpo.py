"""RVPO: the soft minimum of the normalised rewards in place of their mean, so that doing well in
one objective does not pay for failing in another.

Paper: RVPO (arXiv 2605.05750). z_ik as in GDPO; s_i = -1/kappa ln(sum_k w_k exp(-kappa z_ik)), one
number per completion, then whitened; to second order their mean minus kappa/2 times their variance.
kappa -> 0 is GDPO, kappa -> infinity the minimum.
Covariance law: a completion is worth about what its worst objective is worth, so a short wrong
answer is not worth much; PAMA's idea with negative advantages kept.
Against the paper: weights in place of 1/K; scores per completion, never sums over its tokens.
Against linear.py: every objective normalised, and a soft minimum in place of the sum.
Run: python run.py rvpo
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


# --- ALGO: imports ---
from common.errors import require


# --- ALGO: the algorithm ---
def soft_minimum(values: Tensor, weights: Tensor, kappa: float) -> Tensor:
    """-1/kappa ln(sum_k w_k exp(-kappa z_ik)): from the weighted mean (kappa -> 0) to the minimum.

    values [B,K]; weights [K], or [B,K] with 0 where one does not apply, summing to 1 -> [B].
    """
    return -torch.logsumexp(weights.log() - kappa * values, 1) / kappa


def deciding_shares(values: Tensor, weights: Tensor, kappa: float) -> Tensor:
    """How much each objective decides on average, the soft minimum's gradient; equal where no
    reward applies. -> [K], sum 1."""
    return torch.softmax(weights.log() - kappa * values, 1).nanmean(0).nan_to_num(1 / len(values.T))


class RVPO:
    """weights [K] of sum 1; kappa: see `soft_minimum`."""

    def __init__(self, weights: Tensor, kappa: float) -> None:
        self.fixed, self.kappa, self.state, self.log = weights, kappa, {}, {}

    def advantages(
        self, rewards: Tensor, lengths: Tensor, group_size: int, estimator: str
    ) -> tuple[Tensor, Tensor]:
        """([B], how much each objective decides [K]) of the rewards [B,K]; estimator: has no use
        here."""
        # float64: float32 would leave a small kappa 1e-7 / kappa of rounding error
        each = estimate_each(rewards, lengths, group_size, "grpo").double()
        weights = self.fixed.double() * ~rewards.isnan()  # [B, K]
        weights = weights / weights.sum(1, keepdim=True)  # NaN where no reward applies
        scores = soft_minimum(each, weights, self.kappa)
        advantages = estimate_advantages(scores, lengths, group_size, "reinforce")
        decided = deciding_shares(each, weights, self.kappa)
        return advantages.to(rewards), decided.to(rewards)


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
    """weight of each objective in the order of --rewards; default: equal.
    Scaled to sum 1"""
    kappa: float = 1.0
    """aversion to an objective that does badly where others do well:
    near 0 the mean, large the minimum"""


def controller(args: Args, objectives: list[str], device) -> RVPO:
    """The algorithm as the flags have it. Raises UserError naming the flag."""
    require(0 < args.kappa < torch.inf, f"--kappa {args.kappa} must be positive: 0 is gdpo.py")
    weights = flags.shares("--weights", args.weights, objectives, device, some=False)
    return RVPO(weights, args.kappa)


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
