"""Ratchet: the weighted sum, what is good for all, and multipliers pulling up what fell behind.

Covariance law (arXiv 2602.06869, eq. 3) by the move: dJ_k = Cov(pi_new / pi_old, r_k) over
completions that the step was not trained on. Its sum drifts with its noise; every batch's mean
reward corrects that, as in a Kalman filter. Then a multiplier is added to the weight:
    L_k <- L_k + dJ_k + trust (mean r_k - L_k),
    lambda_k = [ki (ahead + (H_k - L_k) / sd(r_k)) - kp Corr(move, r_k)]_+.
H, what is held, is L at the start and whenever no objective is below H: one policy had all of it.
kp damps (Stooke et al., 2020). Steps are short, --desired-kl: an effect must stand out of noise.
Multipliers hold but do not find: rare completions good for all are credited apart, by PAMA's score.
Not of the paper, whose CTWA asks the score, Cov(r_k, W). Derivation: docs/algos/ratchet.md.
Against linear.py: every objective normalised, PAMA's score, multipliers from the step's own passes.
Run: python run.py ratchet
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
from common.controllers import first_order_change, remember
from common.errors import require


# --- ALGO: the algorithm ---
def what_moved(
    drift: Tensor, age: Tensor, rewards: Tensor, group_size: int, updates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Change of each mean reward [K]; its correlation with the move [K]; variance of the reward
    within prompts [K], of all completions. NaN where no completion that tells has the objective.

    drift, age [B] as in `first_order_change`, rewards [B,K]. On completions not trained on,
    pi_new(y) / pi_old(y) = e^drift, and J_new - J_old = Cov(e^drift, r) by the updates so far;
    those still to come are taken to do as much each.
    """
    beyond = drift.clamp(-20, 20).expm1()  # drift is its first order; the rate is not used
    change, _, moved = first_order_change(beyond, age, drift, rewards, group_size, updates)
    groups = rewards.view(-1, group_size, rewards.size(1))
    degrees = ((~groups.isnan()).sum(1) - 1).clamp(min=0).sum(0)
    variance = (groups - groups.nanmean(1, keepdim=True)).square().nansum((0, 1)) / degrees
    return change, change / (moved * variance.sqrt()).clamp(min=1e-12), variance


def follow(level, held, seen, change, count: Tensor, trust: float) -> tuple[Tensor, Tensor]:
    """(levels after a step's updates, what is held then). All [K], in units of the reward.

    seen: mean reward of the step's completions, the count-th batch; change: what the updates did
    then. In the first 1 / trust batches a correction says where it began: no gain and no loss.
    """
    correction = ((1 / count).clamp(min=trust) * (seen - level)).nan_to_num()  # 0: none was seen
    held = torch.where(count * trust <= 1, held + correction, held)
    level = level + correction + change
    return level, held if (level < held).any() else level


def good_for_all(advantages: Tensor) -> Tensor:
    """The least of a completion's advantages, if all are positive, else 0: PAMA's score (arXiv
    2602.06869, section 3). NaN does not apply; where none applies, NaN. [B,K] -> [B]."""
    least = advantages.nan_to_num(nan=torch.inf).amin(1).clamp(min=0)
    return least.masked_fill(advantages.isnan().all(1), torch.nan)


class Ratchet:
    """preference [K]: weights of the sum, by ratio; settings: the flags after --weights."""

    def __init__(self, preference: Tensor, *settings: float) -> None:
        self.preference = preference / preference.mean()
        self.common, self.ki, self.kp, self.ahead, self.trust = settings
        self.state = dict.fromkeys("level held count multipliers variance".split(), 0 * preference)
        self.log: dict = {}

    def advantages(
        self, rewards: Tensor, lengths: Tensor, group_size: int, estimator: str
    ) -> tuple[Tensor, Tensor]:
        """([B], weights [K]) of the weighted sum of the normalised rewards [B,K], and what is good
        for all, normalised as well: the rarer it is, the more one such completion counts."""
        weights = self.preference + self.state["multipliers"]
        each = estimate_each(rewards, lengths, group_size, estimator)
        each = each.masked_fill(rewards.isnan(), torch.nan)
        common = good_for_all(each)
        self.log = {"ratchet/common": (common > 0).double().mean().item()}
        common = estimate_advantages(common, lengths, group_size, estimator)
        scores = scalarize(each, weights) + self.common * common
        return estimate_advantages(scores, lengths, group_size, estimator), weights

    def learn(
        self, rewards: Tensor, drift: Tensor, age: Tensor, updates: int, group_size: int
    ) -> None:
        """rewards [B,K], drift, age [B]: see `what_moved`."""
        change, alignment, variance = what_moved(drift, age, rewards, group_size, updates)
        share = torch.where(self.state["count"] > 0, 0.1, 1.0)  # of a rare one, a batch says little
        variance = self.state["variance"].lerp(variance, share)
        spread, seen = variance.sqrt().clamp(min=1e-6), rewards.nanmean(0)
        count = self.state["count"] + ~seen.isnan()
        before = self.state["level"], self.state["held"]
        level, held = follow(*before, seen, change.nan_to_num(), count, self.trust)
        asked = self.ki * (self.ahead + (held - level) / spread) - self.kp * alignment
        remember(self.state, level=level, held=held, count=count)
        remember(self.state, multipliers=asked.clamp(min=0), variance=variance)
        self.log |= {"ratchet/change": change / spread, "ratchet/alignment": alignment}
        self.log |= {"ratchet/level": level, "ratchet/held": held}


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
    lr: float = 2e-4
    """AdamW learning rate where no step is too long; --desired-kl lowers it"""
    desired_kl: float = 0.005
    """KL divergence of a step, in nats, for which --lr is lowered as it goes on; 0 leaves it"""
    weights: tuple[float, ...] = ()
    """weight of each objective in the sum; default: equal. 0: there only its multiplier"""
    common: float = 4.0
    """weight of what is good for all objectives, beside the sum; 0: not credited apart"""
    ki: float = 70.0
    """multiplier for every standard deviation of its reward that an objective is behind"""
    kp: float = 8.0
    """multiplier for a step that moved straight against an objective (correlation -1)"""
    ahead: float = 0.1
    """how far above what is held each objective is to be, in standard deviations of its reward"""
    trust: float = 0.1
    """share of the distance to a batch's mean reward by which the level is corrected"""


def controller(args: Args, objectives: list[str], device) -> Ratchet:
    """The algorithm as the flags have it. Raises UserError naming the flag."""
    preference = flags.one_each("--weights", args.weights, 1.0, objectives, device)
    preference = flags.positive("--weights", preference, some=True)
    flags.at_least(args, 0, "common", "ki", "kp", "ahead")
    flags.share(args, "trust")
    require(args.mini_batches >= 2, "--mini-batches must be 2 or more: one shows what another did")
    return Ratchet(preference, args.common, args.ki, args.kp, args.ahead, args.trust)


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

        # --- ALGO: after the update ---
        algorithm.learn(rewards, meter.drift, meter.age, args.epochs * args.mini_batches, G)

        # --- SHARED: log, evaluate, save ---
        run.finish(step, meter, rewards, advantages, weights, algorithm.log)
    run.close()  # model/, and what became of each objective


if __name__ == "__main__":
    launch.run(main, Args)
