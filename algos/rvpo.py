"""RVPO: the soft minimum of the normalised rewards in place of their mean, so that doing well in
one objective does not pay for failing in another.

Paper: RVPO (arXiv 2605.05750). z_ik as in GDPO; A_i = -1/kappa ln(sum_k w_k exp(-kappa z_ik)), one
number per completion; to second order their mean minus kappa/2 times their variance. kappa -> 0
is GDPO, kappa -> infinity the minimum.

Covariance law: a completion is worth about what its worst objective is worth, so a short wrong
answer is not worth much; PAMA's idea with negative advantages kept.
Against the paper: weights in place of 1/K; scores per completion, never sums over its tokens.
Against linear.py: every objective normalised, and a soft minimum in place of the sum.

Run: python run.py rvpo
"""

# --- SHARED: imports ---
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import rewards as reward_functions
from tools.command_line import parse, report
from common import flags, ranks
from common.batch import micro_batches, mini_batches
from common.errors import plain_errors, require
from common.grads import clip_gradients
from common.model import compute_dtype, token_logprobs, token_logprobs_no_grad
from common.observe import Meter
from common.rollout import Canary, roll_out
from common.run import Run
from common.seeds import generator, reseed
from common.setup import load_data, load_models, start

SCRIPT = Path(__file__).stem


# --- ALGO: mathematics ---
def soft_minimum(values: Tensor, weights: Tensor, kappa: float) -> Tensor:
    """-1/kappa ln(sum_k w_k exp(-kappa z_ik)): from the weighted mean (kappa -> 0) to the minimum.

    values [B,K], weights [K] positive, summing to 1 -> [B].
    """
    return -torch.logsumexp(weights.log() - kappa * values, 1) / kappa


def deciding_shares(values: Tensor, weights: Tensor, kappa: float) -> Tensor:
    """How much each objective decides on average, the soft minimum's gradient. -> [K], sum 1."""
    return torch.softmax(weights.log() - kappa * values, 1).mean(0)


# --- SHARED: advantages and loss ---
def estimate_advantages(scores: Tensor, lengths: Tensor, group_size: int, estimator: str) -> Tensor:
    """One advantage per completion, shared by all its tokens. scores, lengths in tokens [B] -> [B].

    reinforce: REINFORCE++ (Hu et al., 2025), whitened over the batch with every token counted once,
    so that long completions weigh more. grpo (Shao et al., 2024): centred and scaled within a
    prompt. In float64: where all scores are alike, the division would blow up float32's rounding
    error.
    """
    lengths, exact = lengths.double(), scores.double()
    if estimator == "reinforce":
        n = lengths.sum()
        centred = exact - (lengths * exact).sum() / n
        return (centred * torch.rsqrt((lengths * centred**2).sum() / (n - 1) + 1e-8)).to(scores)
    groups = exact.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + 1e-6)).flatten().to(scores)


