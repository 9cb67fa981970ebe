"""MGDA, multiple gradient descent: step along the shortest convex combination of the objectives'
gradients, which opposes none of them.

Paper: arXiv 2602.06869, section 3 (Désidéri, 2012; Sener and Koltun, 2018). Per mini-batch
w = argmin over the simplex of ||sum_k w_k g_k||^2 = w' H w with H_ij = <g_i, g_j>; then
<g_k, d> >= ||d||^2 for every k, so no objective gets worse: at first order, on the batch's own
completions, and for a step along d itself, which Adam's is not.
From the paper: every objective's rewards are normalised by themselves; their gradients come from
one forward and K backward passes.
Against the official code: an exact solver (there: projected gradient steps that stop after 200 and
go wrong on norms under 1e-3); H over all parameters (there: over one rank's shard); KL is no
objective; an objective without a gradient does not stop the others.
Against linear.py: K gradients per mini-batch instead of one, and the weights from them; no state.
Run: python run.py mgda
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
from common.errors import require
from common.grads import Gradients, has_gradient


# --- ALGO: the algorithm ---
def min_norm_weights(gram: Tensor) -> Tensor:
    """The weights on the simplex of the shortest convex combination, argmin_w w' H w, exactly.

    For each of the 2^K - 1 supports the optimality conditions, (Hw)_k = v on the support and
    sum_k w_k = 1, are one linear system. Of its non-negative solutions that one is the answer whose
    gap w'Hw - min_k (Hw)_k, 0 at the optimum, is least. Where there are several, as with two
    objectives of the same gradient, their mean is an answer as well, and treats the two alike.
    gram [K,K] -> [K] float64.
    """
    gram, K = gram.double(), len(gram)
    supports = [[s >> k & 1 for k in range(K)] for s in range(1, 2**K)]
    inside = torch.tensor(supports, dtype=gram.dtype)  # [N, K]
    # each support in units of its longest gradient: tiny gradients are solved as well. Where all of
    # a support are 0 any unit does; the smallest number keeps it from dividing by 0
    unit = (inside * gram.diagonal()).amax(1).clamp(min=torch.finfo(gram.dtype).tiny)
    system = torch.zeros(len(inside), K + 1, K + 1, dtype=gram.dtype)
    block = inside[:, :, None] * inside[:, None, :] * gram / unit[:, None, None]
    system[:, :K, :K] = block + torch.diag_embed(1 - inside)
    system[:, :K, K] = system[:, K, :K] = inside
    right = torch.eye(K + 1, dtype=gram.dtype)[K].expand(len(inside), -1)
    weights = torch.linalg.solve_ex(system, right)[0][:, :K] * inside
    valid = ((weights >= -1e-12) & weights.isfinite()).all(1) & (weights.sum(1) > 0.5)
    weights = weights[valid].clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True)
    slopes = weights @ gram
    lengths = (weights * slopes).sum(1)  # w'Hw
    gaps = lengths - slopes.amin(1)
    return weights[gaps <= gaps.min() + 1e-12 * lengths + 1e-16 * unit[valid]].mean(0)


def merge_equal(gram: Tensor) -> Tensor:
    """The Gram matrix with gradients that differ by float32's rounding made the same: which of them
    the weights favour would be chance, and another one on every number of ranks. [K,K] -> [K,K]."""
    squared = gram.diagonal()
    apart = squared[:, None] + squared - 2 * gram  # ||g_i - g_j||^2
    same = (apart <= 1e-12 * torch.maximum(squared[:, None], squared)).to(gram)
    mean = same / same.sum(1, keepdim=True)
    return mean @ gram @ mean.T


class MGDA:
    """normalize: find the weights for gradients of norm 1."""

    def __init__(self, normalize: bool) -> None:
        self.normalize, self.state, self.log = normalize, {}, {}

    def weigh(self, gram: Tensor) -> Tensor:
        """Of those that have a gradient: with a zero among them the shortest is 0. [K,K] -> [K]."""
        present, weights = has_gradient(gram), torch.full((len(gram),), 1 / len(gram))
        if present.any():
            part = merge_equal(gram[present][:, present])
            # a factor for each gradient: its length becomes 1, or stays as it is
            factor = part.diagonal().rsqrt() if self.normalize else torch.ones(len(part))
            found = factor * min_norm_weights(factor[:, None] * part * factor)
            found = (found / found.sum()).float()
            weights = torch.zeros(len(gram)).masked_scatter(present, found)
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
    normalize: bool = False
    """find the weights for gradients of norm 1,
    so that the shortest one does not take all the weight (paper: off)"""


def controller(args: Args, objectives: list[str], device) -> MGDA:
    """The algorithm as the flags have it. Raises UserError naming the flag."""
    K = len(objectives)
    require(K <= 12, f"--rewards has {K} objectives: exact weights take 2^K solves, so 12 at most")
    return MGDA(args.normalize)


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
