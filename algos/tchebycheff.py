"""Tchebycheff: serve the objective that is furthest from its ideal.

Makes max_k p_k (z_k - J_k) small, with preference p and ideal point z. --variant mirror-descent:
the score is sum_k w_k r_k, log w_k <- log w_k + lr p_k (z_k - mean r_k); smooth: w_k in proportion
to p_k softmax(p (z - J) / smoothing)_k; classical: the score is -max_k p_k (z_k - r_k).
The policy follows w, as in the authors' code; the minimax problem's own descent would follow w p,
the same direction where preferences are equal.
Paper: arXiv 2602.06869, section 3 (Lin et al., 2024; Liu et al., 2024); --max-ratio is ours.
Against the official code: classical scores a completion, not every token; evaluation never moves
the ideal point; all is checkpointed. Against linear.py: weights from the batches, at no cost.
Run: python run.py tchebycheff
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


# --- ALGO: the algorithm ---
def tchebycheff(rewards: Tensor, preference: Tensor, ideal: Tensor) -> Tensor:
    """-max_k p_k (z_k - r_ik), one score per completion. rewards [B,K], others [K] -> [B]."""
    return -(preference * (ideal - rewards)).amax(1)


def smooth_weights(
    mean_rewards: Tensor, preference: Tensor, ideal: Tensor, temperature: float
) -> Tensor:
    """p_k softmax(p (z - J) / T)_k over their sum (Lin et al.). All [K]."""
    weights = preference * (preference * gaps(mean_rewards, ideal) / temperature).softmax(0)
    return weights / weights.sum()


def mirror_descent_step(
    log_weights: Tensor, preference: Tensor, mean_rewards: Tensor, ideal: Tensor, lr: float
) -> Tensor:
    """log w_k + lr p_k (z_k - J_k), not normalised (Liu et al.). All [K]."""
    return log_weights + lr * preference * gaps(mean_rewards, ideal)


def gaps(mean_rewards: Tensor, ideal: Tensor) -> Tensor:
    """z - J; 0 for an objective without a mean, since no completion has it. [K]"""
    return (ideal - mean_rewards).masked_fill(mean_rewards.isnan(), 0.0)


def approach(controller, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """(mean of the batch, best of training so far), [K] each; the mean is NaN where no completion
    has the objective."""
    ideal = torch.maximum(controller.state["ideal"], rewards.nan_to_num(-torch.inf).amax(0))
    mean = rewards.nanmean(0)
    remember(controller.state, ideal=ideal)
    distance = controller.preference * gaps(mean, ideal)
    controller.log = {"tchebycheff/ideal": ideal, "tchebycheff/distance": distance}
    return mean, ideal


class MirrorDescent:
    """Weights [K] that add the distance up, of a ratio up to max_ratio, or the preferences' own."""

    def __init__(self, preference: Tensor, lr: float, max_ratio: float) -> None:
        self.preference, self.lr = preference, lr
        self.reach = (preference.max() / preference.min()).clamp(min=max_ratio).log()
        self.state = {"ideal": preference - torch.inf, "log_weights": preference.log()}

    def weights(self, rewards: Tensor) -> Tensor:
        (mean, ideal), before = approach(self, rewards), self.state["log_weights"]
        moved = mirror_descent_step(before, self.preference, mean, ideal, self.lr).log_softmax(0)
        lowest = moved.max() - self.reach
        remember(self.state, log_weights=moved.clamp(min=lowest))  # for the next batch
        return before.softmax(0)


class SmoothTchebycheff:
    """Weights [K] of the moment; tau: share of the newest batch in the mean rewards."""

    def __init__(self, preference: Tensor, temperature: float, tau: float) -> None:
        self.preference, self.temperature, self.tau = preference, temperature, tau
        self.state = {"ideal": preference - torch.inf, "ema": None}

    def weights(self, rewards: Tensor) -> Tensor:
        (mean, ideal), ema = approach(self, rewards), self.state["ema"]
        remember(self.state, ema=mean if ema is None else (1 - self.tau) * ema + self.tau * mean)
        ema = mean if self.state["ema"] is None else self.state["ema"]  # of all, or not yet
        return smooth_weights(ema, self.preference, ideal, self.temperature)


class Tchebycheff:
    """A score per completion: its advantages [B], and as weights the preference [K]."""

    def __init__(self, preference: Tensor) -> None:
        self.preference, self.state = preference, {"ideal": preference - torch.inf}

    def advantages(
        self, rewards: Tensor, lengths: Tensor, group_size: int, estimator: str
    ) -> tuple[Tensor, Tensor]:
        known = rewards.nan_to_num(torch.inf)  # what does not apply is never the furthest
        scores = tchebycheff(known, self.preference, approach(self, rewards)[1])
        scores = scores.masked_fill(scores == torch.inf, torch.nan)
        return estimate_advantages(scores, lengths, group_size, estimator), self.preference


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
    variant: Literal["mirror-descent", "smooth", "classical"] = "mirror-descent"
    """weights that add the distance up (the paper's), weights of the moment, or scores"""
    preference: tuple[float, ...] = ()
    """importance p of each objective in the order of --rewards; default: equal, as the paper's"""
    weight_lr: float = 1.0
    """mirror-descent: step of the log-weights, for 100 steps (paper: 0.3 for 810)"""
    max_ratio: float = 20.0
    """mirror-descent: largest weight over smallest; or that of --preference (paper: no bound)"""
    smoothing: float = 0.05
    """smooth: temperature; a large one follows --preference, a small one serves the worst alone"""
    ema_tau: float = 0.3
    """smooth: share of the newest batch in the average rewards"""


def controller(args: Args, objectives: list[str], device):
    """The --variant as its flags have it. Raises UserError naming the flag."""
    preference = flags.shares("--preference", args.preference, objectives, device, some=False)
    flags.at_least(args, 0, "weight_lr")
    flags.share(args, "ema_tau")
    flags.at_least(args, 1, "max_ratio", most=torch.inf)
    flags.at_least(args, 1e-9, "smoothing")
    mirror = MirrorDescent(preference, args.weight_lr, args.max_ratio)
    smooth = SmoothTchebycheff(preference, args.smoothing, args.ema_tau)
    known = {"mirror-descent": mirror, "smooth": smooth, "classical": Tchebycheff(preference)}
    return known[args.variant]


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
        if args.variant == "classical":
            advantages, weights = algorithm.advantages(rewards, batch.lengths, G, args.estimator)
        else:
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
