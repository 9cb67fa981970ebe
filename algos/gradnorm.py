"""GradNorm: weights that give the objectives gradients of like length, longer for those that have
come less far than the others.

Paper: arXiv 2602.06869, section 3 (Chen et al., 2018). G_k = w_k ||g_k||; objective k's rate is its
loss against its first loss, relative to the mean of all; w_k moves by lr * ||g_k|| towards G_k =
mean(G) * rate_k^alpha, and the weights are scaled back to sum K.

From the paper: every objective's rewards are normalised by themselves; their gradients come from
one forward and K backward passes.
Against the official code: the losses are reward gaps, reward_max - mean reward, which are positive
and tell of progress (there: the policy-gradient surrogates, whose mean is 0 by construction, so
that most updates raise a negative number to the power 1.5: NaN); norms over all parameters and
shared (there: per rank); weights stay positive; KL outside.
Against linear.py: K gradients per mini-batch instead of one; the weights, the average rewards and
the first losses are state.

Run: python run.py gradnorm
"""

# --- SHARED: imports ---
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import rewards as reward_functions
from common import ranks
from common.batch import micro_batches, mini_batches, pad, right_pad
from common.checkpoint import load_checkpoint, save_checkpoint
from common.data import ARITHMETIC, load_prompts
from common.errors import UserError, plain_errors, require
from common.evaluate import evaluate
from common.flags import RunFlags, check_flags, one_each
from common.grads import clip_gradients
from common.memory import measured
from common.model import (
    compute_dtype,
    export,
    load_model,
    load_tokenizer,
    longest_sequence,
    token_logprobs,
    token_logprobs_no_grad,
)
from common.rollout import Canary, make_engine, sample
from common.seeds import derive, generator, reseed
from common.track import Tracker, parse, run_folder

SCRIPT = Path(__file__).stem
MAX_FAILURES = 5  # updates in a row with a gradient that is not finite, before the run stops


# --- ALGO: imports ---
from common.grads import backward_each, combine, gram_matrix, has_gradient

# --- ALGO: mathematics ---
FLOOR = 0.02  # of a reward gap: below it the ratio to the first gap is sampling noise
# updates whose mean loss is the first loss: one batch's would be a noisy yardstick for the whole
# run
FIRST = 10
MIN_WEIGHT = 0.05  # of a weight whose sum is K: an objective that has none could not come back


def gradnorm_step(
    weights: Tensor,
    grad_norms: Tensor,
    losses: Tensor,
    initial_losses: Tensor,
    alpha: float,
    lr: float,
) -> Tensor:
    """One step on sum_k |w_k n_k - target_k| with the target held, then back to sum K (Chen et al.,
    algorithm 1). All [K] -> [K].

    weights, of sum K, grad_norms n >= 0, losses and initial_losses > 0; target_k = mean_j(w_j n_j)
    * rate_k^alpha.
    """
    length, progress = weights * grad_norms, losses / initial_losses
    target = length.mean() * (progress / progress.mean()) ** alpha
    weights = (weights - lr * torch.sign(length - target) * grad_norms).clamp(min=MIN_WEIGHT)
    return weights * len(weights) / weights.sum()


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
    return (
        ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6))
        .flatten()
        .to(scores)
    )


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

    The clamps are the official code's: they act only where the models differ by e^10 and more.
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
    return ((weight - weight.mean(1, keepdim=True)) * (reward - reward.mean(1, keepdim=True))).mean(
        (0, 1)
    )