def active_tokens(advantages: Tensor, ratio: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Where the surrogate has a gradient: 1 unless the clip acts (eq. 6), dual clip apart.

    advantages [B], ratio [B,T] -> bool [B,T].
    """
    return torch.where(advantages[:, None] >= 0, ratio <= 1 + clip_high, ratio >= 1 - clip_low)


def policy_loss(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float
) -> Tensor:
    """PPO's clipped surrogate per token, to be minimised; infinite clips give REINFORCE.

    ratio [B,T], advantages [B] -> [B,T]. dual_clip > 0 bounds the loss of negative advantages at
    dual_clip * |advantage| (Ye et al., 2020); 0 is off.
    """
    advantages = advantages[:, None]
    loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
    if dual_clip > 0:
        loss = torch.where(advantages < 0, torch.min(loss, -advantages * dual_clip), loss)
    return loss


def kl_penalty(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """k3 estimate of KL(policy || reference) per token, e^d - d - 1 with d = ref_logp - logp
    (Schulman, 2020). [B,T] -> [B,T].

    The clamps are the official code's. The outer one leaves no gradient where the estimate is above
    10: for a token that the policy has made 14 times rarer.
    """
    d = (ref_logp - logp).clamp(-20, 20)
    return (d.exp() - d - 1).clamp(-10, 10)


def within_prompt_covariance(completion_weight: Tensor, rewards: Tensor, group_size: int) -> Tensor:
    """Covariance law (eq. 3): mean over prompts of the covariance, over a prompt's completions, of
    what the update weighs a completion with and of each reward; biased (1/G) as in the paper.

    completion_weight [B], rewards [B,K] -> [K].
    """
    weight = completion_weight.view(-1, group_size, 1)
    reward = rewards.view(-1, group_size, rewards.size(1))
    products = (weight - weight.mean(1, keepdim=True)) * (reward - reward.mean(1, keepdim=True))
    return products.mean((0, 1))


# --- SHARED: args ---
@dataclass
class Args(flags.RunFlags):
    seed: int = 1
    """decides prompts, completions and mini-batches;
    the model's start and the evaluation do not depend on it"""
    steps: int = 100
    """training steps, each on fresh completions (paper: 810)"""
    prompts: int = 16
    """prompts per step, P (paper: 32)"""
    completions: int = 16
    """completions per prompt, G (paper: 16)"""
    max_new_tokens: int = 56
    """longest completion, in tokens (paper: 1024)"""
    temperature: float = 1.0
    """sampling temperature of training and of the sampled evaluation"""
    rewards: tuple[str, ...] = reward_functions.DEFAULT
    """objectives as module:function or file.py:function, any number;
    the function's name is the objective's"""

    estimator: Literal["reinforce", "grpo"] = "reinforce"
    """advantages: REINFORCE++ (whitened over the batch, no clipping)
    or GRPO (normalised per prompt, clipped)"""
    clip_low: float = 0.2
    """grpo: lower clip of the probability ratio, 1 - clip_low"""
    clip_high: float = 0.2
    """grpo: upper clip of the probability ratio, 1 + clip_high"""
    dual_clip: float = 0.0
    """grpo: bound the loss of negative advantages at dual_clip * |advantage|;
    0 is off (official code: 3)"""
    tis_cap: float = 0.0
    """truncated importance sampling: weigh a token with min(trainer's / sampler's probability,
    tis_cap); 0 is off, 2 is usual"""
    kl_coef: float = 1e-3
    """weight of the k3 KL divergence to the start model in the loss; 0 loads no reference model"""
    lr: float = 1e-4
    """AdamW learning rate (paper: 1e-6 for 1.5B parameters)"""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """linear falls in equal parts from --lr at the first step to --lr / --steps at the last"""
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
    """weight of each objective in the order of --rewards; default: equal.
    Scaled to sum 1"""
    kappa: float = 1.0
    """aversion to an objective that does badly where others do well:
    near 0 the mean, large the minimum"""


def main(args: Args) -> None:
    # --- SHARED: set-up ---
    device = start(args)
    objectives = reward_functions.load(args.rewards)
    K, G = len(objectives), args.completions
    grpo = args.estimator == "grpo"
    clip_low, clip_high = (args.clip_low, args.clip_high) if grpo else (torch.inf, torch.inf)
    dual_clip = args.dual_clip if grpo else 0.0

    # --- ALGO: state ---
    shares = flags.one_each("--weights", args.weights, 1 / K, objectives, device)
    flags.require_positive("--weights", shares, "an objective without weight has no logarithm")
    shares = shares / shares.sum()
    require(0 < args.kappa < torch.inf, f"--kappa {args.kappa} must be positive: 0 is gdpo.py")
    state = {}

    # --- SHARED: models, data and start ---
    data = load_data(args, objectives)
    compute = compute_dtype(args.compute_dtype, device)
    engine, policy, reference = load_models(args, data, device, compute)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    run = Run(args, SCRIPT, data, objectives, engine, policy, optimizer, state)
    engine.sync(policy, run.last_step)
    canary = Canary(args.max_logp_gap, compute)
    meter = Meter(args.epochs, args.mini_batches, optimizer, reference is not None)

    for step in run.steps():
        # --- SHARED: sample, generate, score ---
        meter.begin()
        decay = 1 - (step - 1) / args.steps if args.lr_schedule == "linear" else 1
        for group in optimizer.param_groups:
            group["lr"] = args.lr * decay
        # for rewards that draw lots; prompts, completions and mini-batches have seeds of their own
        reseed(args.seed, step, args.prompts + args.epochs + ranks.rank())
        # each rank samples and scores whole prompts, then every rank has all B = P * G completions
        prompts = data.train.batch(step, args.prompts, args.seed)
        batch = roll_out(engine, data.tokenizer, prompts, G, args.max_new_tokens, args.temperature)
        meter.lap("rollout")
        rewards, mean_length = run.score(batch)  # [B, K], in tokens
        meter.lap("reward")
        passes = {"temperature": args.temperature, "max_tokens": args.micro_batch_tokens}
        old_logp = token_logprobs_no_grad(policy, batch, **passes)  # [B, T]
        ref_logp = token_logprobs_no_grad(reference, batch, **passes) if reference else old_logp
        meter.sampled(batch, mean_length, canary.check(step, batch, old_logp))
        tis = (old_logp - batch.sampled.logp).exp().clamp(max=args.tis_cap) if args.tis_cap else 1
        batch = batch.with_logprobs(old_logp, ref_logp, token_weight=batch.mask * tis)

        # --- ALGO: advantages ---
        each = [estimate_advantages(r, batch.lengths, G, "grpo") for r in rewards.T]
        normalised = torch.stack(each, 1)  # [B, K]
        scores = soft_minimum(normalised, shares, args.kappa)  # [B]
        advantages = estimate_advantages(scores, batch.lengths, G, "reinforce")  # [B]
        weights = deciding_shares(normalised, shares, args.kappa)  # [K]

        # --- SHARED: update ---
        for epoch in range(args.epochs):
            order = generator(args.seed, step, args.prompts + epoch)
            for rows in mini_batches(args.prompts, G, args.mini_batches, order):
                tokens = batch.mask[rows].sum()
                optimizer.zero_grad()
                # --- SHARED: gradient ---
                # sums over the mini-batch's tokens: its division into micro-batches changes nothing
                for micro in micro_batches(batch, rows, args.micro_batch_tokens):
                    logp = token_logprobs(policy, micro, args.temperature)  # [b, T]
                    ratio = (logp - micro.old_logp).clamp(-20, 20).exp()
                    micro_advantages = advantages[micro.rows]
                    loss = policy_loss(ratio, micro_advantages, clip_low, clip_high, dual_clip)
                    loss = (loss * micro.token_weight).sum() / tokens
                    kl = (kl_penalty(logp, micro.ref_logp) * micro.mask).sum() / tokens
                    active = active_tokens(micro_advantages, ratio, clip_low, clip_high)
                    meter.see(micro, logp, active, tokens, loss_policy=loss, loss_kl=kl)
                    (loss + args.kl_coef * kl).backward()
                # --- SHARED: optimizer step ---
                grad_norm = clip_gradients(policy.parameters(), args.max_grad_norm)
                meter.updated(grad_norm)
                if grad_norm < torch.inf:  # nor NaN; else the policy keeps its last good weights
                    optimizer.step()
        meter.finish()
        engine.sync(policy, step)
        meter.lap("update")

        # --- ALGO: after the update ---
        extra = {}

        # --- SHARED: observe, evaluate, save ---
        meter.lap("weights")
        cov = within_prompt_covariance(advantages, rewards, G)
        cov_active = within_prompt_covariance(advantages * meter.unclipped, rewards, G)
        logged = {"weight": weights, "cov": cov, "cov_active": cov_active, **extra}  # [K] each
        row, kept = meter.describe(objectives, rewards, advantages, G, logged)
        run.log(step, row | run.evaluate(step), kept)
        run.save(step, meter.failures)

    # --- SHARED: close ---
    failed = run.close()
    report(run.folder, failed)
    ranks.stop()


if __name__ == "__main__":
    with plain_errors():
        main(parse(Args, SCRIPT))
