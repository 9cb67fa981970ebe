"""CTWA, covariance targeted weight adaptation: raise the weight of every objective whose covariance
with the update is under its target.

Paper: arXiv 2602.06869, section 5 and algorithm 1. After each update the completions are weighed
once more under the new policy, W_i = mean over tokens of A_i rho_it 1_it (eq. 7), and
c_k = Cov(r_k, W) within prompts. With its moving average ĉ_k, log w_k += lr * [target_k - ĉ_k]_+:
weights only grow and are not renormalised; only their ratios matter to the advantages.
From the paper: the weight rate 0.05 belongs to 810 steps; the default here is 1.0 for 100.
Against the official code: covariances see every prompt with all its completions (there: one rank's
quarter, cut across prompts); the gate by objective caps and the outlier drop, which the paper does
not have, are flags and off; the weights are checkpointed.
Against linear.py: one more forward pass without gradients per step, and the weights from it.
Run: python run.py ctwa
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
from common.controllers import remember, within_prompt_covariance


# --- ALGO: the algorithm ---
def completion_weights(
    advantages: Tensor, ratio: Tensor, mask: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Clipped advantage weight of a completion, W_i = mean_t A_i rho_it 1_it (eq. 6, 7). -> [B].
    advantages [B], ratio [B,T]; mask [B,T]: a token's weight in the loss, 0 on padding."""
    _, active = policy_loss(ratio, advantages, clip_low, clip_high, 0.0)
    return (advantages[:, None] * ratio * active * mask).sum(1) / (mask > 0).sum(1)


def drop_outliers(completion_weight: Tensor, group_size: int, factor: float) -> Tensor:
    """Give completions with |W| > factor * median |W| the mean of the others of their prompt, which
    takes them out of the covariance. [B] -> [B]. The median is of weights other than 0: a prompt
    without differences has nothing but zeros."""
    size = completion_weight.abs()
    kept = size <= factor * size[size > 0].median()
    groups, kept = completion_weight.view(-1, group_size), kept.view(-1, group_size)
    mean = (groups * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
    return torch.where(kept, groups, mean).flatten()


def update_log_weights(
    log_weights: Tensor, ema: Tensor | None, cov: Tensor, targets: Tensor, lr: float, tau: float
) -> tuple[Tensor, Tensor]:
    """Algorithm 1: (log_weights + lr * [targets - ema]_+, ema), all [K]. The first covariance
    of all objectives starts the moving average; until then it is the newest."""
    ema = cov if ema is None else (1 - tau) * ema + tau * cov
    return log_weights + lr * (targets - ema).clamp(min=0), ema


class CTWA:
    """weights, targets, caps [K]: at the start; covariances wanted; mean rewards from which on a
    weight is not raised (inf: none)."""

    state: dict

    def __init__(
        self, weights: Tensor, targets: Tensor, caps: Tensor, lr: float, tau: float, outliers: float
    ) -> None:
        self.targets, self.caps, self.lr, self.tau = targets, caps, lr, tau
        self.outliers = outliers
        self.state, self.log = {"log_weights": weights.log(), "ema": None}, {}

    def weights(self, rewards: Tensor) -> Tensor:
        """[B,K] -> [K]."""
        # e^89 is no float32; taken off all weights alike, it changes no ratio
        beyond = (self.state["log_weights"].max() - 60).clamp(min=0)
        return (self.state["log_weights"] - beyond).exp()

    def measure(
        self, log_ratio: Tensor, mask: Tensor, advantages: Tensor, clip_low: float, clip_high: float
    ) -> Tensor:
        """W of completions under the new policy: see `completion_weights`. -> [b]."""
        return completion_weights(advantages, log_ratio.exp(), mask, clip_low, clip_high)

    def learn(self, rewards: Tensor, measured: Tensor, group_size: int) -> None:
        """rewards [B,K], measured [B]."""
        W = drop_outliers(measured, group_size, self.outliers) if self.outliers > 0 else measured
        covariance = within_prompt_covariance(W, rewards, group_size)
        own, moved = rewards.view(-1, group_size, rewards.size(1)), W.view(-1, group_size, 1)
        variance = (own - own.nanmean(1, keepdim=True)).square().nanmean((0, 1))
        moved = (moved - moved.mean(1, keepdim=True)).square()
        spread = moved.where(~own.isnan(), torch.nan).nanmean((0, 1))
        old = self.state["log_weights"]
        how = (covariance, self.targets, self.lr, self.tau)
        new, ema = update_log_weights(old, self.state["ema"], *how)
        capped = rewards.nanmean(0) >= self.caps
        remember(self.state, log_weights=torch.where(capped, old, new), ema=ema)
        deficit, bound = (self.targets - ema).clamp(min=0), (variance * spread).sqrt()
        self.log = {"ctwa/cov": covariance, "ctwa/ema": ema, "ctwa/deficit": deficit}
        self.log |= {"ctwa/target": self.targets, "ctwa/reachable": bound}  # by Cauchy-Schwarz


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
    """weight of each objective at the start; default: equal (paper: .333 .333 .334)"""
    cov_targets: tuple[float, ...] = ()
    """covariance wanted for each; default: 0.15 for the first, 0.08 for the rest (the paper's)"""
    weight_lr: float = 1.0
    """step of the log-weights; what counts is steps * weight_lr (paper: 0.05 for 810 steps)"""
    ema_tau: float = 0.1
    """share of the newest covariance in its moving average (paper: 0.1)"""
    obj_caps: tuple[float, ...] = ()
    """mean reward from which on a weight is not raised; default: off (official code: 1 .95 .95)"""
    outlier_factor: float = 0.0
    """ignore completions with |W| above this many medians; 0 is off (official code: 100)"""


def controller(args: Args, objectives: list[str], device) -> CTWA:
    """The algorithm as the flags have it. Raises UserError naming the flag."""
    of = (objectives, device)
    weights = flags.one_each("--weights", args.weights, 1 / len(objectives), *of)
    default = [0.15] + [0.08] * (len(objectives) - 1)
    targets = flags.one_each("--cov-targets", args.cov_targets, default, *of)
    caps = flags.one_each("--obj-caps", args.obj_caps, torch.inf, *of, most=torch.inf)
    flags.at_least(args, 0, "weight_lr", "outlier_factor")
    flags.share(args, "ema_tau")
    rates = (args.weight_lr, args.ema_tau, args.outlier_factor)
    return CTWA(flags.positive("--weights", weights), targets, caps, *rates)


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
        weights = algorithm.weights(rewards)  # [K]
        scores = scalarize(rewards, weights)  # [B]
        advantages = estimate_advantages(scores, batch.lengths, G, args.estimator)  # [B]

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

        # --- ALGO: after the update ---
        log_ratio = (token_logprobs_no_grad(policy, batch, *passes) - old_logp).clamp(-20, 20)
        W = algorithm.measure(log_ratio, batch.token_weight, advantages, *clips[:2])  # [B]
        algorithm.learn(rewards, W, G)

        # --- SHARED: log, evaluate, save ---
        run.finish(step, meter, rewards, advantages, weights, algorithm.log)
    run.close()  # model/, and what became of each objective


if __name__ == "__main__":
    launch.run(main, Args)
