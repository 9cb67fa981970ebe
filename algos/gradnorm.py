"""GradNorm: weights that give the objectives gradients of like length, longer for those that have
come less far than the others.

Paper: arXiv 2602.06869, section 3 (Chen et al., 2018). G_k = w_k ||g_k||; objective k's rate is its
loss against its first loss, relative to the mean of all; w_k moves by lr * ||g_k|| towards
G_k = mean(G) * rate_k^alpha, and the weights are scaled back to sum K.
From the paper: every objective's rewards are normalised by themselves; their gradients come from
one forward and K backward passes.
Against the official code: the losses are reward gaps, reward_max - mean reward, which are positive
and tell of progress (there: the policy-gradient surrogates, whose mean is 0: NaN to the power 1.5);
norms over all parameters (there: per rank); weights stay positive; KL outside.
Against linear.py: K gradients per mini-batch instead of one, and the weights from them.
Run: python run.py gradnorm
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
from common.controllers import remember
from common.grads import Gradients, has_gradient


# --- ALGO: the algorithm ---
FLOOR = 0.02  # of a reward gap: below it the ratio to the first gap is sampling noise
FIRST = 10  # updates whose mean loss is an objective's first: a single batch is a noisy yardstick
MIN_WEIGHT = 0.05  # of a weight whose sum is K: an objective that has none could not come back


def gradnorm_step(
    weights: Tensor,
    grad_norms: Tensor,
    losses: Tensor,
    initial_losses: Tensor,
    alpha: float,
    lr: float,
) -> Tensor:
    """One step on sum_k |w_k n_k - target_k|, target_k = mean_j(w_j n_j) * rate_k^alpha held, then
    back to sum K (Chen et al., algorithm 1). All [K]: weights of sum K, norms n, losses > 0."""
    length, progress = weights * grad_norms, losses / initial_losses
    target = length.mean() * (progress / progress.mean()) ** alpha
    weights = (weights - lr * torch.sign(length - target) * grad_norms).clamp(min=MIN_WEIGHT)
    return weights * len(weights) / weights.sum()


class GradNorm:
    """reward_max [K]: the best of each objective; tau: share of the newest batch in the means."""

    state: dict
    log: dict

    def __init__(self, reward_max: Tensor, alpha: float, lr: float, tau: float) -> None:
        self.reward_max, self.alpha, self.lr, self.tau, self.log = reward_max, alpha, lr, tau, {}
        ones = torch.ones(len(reward_max))  # on the CPU, as Gram matrices are
        self.state = {"weights": ones, "ema": torch.nan * ones, "first": 0 * ones, "seen": 0 * ones}

    def see(self, rewards: Tensor) -> None:
        """A step's rewards [B,K], before its mini-batches are weighed."""
        flags.within("--reward-max", self.reward_max, rewards)
        mean, ema, tau = rewards.nanmean(0).cpu(), self.state["ema"], self.tau
        remember(self.state, ema=torch.where(ema.isnan(), mean, (1 - tau) * ema + tau * mean))
        self.log = {"gradnorm/average_reward": self.state["ema"]}

    def weigh(self, gram: Tensor) -> Tensor:
        """The weights of this mini-batch, of sum 1, so that KL counts as in linear.py; then their
        step. [K,K] -> [K]."""
        used, present = self.state["weights"], has_gradient(gram)
        gaps = (self.reward_max.cpu() - self.state["ema"].nan_to_num()).clamp(min=FLOOR)  # [K]
        # the others keep their weights: a gradient of 0 says nothing about their rate
        if present.any():
            new = present & (self.state["seen"] < FIRST)
            first, seen = self.state["first"] + new * gaps, self.state["seen"] + new
            own, lengths = used[present], gram.diagonal().sqrt()[present].float()
            inputs = (own / own.mean(), lengths, gaps[present], (first / seen)[present])
            own = own.mean() * gradnorm_step(*inputs, self.alpha, self.lr)
            remember(self.state, weights=used.masked_scatter(present, own), first=first, seen=seen)
        return used / len(used)


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
    reward_max: tuple[float, ...] = ()
    """the best reward of each objective; default: 1 each"""
    alpha: float = 1.5
    """how strongly objectives that have come less far are favoured; 0: not (paper: 1.5)"""
    weight_lr: float = 0.025
    """step of the weights, in units of the gradient's norm (paper: 0.025)"""
    ema_tau: float = 0.3
    """share of the newest batch in the average rewards"""


def controller(args: Args, objectives: list[str], device) -> GradNorm:
    """The algorithm as the flags have it. Raises UserError naming the flag."""
    reward_max = flags.one_each("--reward-max", args.reward_max, 1.0, objectives, device)
    flags.at_least(args, 0, "alpha", "weight_lr")
    flags.share(args, "ema_tau")
    return GradNorm(reward_max, args.alpha, args.weight_lr, args.ema_tau)


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

        # --- ALGO: advantages ---
        algorithm.see(rewards)

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