def first_order_change(
    drift: Tensor, age: Tensor, advantages: Tensor, rewards: Tensor, group_size: int, updates: int
) -> tuple[Tensor, ...]:
    """Covariance law (eq. 3) with what the step really did to log pi as its score: change of each
    mean reward [K]; nats per unit of advantage; size of the step, the sd in nats within prompts.

    drift [B]: log pi(y) of a completion when its mini-batch was reached, less that when it was
    sampled; age [B]: updates that had been made in between, of `updates` in the step. At age 0
    nothing had moved. The others had not been trained on either, so they tell how the policy moves
    on fresh completions, at no cost. advantages [B], rewards [B,K]. All NaN where a step is a
    single mini-batch.
    """
    columns = torch.cat([(drift * updates / age)[:, None], advantages[:, None], rewards], 1)[
        age > 0
    ]
    groups = columns.view(-1, group_size, columns.size(1))
    centred = groups - groups.mean(1, keepdim=True)
    covariance = (centred.mT @ centred).mean(0) / (group_size - 1)
    return (
        covariance[0, 2:],
        covariance[0, 1] / covariance[1, 1].clamp(min=1e-12),
        covariance[0, 0].sqrt(),
    )


# --- SHARED: args ---
@dataclass
class Args(RunFlags):
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
    GRADIENT_PER_OBJECTIVE = True
    reward_max: tuple[float, ...] = ()
    """the best reward of each objective, in the order of --rewards; default: 1 each"""
    alpha: float = 1.5
    """how strongly objectives that have come less far are favoured;
    0 only makes the lengths alike (paper: 1.5)"""
    weight_lr: float = 0.025
    """step of the weights, in units of the gradient's norm (paper: 0.025)"""
    ema_tau: float = 0.3
    """share of the newest batch in the average rewards"""


