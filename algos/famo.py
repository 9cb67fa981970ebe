"""FAMO: weights that make all losses fall at the same relative rate, learned from how far each fell
in the last step.

Paper: arXiv 2602.06869, section 3 (Liu et al., 2023). Minimise sum_k z_k log D_k with
z = softmax(logits), so objective k's gradient counts z_k / D_k. After the step the logits descend
z * (delta - <z, delta>), delta_k = log D_k before - log D_k after: who fell least gains.
From the paper: one gradient per step, no gradient per objective; Adam and a decay for the logits.
Against the official code: D_k is a reward gap, reward_max - mean reward + 0.02, which is positive
by itself (there: the policy-gradient surrogate, which is about 0, above its minimum so far less a
margin of 1, so that D_k is about 1 and z_k / D_k about z_k); before and after on the whole batch;
one set of weights, checkpointed (there: one per rank, restarted on resume).
Against linear.py: one more forward pass without gradients per step, and the weights from it.
Run: python run.py famo
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
FLOOR = 0.02  # added to a reward gap: an objective that is nearly done would take all the weight


def famo_weights(logits: Tensor, gaps: Tensor) -> Tensor:
    """Weights of the objectives' gradients: those of sum_k z_k log D_k, scaled to sum 1.

    logits [K], gaps D > 0 [K] -> [K].
    """
    weights = logits.softmax(0) / gaps
    return weights / weights.sum()


def famo_direction(logits: Tensor, gaps_before: Tensor, gaps_after: Tensor) -> Tensor:
    """Gradient of sum_k z_k (log D_k before - log D_k after) in the logits, to be descended. [K]"""
    z, delta = logits.softmax(0), gaps_before.log() - gaps_after.log()
    return z * (delta - z @ delta)


def adam_step(
    logits: Tensor, gradient: Tensor, m: Tensor, v: Tensor, t: int, lr: float
) -> tuple[Tensor, Tensor, Tensor, int]:
    """One step of Adam (torch's defaults) on the logits: (logits, m, v, t) after it. Written out so
    that its state is plain tensors."""
    t, m, v = t + 1, 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    return logits - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8), m, v, t


def reweighted_rewards(rewards: Tensor, log_ratio: Tensor, group_size: int) -> Tensor:
    """Mean rewards of an updated policy, from completions of the old one: those of a prompt weigh
    as their probability has grown.

    log_ratio [B] is log pi_new(y) - log pi_old(y); rewards [B,K] -> [K]. The weights of a prompt
    are scaled to sum 1, so the result lies between the lowest and highest reward of the batch,
    however far the policy moved; a plain mean of ratio * reward does not.
    """
    groups = rewards.view(-1, group_size, rewards.size(1))
    log_ratio = log_ratio.view(-1, group_size, 1).masked_fill(groups.isnan(), -torch.inf)
    present = groups.isfinite().sum(1)  # [P, K]; a prompt counts as often as it has the objective
    return ((log_ratio.softmax(1) * groups).nansum(1) * present).sum(0) / present.sum(0)


class FAMO:
    """reward_max [K]: the best reward each objective can have; gamma: decay of the logits."""

    state: dict

    def __init__(self, reward_max: Tensor, lr: float, gamma: float) -> None:
        self.reward_max, self.lr, self.gamma, self.log = reward_max, lr, gamma, {}
        # in float64: Adam would turn a rounding error of the direction into a full step
        zero = torch.zeros_like(reward_max, dtype=torch.float64)
        self.state = {"logits": zero, "m": zero, "v": zero, "t": 0}

    def weights(self, rewards: Tensor) -> Tensor:
        """[B,K] -> [K]."""
        flags.within("--reward-max", self.reward_max, rewards)
        self.gaps = (self.reward_max - rewards.double()).nanmean(0) + FLOOR  # [K]
        gaps = torch.where(self.gaps.isnan(), self.gaps.nanmean().nan_to_num(1.0), self.gaps)
        return famo_weights(self.state["logits"], gaps).to(rewards)

    def measure(
        self, log_ratio: Tensor, mask: Tensor, advantages: Tensor, clip_low: float, clip_high: float
    ) -> Tensor:
        """log pi_new(y) - log pi_old(y) of completions, [b]; nothing but the first two is used."""
        return (log_ratio * (mask > 0)).double().sum(1)

    def learn(self, rewards: Tensor, measured: Tensor, group_size: int) -> None:
        """rewards [B,K], measured [B]."""
        self.reached(reweighted_rewards(rewards.double(), measured, group_size))

    def reached(self, mean_rewards: Tensor) -> None:
        """The logits' step, by the means [K] after the update. An objective that has none neither
        leads nor lags."""
        after, logits = self.reward_max - mean_rewards + FLOOR, self.state["logits"]
        self.log = {"famo/gap": self.gaps, "famo/improvement": self.gaps.log() - after.log()}
        self.log["famo/z"] = logits.softmax(0)
        known = (self.gaps + after).isfinite()
        if known.any():
            direction = self.gamma * logits
            direction[known] += famo_direction(logits[known], self.gaps[known], after[known])
            adam = (self.state["m"], self.state["v"], self.state["t"], self.lr)
            logits, m, v, t = adam_step(logits, direction, *adam)
            remember(self.state, logits=logits, m=m, v=v, t=t)


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
    reward_max: tuple[float, ...] = ()
    """the best reward each objective can have; default: 1 each"""
    weight_lr: float = 0.025
    """Adam's learning rate for the logits of the weights (paper: 0.025)"""
    gamma: float = 1e-5
    """decay of the logits towards equal weights (official code: 1e-5; FAMO's own: to 1e-2)"""


def controller(args: Args, objectives: list[str], device) -> FAMO:
    """The algorithm as the flags have it. Raises UserError naming the flag."""
    reward_max = flags.one_each("--reward-max", args.reward_max, 1.0, objectives, device)
    flags.at_least(args, 0, "weight_lr", "gamma")
    return FAMO(reward_max, args.weight_lr, args.gamma)


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
        measured = algorithm.measure(log_ratio, batch.mask, advantages, *clips[:2])  # [B]
        algorithm.learn(rewards, measured, G)

        # --- SHARED: log, evaluate, save ---
        run.finish(step, meter, rewards, advantages, weights, algorithm.log)
    run.close()  # model/, and what became of each objective


if __name__ == "__main__":
    launch.run(main, Args)
