"""UPGrad: project each objective's gradient onto the directions that oppose none of them, then step
along the mean of the projections.

Paper: Jacobian descent (arXiv 2406.16232), section 3. Per mini-batch, with the dual cone
C = {d: <g_k, d> >= 0 for every k}: the mean over i of the point of C nearest to g_i. C is convex,
so it opposes no objective, with three as with two; where none conflict it is the plain mean. What
a projection is made of, g_i + sum_k m_k g_k with m >= 0, needs H_ij = <g_i, g_j> alone.
As MGDA's, the promise is of first order, on the batch's own completions, and for a step along d
itself, which Adam's is not. Unlike MGDA's, the longest gradient is heard most.
Against the official code (TorchJD): exact (there 1e-4 of H's trace is added to its diagonal); KL is
no objective; an objective without a gradient is left out of the mean.
Against linear.py: K gradients per mini-batch instead of one, and the weights from them; no state.
Run: python run.py upgrad
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
def project_each(gram: Tensor) -> Tensor:
    """What of each gradient the projection of each onto the dual cone of all is made of. Row i: the
    projection of g_i is sum_k W_ik g_k. gram [K,K], its diagonal above 0 -> [K,K] float64.

    It is g_i + sum_k m_k g_k where m >= 0, the slopes H (e_i + m) >= 0, and of each pair of these
    one is 0. For each of the 2^K sets of slopes that are 0 this is one linear system. Of the
    solutions that one is the answer whose lowest number, 0 at the optimum, is highest. Where there
    are several, up to float32's rounding, as with two objectives of the same gradient, their mean
    is an answer as well, and treats the two alike. Sets of dependent gradients are not needed.
    """
    gram, K = gram.double(), len(gram)
    lengths = gram.diagonal().sqrt()
    cosines = gram / torch.outer(lengths, lengths)
    sets = [[s >> k & 1 for k in range(K)] for s in range(2**K)]
    inside = torch.tensor(sets, dtype=gram.dtype)  # [N, K]
    system = inside[:, :, None] * inside[:, None, :] * cosines + torch.diag_embed(1 - inside)
    added = torch.linalg.solve_ex(system, -inside[:, :, None] * cosines)[0]  # m [N, K, of i]
    found = torch.eye(K, dtype=gram.dtype) + added
    lowest = torch.minimum(added, cosines @ found).amin(1)  # [N, i]
    usable = lowest.isfinite() & (torch.linalg.det(system) > 1e-12)[:, None]
    lowest = lowest.masked_fill(~usable, -torch.inf)
    best = (lowest >= lowest.amax(0) - 1e-6)[:, None]  # [N, 1, i]
    mean = found.masked_fill(~best, 0).sum(0) / best.sum(0)  # [K, i] in units of the lengths
    return mean.T * lengths[:, None] / lengths


class UPGrad:
    """Has no settings, and remembers nothing."""

    def __init__(self) -> None:
        self.state, self.log = {}, {}

    def weigh(self, gram: Tensor) -> Tensor:
        """The mean projection's, of those that have a gradient. [K,K] -> [K], which sum to 1 or
        more."""
        present, weights = has_gradient(gram), torch.full((len(gram),), 1 / len(gram))
        if present.any():
            found = project_each(gram[present][:, present]).mean(0).float()
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
    # it has none of its own


def controller(args: Args, objectives: list[str], device) -> UPGrad:
    """The algorithm as the flags have it. Raises UserError naming the flag."""
    K = len(objectives)
    require(K <= 12, f"--rewards has {K} objectives: exact weights take 2^K solves, so 12 at most")
    return UPGrad()


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
