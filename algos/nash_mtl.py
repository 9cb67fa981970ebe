"""Nash-MTL: the objectives bargain for the update; the Nash solution gives every one of them a
share, whatever the length of its gradient.

Paper: arXiv 2602.06869, section 3 (Navon et al., 2022). Per mini-batch the direction
d = sum_k alpha_k g_k with alpha > 0 and (H alpha)_k = 1 / alpha_k, H_ij = <g_i, g_j>, maximises
sum_k log <g_k, d> in a ball; every <g_k, d> = 1 / alpha_k is positive.
From the paper: every objective's rewards are normalised by themselves; their gradients come from
one forward and K backward passes. ||alpha' g|| is always sqrt(K), so the step is rescaled to the
mean norm of the gradients: its length then says something, and KL counts.
Against the official code: Newton's method on the strictly convex form, exact at any scale (there:
100 Adam steps on a penalty, far off for short gradients); H over all parameters and shared (there:
per rank); KL is no objective; a ridge for opposed gradients.
Against linear.py: K gradients per mini-batch instead of one, and the weights from them; no state.
Run: python run.py nash_mtl
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
from common import ranks
from common.errors import UserError
from common.grads import Gradients, has_gradient


# --- ALGO: the algorithm ---
def nash_weights(gram: Tensor) -> Tensor:
    """The bargaining solution alpha > 0 with gram @ alpha = 1 / alpha (Navon et al., eq. 2).

    It is the minimum of the strictly convex 1/2 alpha' H alpha - sum_k log alpha_k, found by
    Newton's method; far from it steps are divided by 1 + decrement, which keeps alpha positive.
    Solved for gradients of norm 1 and scaled back: alpha_k of c g_k is alpha_k / c.
    gram [K,K] -> [K] float64. Raises UserError where there is none: a zero gradient, or a
    combination with non-negative weights that cancels.
    """
    gram = gram.double()
    scale = gram.diagonal().rsqrt()
    H, alpha = scale[:, None] * gram * scale, torch.ones(len(gram), dtype=gram.dtype)
    for _ in range(200):
        slope = H @ alpha - 1 / alpha
        # of alpha * slope: nearly opposed gradients have long alphas
        rounding = 1e-15 * (alpha.max() ** 2).item()
        if (alpha * slope).abs().max() < 1e-9 + rounding and rounding < 1e-4:
            return scale * alpha
        step, _ = torch.linalg.solve_ex(H + torch.diag(alpha**-2), slope)
        decrement = (slope @ step).clamp(min=0).sqrt()
        alpha = alpha - step / (1 + decrement if decrement > 0.25 else 1)
    raise UserError("no bargaining solution: gradients are zero, or cancel; raise --ridge")


class NashMTL:
    """ridge: added to every squared norm, as a share of it."""

    def __init__(self, ridge: float) -> None:
        self.ridge, self.state, self.log = ridge, {}, {}

    def weigh(self, gram: Tensor) -> Tensor:
        """An objective without a gradient has nothing to bargain for. [K,K] -> [K]."""
        present, weights = has_gradient(gram), torch.full((len(gram),), 1 / len(gram))
        if present.any():
            part = gram[present][:, present]
            alpha = nash_weights(part + self.ridge * part.diagonal().diag())
            # but for the ridge the direction has the length sqrt(K)
            alpha = alpha * part.diagonal().sqrt().mean() / len(part) ** 0.5
            weights = torch.zeros(len(gram)).masked_scatter(present, alpha.float())
        return weights


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
    ridge: float = 1e-4
    """added to every squared gradient norm, as a share of it:
    without it opposed gradients have no solution (paper: 1e-8)"""


def controller(args: Args, objectives: list[str], device) -> NashMTL:
    """The algorithm as the flags have it. Raises UserError naming the flag."""
    flags.at_least(args, 0, "ridge")
    return NashMTL(args.ridge)


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

        # --- SHARED: advantages per objective ---
        each = estimate_each(rewards, batch.lengths, G, args.estimator)  # [B, K]
        K = len(run.objectives)
        weights = torch.zeros(K)  # the mean over this step's mini-batches

        # --- SHARED: update ---
        for epoch in range(args.epochs):
            order = generator(args.seed, step, args.prompts + epoch)
            for rows in mini_batches(args.prompts, G, args.mini_batches, order):
                tokens = batch.mask[rows].sum()
                # --- SHARED: one gradient per objective ---
                gradients, losses = Gradients(policy), torch.zeros(K).to(rewards)
                for micro in micro_batches(batch, rows, args.micro_batch_tokens):
                    logp = token_logprobs(policy, micro, args.temperature)  # [b, T]
                    ratio = (logp - micro.old_logp).clamp(-20, 20).exp()
                    found = [policy_loss(ratio, a, *clips) for a in each[micro.rows].T]
                    terms = [(loss * micro.token_weight).sum() / tokens for loss, _ in found]  # K
                    kl = (kl_penalty(logp, micro.ref_logp) * micro.mask).sum() / tokens
                    gradients.add([*terms, args.kl_coef * kl] if reference else terms)
                    active = torch.stack([a for _, a in found]).float().mean(0)  # of objectives
                    meter.see(micro, logp, active, tokens, torch.zeros_like(kl), kl)
                    losses += torch.stack(terms).detach()
                losses, gram = ranks.all_sum(losses).cpu(), gradients.gram(K)  # KL is no objective
                # --- SHARED: weighted gradient ---
                mini_weights = algorithm.weigh(gram)  # [K]
                share = mini_weights.tolist()
                gradients.combine([*share, 1.0] if reference else share)
                meter.weighed(gram, mini_weights @ losses)
                weights = weights + mini_weights / (args.epochs * args.mini_batches)
                # --- SHARED: optimizer step ---
                grad_norm = clip_gradients(policy.parameters(), args.max_grad_norm)
                meter.updated(grad_norm)
                if grad_norm < torch.inf:  # nor NaN; else the policy keeps its last good weights
                    optimizer.step()
                optimizer.zero_grad()  # here, for sampling wants the memory
        run.sync(step, meter)  # new weights for the sampler; what each rank saw for all

        # --- SHARED: means over the mini-batches ---
        weights, grams = weights.to(rewards), meter.grams
        advantages = each @ weights  # the update weighed gradients: about its direction, logged
        norms = sum(gram.diagonal().sqrt() / len(grams) for gram in grams)
        missing = sum(~has_gradient(gram) / len(grams) for gram in grams)
        found = {f"{run.script}/grad_norm": norms, f"{run.script}/no_gradient": missing}
        algorithm.log |= found

        # --- SHARED: log, evaluate, save ---
        run.finish(step, meter, rewards, advantages, weights, algorithm.log)
    run.close()  # model/, and what became of each objective


if __name__ == "__main__":
    launch.run(main, Args)