def main(args: Args) -> None:
    # --- SHARED: set-up ---
    device = ranks.start(single=args.engine == "vllm" or args.compute_dtype == "bfloat16")
    check_flags(args, ranks.count())
    objectives = reward_functions.load(args.rewards)
    K, G = len(objectives), args.completions
    compute = compute_dtype(args.compute_dtype, device)
    grpo = args.estimator == "grpo"
    clip_low, clip_high = (args.clip_low, args.clip_high) if grpo else (torch.inf, torch.inf)
    dual_clip = args.dual_clip if grpo else 0.0

    # --- ALGO: state ---
    reward_max = one_each("--reward-max", args.reward_max, 1.0, objectives)
    require(args.alpha >= 0, f"--alpha {args.alpha} must not be negative")
    require(args.weight_lr >= 0, f"--weight-lr {args.weight_lr} must not be negative")
    require(0 < args.ema_tau <= 1, f"--ema-tau {args.ema_tau} must be in (0, 1]")
    state = {"weights": torch.ones(K), "ema": None, "first_losses": []}

    # --- SHARED: models, data and start ---
    tokenizer = load_tokenizer(args.model, args.trust_remote_code)
    data = load_prompts(
        args.dataset,
        tokenizer,
        args.prompt_column,
        args.answer_column,
        args.prompt_suffix,
        args.max_prompt_length,
    )
    train, held_out = data["train"], data[args.eval_split]
    held_out = held_out.select(range(min(args.eval_prompts, len(held_out))))
    require(
        args.prompts <= len(train),
        f"--prompts {args.prompts} is more than the {len(train)} training prompts",
    )
    max_length = longest_sequence(
        args.model, train.ids + held_out.ids, args.max_new_tokens, args.trust_remote_code
    )
    vllm = (args.vllm_tp, args.vllm_memory, args.vllm_sleep)
    engine = make_engine(
        args.engine,
        args.model,
        tokenizer,
        device,
        compute,
        max_length,
        args.seed,
        args.trust_remote_code,
        *vllm,
    )
    source = (args.model, device, args.trust_remote_code, compute)
    policy = load_model(*source, activation_checkpointing=args.activation_checkpointing)
    reference = load_model(*source, frozen=True) if args.kl_coef > 0 else None
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    last_step, seen, yardstick, failures = (
        0,
        [0.0, 0],
        None,
        0,
    )  # seen: tokens and number of all training completions so far
    if args.resume:
        last_step, saved = load_checkpoint(Path(args.resume), policy, optimizer)
        state.update(saved["algorithm"])
        seen, yardstick = saved["seen"], saved["yardstick"]
    engine.sync(policy, last_step)
    canary = Canary(args.max_logp_gap, compute)
    folder = run_folder(args.out, args.resume, SCRIPT, args.seed)
    config = {
        "script": SCRIPT,
        "objectives": list(objectives),
        **asdict(args),
        "out": str(folder),
        "resume": "",
    }
    tracker = Tracker(
        folder, config, last_step if args.resume else None, args.tensorboard, args.wandb
    )
    builtin = args.dataset in ARITHMETIC
    check = (
        ("exact" if builtin else "math-verify")
        if args.answer_check == "auto"
        else args.answer_check
    )
    evaluation = (
        tokenizer,
        held_out,
        objectives,
        args.prompts * G,
        args.max_new_tokens,
        args.temperature,
        {"answer_check": check},
    )
    if not args.resume:
        metrics, samples = evaluate(engine, None, *evaluation)
        yardstick = metrics["eval/length"]
        tracker.log(0, metrics, samples)

    steps = range(last_step + 1, args.steps + 1)
    progress = tqdm(
        steps,
        initial=last_step,
        total=args.steps,
        desc=folder.name,
        unit="step",
        disable=ranks.rank() > 0,
    )
    for step in progress:
        # --- SHARED: sample, generate, score ---
        clock = [time.perf_counter()]
        reseed(
            args.seed, step, args.prompts + args.epochs + ranks.rank()
        )  # what is before has seeded prompts and mini-batches
        for group in optimizer.param_groups:
            group["lr"] = args.lr * (
                1 - (step - 1) / args.steps if args.lr_schedule == "linear" else 1
            )
        # each rank samples and scores whole prompts; from here on every rank has all B = P * G
        # completions
        prompts = train.batch(step, args.prompts, args.seed)
        seeds = [derive(args.seed, step, i) for i in range(args.prompts)]
        rollout = sample(engine, prompts.ids, G, args.max_new_tokens, args.temperature, seeds)
        ids = rollout.ids
        batch = pad([p for p in prompts.ids for _ in range(G)], ids, tokenizer.pad_token_id, device)
        clock.append(time.perf_counter())
        columns, texts = prompts.repeat(G), tokenizer.batch_decode(ids, skip_special_tokens=True)
        mean_length = seen[0] / seen[1] if seen[1] else batch.lengths.mean().item()
        rewards = reward_functions.score(
            objectives,
            prompts=columns["prompt"],
            completions=texts,
            completion_ids=ids,
            mean_length=mean_length,
            columns=columns,
            answer_check=check,
        ).to(device)  # [B, K]
        seen = [seen[0] + batch.lengths.sum().item(), seen[1] + len(ids)]
        clock.append(time.perf_counter())
        old_logp = sampled_logp = token_logprobs_no_grad(
            policy, batch, args.temperature, args.micro_batch_tokens
        )  # [B, T]
        ref_logp = (
            token_logprobs_no_grad(reference, batch, args.temperature, args.micro_batch_tokens)
            if reference
            else old_logp
        )
        sampler_logp = right_pad(rollout.logprobs, old_logp)
        sampler = canary.check(step, rollout.version, old_logp, sampler_logp, batch.mask)
        token_weight = (
            batch.mask * (old_logp - sampler_logp).exp().clamp(max=args.tis_cap)
            if args.tis_cap
            else batch.mask
        )  # [B, T]
        grams = []  # inner products of the objectives' gradients, where the algorithm computes them

        # --- ALGO: advantages ---
        objective_advantages = torch.stack(
            [estimate_advantages(r, batch.lengths, G, args.estimator) for r in rewards.T], 1
        )  # [B, K]
        weights, norms, missing = torch.zeros(3, K)  # means over this step's mini-batches
        above = [
            name
            for name, reached in zip(
                objectives, (rewards.cpu() > reward_max).any(0).tolist(), strict=True
            )
            if reached
        ]
        require(
            not above,
            f"--reward-max is below a reward of {', '.join(above)}: give the best value each "
            "objective can have",
        )
        mean = rewards.mean(0).cpu()
        state["ema"] = (
            mean
            if state["ema"] is None
            else (1 - args.ema_tau) * state["ema"] + args.ema_tau * mean
        )

        # --- SHARED: update ---
        sums = dict.fromkeys(("loss/policy", "loss/kl", "clip/fraction", "grad/norm"), 0.0)
        drift, age, unclipped = torch.zeros(
            3, len(ids), device=device
        )  # see first_order_change; share of the tokens
        skipped, updates = 0, args.epochs * args.mini_batches
        for epoch in range(args.epochs):
            order = generator(args.seed, step, args.prompts + epoch)
            for made, rows in enumerate(mini_batches(args.prompts, G, args.mini_batches, order)):
                tokens = batch.mask[rows].sum()
                optimizer.zero_grad()
                # --- SHARED: one gradient per objective ---
                parameters = list(policy.parameters())
                gradients = [
                    [None] * len(parameters) for _ in range(K + (reference is not None))
                ]  # the KL term's stands last
                totals = torch.zeros(K + 2, device=device)
                for part in micro_batches(batch, rows, args.micro_batch_tokens):
                    micro = batch.select(part)
                    width = micro.mask.size(1)
                    logp = token_logprobs(policy, micro, args.temperature)
                    ratio = (logp - old_logp[part, :width]).clamp(-20, 20).exp()
                    # sums over the mini-batch's tokens: how it is divided into ranks and
                    # micro-batches changes nothing
                    terms = [
                        policy_loss(ratio, a, clip_low, clip_high, dual_clip)
                        for a in objective_advantages[part].T
                    ]  # K of [b, T]
                    terms = [(term * token_weight[part, :width]).sum() / tokens for term in terms]
                    kl = (kl_penalty(logp, ref_logp[part, :width]) * micro.mask).sum() / tokens
                    backward_each(
                        [*terms, args.kl_coef * kl][: len(gradients)], parameters, gradients
                    )
                    active = [
                        active_tokens(a, ratio, clip_low, clip_high)
                        for a in objective_advantages[part].T
                    ]
                    active = (
                        torch.stack(active).float().mean(0) * micro.mask
                    )  # share of the objectives for which a token counts
                    totals += torch.stack(
                        [*terms, kl, (micro.mask - active).sum() / tokens]
                    ).detach()
                    unclipped[part] += active.sum(1) / micro.mask.sum(1) / args.epochs
                    if epoch == 0:  # later ones train on the same completions again
                        drift[part] = (
                            (logp.detach() - sampled_logp[part, :width]) * micro.mask
                        ).sum(1)
                        age[part] = made
                totals = ranks.all_sum(totals).cpu()
                losses = totals[:K]
                sums["loss/kl"] += totals[K].item() / updates
                sums["clip/fraction"] += totals[K + 1].item() / updates
                gram = gram_matrix(gradients[:K])  # [K, K]; the KL term is no objective
                grams.append(gram)
                present = has_gradient(gram)  # [K]
                # --- ALGO: weigh the gradients ---
                mini_weights = state["weights"] / K  # of sum 1, so that KL counts as in linear.py
                if (
                    present.any()
                ):  # the others keep their weights: a gradient of 0 says nothing about their rate
                    current = (reward_max - state["ema"]).clamp(min=FLOOR)  # [K]
                    if len(state["first_losses"]) < FIRST:
                        state["first_losses"] = [*state["first_losses"], current]
                    initial = torch.stack(state["first_losses"]).mean(0)
                    own = state["weights"][present].mean()
                    inputs = (
                        gram.diagonal().sqrt()[present].float(),
                        current[present],
                        initial[present],
                    )
                    updated = own * gradnorm_step(
                        state["weights"][present] / own, *inputs, args.alpha, args.weight_lr
                    )
                    state["weights"] = state["weights"].masked_scatter(present, updated)
                # --- SHARED: weighted gradient ---
                combine(gradients, [*mini_weights.tolist(), 1.0][: len(gradients)], parameters)
                sums["loss/policy"] += (mini_weights @ losses).item() / updates
                weights, norms = (
                    weights + mini_weights / updates,
                    norms + gram.diagonal().sqrt() / updates,
                )
                missing = missing + ~present / updates
                # --- SHARED: optimizer step ---
                grad_norm = clip_gradients(policy.parameters(), args.max_grad_norm)
                if grad_norm < torch.inf:  # neither infinite nor NaN
                    optimizer.step()
                    failures = 0
                else:  # the policy keeps its last good weights
                    skipped, failures = skipped + 1, failures + 1
                sums["grad/norm"] += grad_norm / updates
        drift, age, unclipped = ranks.all_sum(
            torch.stack([drift, age, unclipped])
        )  # a rank fills in its own completions
        engine.sync(policy, step)
        clock.append(time.perf_counter())

        # --- ALGO: after the update ---
        weights = weights.to(device)
        advantages = objective_advantages @ weights
        extra = {
            "gradnorm/grad_norm": norms,
            "gradnorm/no_gradient": missing,
            "gradnorm/average_reward": state["ema"],
        }

        # --- SHARED: observe, evaluate, save ---
        clock.append(time.perf_counter())
        groups = rewards.view(-1, G, K)
        law, rate, nats = first_order_change(drift, age, advantages, rewards, G, updates)
        observed = {
            "reward": rewards.mean(0),
            "reward_std": rewards.std(0),
            "signal": (groups != groups[:, :1])
            .any(1)
            .float()
            .mean(0),  # share of prompts whose completions differ in this reward
            "weight": weights,
            "weight_share": weights / weights.sum(),
            "cov": within_prompt_covariance(advantages, rewards, G),
            "cov_active": within_prompt_covariance(
                advantages * unclipped, rewards, G
            ),  # with what clipping leaves
            "law": law,
            **extra,
        }
        row = {
            f"{key}/{name}": float(v)
            for key, values in observed.items()
            for name, v in zip(objectives, values, strict=True)
        }
        truncated = sum(
            len(i) == args.max_new_tokens and i[-1] not in engine.stop_ids for i in ids
        ) / len(ids)
        row |= {
            "length/mean": batch.lengths.mean().item(),
            "length/threshold": mean_length,
            "length/truncated": truncated,
        }
        row |= (
            sums
            | sampler
            | measured(device)
            | {"grad/skipped": skipped, "lr": optimizer.param_groups[0]["lr"]}
        )
        row |= (
            {} if reference else {"loss/kl": torch.nan}
        )  # what was summed up is from the step's beginning, not from the run's
        row |= {"law/rate": rate.item(), "law/nats": nats.item()}
        row |= {
            f"time/{key}": b - a
            for key, a, b in zip(
                ("rollout", "reward", "update", "weights"), clock, clock[1:], strict=False
            )
        }
        samples = []
        if step % args.eval_every == 0 or step == args.steps:
            metrics, samples = evaluate(engine, yardstick, *evaluation)
            row |= metrics
        statistics = {
            "rewards": rewards,
            "advantages": advantages,
            "lengths": batch.lengths,
            "drift": drift,
            "age": age,
        }
        tracker.keep(step, statistics | ({"gram": torch.stack(grams)} if grams else {}))
        tracker.log(step, row, samples)
        progress.set_postfix(
            {name: f"{row[f'reward/{name}']:.2f}" for name in objectives}
            | {"length": f"{row['length/mean']:.0f}"}
        )
        if step % args.checkpoint_every == 0 or step == args.steps or failures >= MAX_FAILURES:
            save_checkpoint(
                folder,
                step,
                policy,
                optimizer,
                {"algorithm": state, "seen": seen, "yardstick": yardstick},
            )
        if failures >= MAX_FAILURES:
            raise UserError(
                f"step {step}: {failures} updates in a row had a loss or gradient that is not "
                "finite and were skipped; lower --lr "
                f"(now {args.lr}). The last good state is in {folder / 'checkpoints'}"
            )

    # --- SHARED: close ---
    export(policy, tokenizer, folder / "model", compute)
    tracker.close()
    ranks.stop()


if __name__ == "__main__":
    with plain_errors():
        main(parse(Args, SCRIPT))
