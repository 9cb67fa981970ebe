"""Lagrangian primal-dual: maximise one objective subject to a floor under each of the others, with
multipliers that price the floors.

max J_0 subject to J_k >= target_k. Dual step, with the mean over this batch:
    lambda_k <- max(lambda_k + lr * (target_k - mean r_k), 0).
Primal step, with the multipliers just updated: policy gradient of the one scalar reward
s = (r_0 + sum lambda_k r_k) / (1 + sum lambda_k).
Paper: arXiv 2602.06869, one of its baselines; the method is that of constrained MDPs (Altman, 1999;
Tessler et al., 2018).
From the paper: its dual rate 0.01 belongs to 810 steps; the default here is 0.08 for 100.
Against the official code: there each reward is whitened by itself and the advantages are added,
A_0 + sum lambda_k A_k. Whitening divides r_k by its spread sigma_k, so the primal follows
r_0/sigma_0 + sum lambda_k r_k/sigma_k while the dual prices r_k: what a multiplier buys changes
with sigma_k though no violation did, and an almost constant objective counts most. Here one reward
is normalised, once, so that both steps speak of the same Lagrangian. Multipliers are bounded,
logged and checkpointed. The KL term of the other scripts stays on (there: off).
Against linear.py: the weights (1, lambda) / (1 + sum lambda) follow from the batches, at no cost.
Run: python run.py lagrangian --primary clarity --targets 0.7 0.9
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
from common.controllers import remember
from common.errors import require


# --- ALGO: the algorithm ---
def dual_step(multipliers: Tensor, mean_rewards: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Projected gradient descent on the dual function: [multipliers + lr (targets - means)]_+, all
    [K-1]."""
    return (multipliers + lr * (targets - mean_rewards)).clamp(min=0)


def with_primary(constraints: Tensor, primary: int, value: float) -> Tensor:
    """A number per constraint and one for the primary, in the order of --rewards. [K-1] -> [K]."""
    own = constraints.new_tensor([value])
    return torch.cat([constraints[:primary], own, constraints[primary:]])


def lagrangian_weights(multipliers: Tensor, primary: int) -> Tensor:
    """The Lagrangian's coefficients (1, lambda) / (1 + sum lambda), in the order of --rewards.
    multipliers [K-1] -> weights [K]."""
    return with_primary(multipliers, primary, 1.0) / (1 + multipliers.sum())


class Lagrangian:
    """primary: which of the objectives is maximised; multipliers, targets [K-1] of the others."""

    def __init__(
        self, primary: int, multipliers: Tensor, targets: Tensor, lr: float, bound: float
    ) -> None:
        self.primary, self.targets, self.lr, self.bound = primary, targets, lr, bound
        self.state, self.log = {"multipliers": multipliers}, {}

    def weights(self, rewards: Tensor) -> Tensor:
        """The dual step, and the weights with the new multipliers. [B,K] -> [K]."""
        mean = rewards.nanmean(0)
        mean = torch.cat([mean[: self.primary], mean[self.primary + 1 :]])  # [K-1]
        wanted = dual_step(self.state["multipliers"], mean, self.targets, self.lr)
        remember(self.state, multipliers=wanted.clamp(max=self.bound))
        multipliers, violation = self.state["multipliers"], self.targets - mean
        self.log = {
            "lagrangian/multiplier": with_primary(multipliers, self.primary, 1.0),
            "lagrangian/violation": with_primary(violation, self.primary, 0.0),
        }
        return lagrangian_weights(multipliers, self.primary)


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
    primary: str = ""
    """objective to maximise, by its name; default: the first of --rewards.
    All others become constraints"""
    targets: tuple[float, ...] = ()
    """mean reward wanted of each constraint, in their order and in [0, 1],
    to which rewards must be scaled; default: 0.9 each (paper)"""
    dual_lr: float = 0.08
    """step of the multipliers; what counts is steps * dual_lr (paper: 0.01 for 810 steps)"""
    multipliers: tuple[float, ...] = ()
    """multiplier of each constraint at the start, in the order of --targets;
    default: 0 each (official code: the same)"""
    max_multiplier: float = 5.0
    """bound on each multiplier; reached where a target cannot be (paper: none)"""


def controller(args: Args, objectives: list[str], device) -> Lagrangian:
    """The algorithm as the flags have it. Raises UserError naming the flag."""
    require(len(objectives) >= 2, "--rewards has one objective: nothing to constrain; use linear")
    told = f"--primary {args.primary} is not an objective; choose one of {', '.join(objectives)}"
    require(args.primary in ("", *objectives), told)
    primary = objectives.index(args.primary) if args.primary else 0
    of = [name for name in objectives if name != objectives[primary]]
    targets = flags.one_each("--targets", args.targets, 0.9, of, device)
    inside = min(targets) >= 0 and max(targets) <= 1
    require(inside, f"--targets {args.targets} must be in [0, 1]: scale a reward of your own to it")
    multipliers = flags.one_each("--multipliers", args.multipliers, 0.0, of, device)
    bound = args.max_multiplier
    require(bound > 0, f"--max-multiplier {bound} must be positive: at 0 no constraint would count")
    told = f"--multipliers {args.multipliers} must be between 0 and --max-multiplier {bound}"
    require(min(multipliers) >= 0 and max(multipliers) <= bound, told)
    flags.at_least(args, 0, "dual_lr")
    return Lagrangian(primary, multipliers, targets, args.dual_lr, bound)


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

        # --- SHARED: log, evaluate, save ---
        run.finish(step, meter, rewards, advantages, weights, algorithm.log)
    run.close()  # model/, and what became of each objective


if __name__ == "__main__":
    launch.run(main, Args)
