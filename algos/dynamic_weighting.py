"""Dynamic weighting: reward weights that follow each objective's influence, the inner product of
its gradient with everyone's.

Paper: arXiv 2602.06869, section 3 (dynamic reward weighting, Lu et al., 2025). Before every update,
on the whole batch, I_k = <g_k, sum_j g_j> and w_k <- w_k exp(lr * I_k / mu), back to sum 1; the
batch's rewards are scalarised with the new weights. It raises what is easy: objectives with large
gradients that agree with the others.
From the paper: what counts is lr / mu, 0.1 there; with this project's larger lr the same ratio
needs the larger mu that is the default.
Against the official code: the exponent has lr once (there twice, so the weights never move);
gradients over all layers, not 16 fixed ones; a floor, because a weight of 0 could not come back; KL
is no objective.
Against linear.py: one more forward and K backward passes over the batch, and the weights from them.
Run: python run.py dynamic_weighting
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
from common.grads import Gradients


# --- ALGO: the algorithm ---
def update_weights(weights: Tensor, influence: Tensor, lr: float, mu: float) -> Tensor:
    """w_k exp(lr I_k / mu) / Z: mirror ascent on the influence. weights [K] on the simplex,
    influence [K] -> [K] on the simplex."""
    return (weights.log() + lr * influence / mu).softmax(0)


class DynamicWeighting:
    """weights [K]: at the start; a lower one than `floor` is raised to it."""

    def __init__(self, weights: Tensor, mu: float, floor: float) -> None:
        self.mu, self.floor, self.state, self.log = mu, floor, {"weights": weights}, {}

    def follow(self, gram: Tensor, lr: float) -> Tensor:
        """By the inner products of the whole batch's gradients [K,K] and the policy's learning
        rate. -> [K]."""
        influence = gram.sum(1).float().to(self.state["weights"])
        self.log = {"dynamic_weighting/influence": influence}
        # as with a gradient that is not finite, the last good weights are kept
        if influence.isfinite().all():
            raised = update_weights(self.state["weights"], influence, lr, self.mu)
            raised = raised.clamp(min=self.floor)
            remember(self.state, weights=raised / raised.sum())
        return self.state["weights"]


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
    """weight of each objective at the start, in the order of --rewards;
    default: equal (paper: .333 .333 .334)"""
    mu: float = 1e-3
    """temperature of the weights; --lr / --mu is their rate, 0.1 here (paper: mu 1e-5, lr 1e-6)"""
    weight_floor: float = 1e-3
    """a lower weight is raised to this before all are scaled to sum 1,
    so that every objective can come back (official: none)"""


def controller(args: Args, objectives: list[str], device) -> DynamicWeighting:
    """The algorithm as the flags have it. Raises UserError naming the flag."""
    K, floor = len(objectives), args.weight_floor
    weights = flags.shares("--weights", args.weights, objectives, device, some=False)
    require(0 < args.mu < torch.inf, f"--mu {args.mu} must be positive and finite")
    require(0 <= floor < 1 / K, f"--weight-floor {floor} must be at least 0 and under 1 / {K}")
    return DynamicWeighting(weights, args.mu, floor)


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
        each = estimate_each(rewards, batch.lengths, G, args.estimator)  # [B, K]
        gradients, tokens = Gradients(policy), batch.mask.sum()
        for micro in micro_batches(batch, torch.arange(len(rewards)), args.micro_batch_tokens):
            logp = token_logprobs(policy, micro, args.temperature)
            # at a ratio of 1 nothing is clipped and the surrogate has the gradient of -A log pi
            losses = [a[:, None] * logp * micro.token_weight for a in each[micro.rows].T]
            gradients.add([-loss.sum() / tokens for loss in losses])
        meter.grams.append(gradients.gram(len(run.objectives)))
        del gradients  # K times the policy's memory
        weights = algorithm.follow(meter.grams[0], optimizer.param_groups[0]["lr"])  # [K]
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
