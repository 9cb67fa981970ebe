"""Counterfactual weights: what each controller would have chosen on a run's batches, from the statistics that the run kept.

A controller watches the completions that the run sampled and moves its own weights, step by step, as if it had been in charge of them;
the policy stays the run's. So this says how controllers read the same evidence, not where they would have led the model.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

from common.runs import Run, load_statistics
from common.errors import UserError
from common.grads import has_gradient


@dataclass(frozen=True)
class Step:
    """One training step as the run kept it. B completions of which a prompt's `group_size` stand in adjacent rows, K objectives."""

    rewards: Tensor  # [B, K]
    lengths: Tensor  # [B] tokens
    next_mean: Tensor | None  # [K] mean rewards of the following step, None after the last
    grams: list[Tensor]  # inner products of the objectives' gradients [K, K], one per mini-batch; see `estimated`
    estimated: bool  # grams are the rewards' covariance within prompts: the Gram matrix of natural gradients, up to a common factor
    group_size: int
    estimator: str
    lr: float
    drift: Tensor  # [B] nats, and [B] updates: what the run's own step did; see common/observe.py
    age: Tensor
    updates: int  # in a step

    def each_advantage(self, script: ModuleType, estimator: str = "") -> Tensor:
        """The advantages of every objective by itself, [B, K], by a script's own function; with the run's estimator where none is given."""
        how = self.lengths, self.group_size, estimator or self.estimator
        return torch.stack([script.estimate_advantages(r, *how) for r in self.rewards.T], 1)


Chosen = Iterator[Tensor | None]  # weights [K] of each step, on their own scale; None where the controller needs what was not kept
Controller = Callable[[list[Step], ModuleType, SimpleNamespace], Chosen]


def counterfactual_weights(run: Run, scripts: dict[str, ModuleType]) -> tuple[list[int], dict[str, list[Tensor | None]], bool]:
    """The steps of a run, the share of the weights [K] that each controller would have given at each of them, and whether the Gram
    matrices are estimates (the run kept none, so MGDA and Nash-MTL are given the rewards' covariance within prompts).

    scripts: the modules of algos/ by their name; their own functions are used, with the run's flags for the run's own algorithm and
    the defaults, or its preset's values, for the others. Raises UserError if the run kept no statistics.
    """
    steps, numbers = _read(run)
    chosen: dict[str, list[Tensor | None]] = {}
    for name, script in scripts.items():
        if name not in CONTROLLERS:
            continue
        flags = vars(script.Args()) | (dict(getattr(script.Args, "PRESET", ())) if run.args.get("preset") else {})
        flags |= {key: value for key, value in run.args.items() if key in flags} if run.args.get("script") == name else {}
        flags["objectives"] = run.objectives
        found = CONTROLLERS[name](steps, script, SimpleNamespace(**flags))
        chosen[name] = [None if weights is None else (weights / weights.sum()).float() for weights in found]
    return numbers, chosen, _estimated(steps)


def _read(run: Run) -> tuple[list[Step], list[int]]:
    lines = load_statistics(run)
    rates = dict(zip(*run.series("lr"), strict=True))
    rewards = [torch.tensor(line["rewards"], dtype=torch.float32) for line in lines]
    updates = run.args.get("mini_batches", 1) * run.args.get("epochs", 1)
    steps = []
    for i, line in enumerate(lines):
        grams = [torch.tensor(gram, dtype=torch.float64) for gram in line.get("gram", [])]
        grams *= updates if len(grams) == 1 else 1  # of the whole batch, as dynamic weighting takes it: for every update the same
        groups = rewards[i].double().view(-1, run.args["completions"], rewards[i].size(1))
        centred = (groups - groups.mean(1, keepdim=True)).flatten(0, 1)
        steps.append(
            Step(
                rewards[i],
                torch.tensor(line["lengths"], dtype=torch.float32),
                rewards[i + 1].mean(0) if i + 1 < len(rewards) else None,
                grams or [_of_whitened(centred)],
                not grams,
                run.args["completions"],
                run.args["estimator"],
                rates.get(line["step"], run.args["lr"]),
                torch.tensor([math.nan if moved is None else moved for moved in line.get("drift", [])]),  # null: not finite
                torch.tensor(line.get("age", [])),
                updates,
            )
        )
    if not steps:
        raise UserError(f"{run.path}: statistics.jsonl has no step yet; look again once the run has taken its first")
    return steps, [line["step"] for line in lines]


def _of_whitened(centred: Tensor) -> Tensor:
    """Covariance within prompts of rewards scaled to unit variance, as the gradient family's advantages are. centred [B,K] -> [K,K]."""
    covariance = centred.T @ centred / len(centred)
    scale = covariance.diagonal().clamp(min=1e-12).rsqrt()
    return scale[:, None] * covariance * scale


def _estimated(steps: list[Step]) -> bool:
    """Whether the run took no gradients apart; a single step of one that did may lack them, where they were not finite."""
    return all(step.estimated for step in steps)


def _unknown(steps: list[Step]) -> Chosen:
    yield from (None for _ in steps)


# --- the controllers, each as its script's loop has it ---


def _linear(steps: list[Step], script: ModuleType, args: SimpleNamespace) -> Chosen:
    weights = _start(args.weights, steps)
    yield from (weights for _ in steps)


def _rvpo(steps: list[Step], script: ModuleType, args: SimpleNamespace) -> Chosen:
    """How much each objective decides on average."""
    weights = _start(args.weights, steps)
    yield from (script.deciding_shares(step.each_advantage(script, "grpo"), weights, args.kappa) for step in steps)


def _sa_mrpo(steps: list[Step], script: ModuleType, args: SimpleNamespace) -> Chosen:
    prescribed, K = _start(args.weights, steps), steps[0].rewards.size(1)
    lowest, highest = torch.tensor(args.lowest or [0.0] * K), torch.tensor(args.highest or [1.0] * K)
    yield from (script.saturation_weights(prescribed, step.rewards, lowest, highest, args.gamma) for step in steps)


def _ctwa(steps: list[Step], script: ModuleType, args: SimpleNamespace) -> Chosen:
    """W is taken before the update, where the ratio is 1 and it equals the advantage: the run has no log-probabilities of ours."""
    K = steps[0].rewards.size(1)
    targets, caps = torch.tensor(args.cov_targets or [0.15] + [0.08] * (K - 1)), torch.tensor(args.obj_caps or [torch.inf] * K)
    log_weights, ema = _start(args.weights, steps).log(), None
    for step in steps:
        weights = log_weights.softmax(0)  # without e^log_weights, which a long run can drive out of float32
        yield weights
        advantages = script.estimate_advantages(step.rewards @ weights, step.lengths, step.group_size, step.estimator)
        if args.outlier_factor > 0:
            advantages = script.drop_outliers(advantages, step.group_size, args.outlier_factor)
        covariance = script.within_prompt_covariance(advantages, step.rewards, step.group_size)
        raised, ema = script.update_log_weights(log_weights, ema, covariance, targets, args.weight_lr, args.ema_tau)
        log_weights = torch.where(step.rewards.mean(0) >= caps, log_weights, raised)


def _dynamic_weighting(steps: list[Step], script: ModuleType, args: SimpleNamespace) -> Chosen:
    """Its steps depend on the gradients' length, which covariances do not tell."""
    weights = _start(args.weights, steps)
    if _estimated(steps):
        yield from _unknown(steps)
        return
    for step in steps:
        if not step.estimated:
            influence = torch.stack(step.grams).mean(0).sum(1).float()
            weights = script.update_weights(weights, influence, step.lr, args.mu).clamp(min=args.weight_floor)
            weights = weights / weights.sum()
        yield weights


def _lagrangian(steps: list[Step], script: ModuleType, args: SimpleNamespace) -> Chosen:
    K = steps[0].rewards.size(1)
    primary = args.objectives.index(args.primary) if args.primary else 0
    others = [k for k in range(K) if k != primary]
    targets, multipliers = torch.tensor(args.targets or [0.9] * (K - 1)), torch.tensor(args.multipliers or [0.0] * (K - 1))
    for step in steps:
        multipliers = script.dual_step(multipliers, step.rewards.mean(0)[others], targets, args.dual_lr).clamp(max=args.max_multiplier)
        yield script.lagrangian_weights(multipliers, primary)


def _tchebycheff(steps: list[Step], script: ModuleType, args: SimpleNamespace) -> Chosen:
    """The classical variant scores completions; its weights are the preference."""
    preference = _start(args.preference, steps)
    log_weights, ideal, ema = preference.log(), torch.full_like(preference, -torch.inf), None
    for step in steps:
        mean, ideal = step.rewards.mean(0), torch.maximum(ideal, step.rewards.amax(0))
        ema = mean if ema is None else (1 - args.ema_tau) * ema + args.ema_tau * mean
        yield {
            "mirror-descent": log_weights.softmax(0),
            "smooth": script.smooth_weights(ema, preference, ideal, args.smoothing),
            "classical": preference,
        }[args.variant]
        log_weights = script.mirror_descent_step(log_weights, preference, mean, ideal, args.weight_lr).log_softmax(0)
        log_weights = log_weights.clamp(min=log_weights.max() - math.log(args.max_ratio))


def _pama(steps: list[Step], script: ModuleType, args: SimpleNamespace) -> Chosen:
    """No weights: the share of the credited completions in which an objective decides."""
    yield from (script.binding_shares(step.each_advantage(script).clamp(min=0)) for step in steps)


def _famo(steps: list[Step], script: ModuleType, args: SimpleNamespace) -> Chosen:
    """The gaps after a step are those of the next batch: the run has no log-probabilities after its update. A gap needs a reward_max that
    no reward exceeds."""
    top = _top(args, steps)
    if top is None:
        yield from _unknown(steps)
        return
    K = steps[0].rewards.size(1)
    logits, m, v, t = *torch.zeros(3, K, dtype=torch.float64), 0
    for step in steps:
        gaps = (top - step.rewards).double().mean(0) + script.FLOOR
        yield script.famo_weights(logits, gaps)
        if step.next_mean is not None:
            after = (top - step.next_mean).double() + script.FLOOR
            direction = script.famo_direction(logits, gaps, after) + args.gamma * logits
            logits, m, v, t = script.adam_step(logits, direction, m, v, t, args.weight_lr)


def _mgda(steps: list[Step], script: ModuleType, args: SimpleNamespace) -> Chosen:
    def weigh(gram: Tensor) -> Tensor:
        gram = script.merge_equal(gram)
        scale = gram.diagonal().rsqrt() if args.normalize else torch.ones(len(gram), dtype=gram.dtype)
        found = scale * script.min_norm_weights(scale[:, None] * gram * scale)
        return found / found.sum()

    yield from (_mean_over(step.grams, weigh) for step in steps)


def _nash_mtl(steps: list[Step], script: ModuleType, args: SimpleNamespace) -> Chosen:
    def weigh(gram: Tensor) -> Tensor:
        alpha = script.nash_weights(gram + args.ridge * gram.diagonal().diag())
        return alpha * gram.diagonal().sqrt().mean() / len(gram) ** 0.5

    yield from (_mean_over(step.grams, weigh) for step in steps)


def _gradnorm(steps: list[Step], script: ModuleType, args: SimpleNamespace) -> Chosen:
    """Its steps depend on the gradients' length, which covariances do not tell; gaps as with FAMO."""
    top = _top(args, steps)
    if _estimated(steps) or top is None:
        yield from _unknown(steps)
        return
    weights, ema, first = torch.ones(steps[0].rewards.size(1)), None, []
    for step in steps:
        mean, used = step.rewards.mean(0), []
        ema = mean if ema is None else (1 - args.ema_tau) * ema + args.ema_tau * mean
        current = (top - ema).clamp(min=script.FLOOR)
        for gram in step.grams:
            used.append(weights)
            present = has_gradient(gram)
            if step.estimated or not present.any():
                continue
            first = [*first, current][: script.FIRST]
            own, initial = weights[present].mean(), torch.stack(first).mean(0)
            inputs = gram.diagonal().sqrt()[present].float(), current[present], initial[present]
            updated = own * script.gradnorm_step(weights[present] / own, *inputs, args.alpha, args.weight_lr)
            weights = weights.masked_scatter(present, updated)
        yield torch.stack(used).mean(0)


def _ratchet(steps: list[Step], script: ModuleType, args: SimpleNamespace) -> Chosen:
    """It answers the run's own moves; the run's advantages do not enter these."""
    preference = torch.tensor(args.weights or [1.0] * steps[0].rewards.size(1))
    preference, drawdown = preference / preference.mean(), torch.zeros_like(preference)
    most, found = args.max_multiplier / args.ki if args.ki else torch.inf, torch.zeros_like(preference)
    for step in steps:
        if not (step.age > 0).any():
            yield from _unknown(steps)
            return
        yield preference + found
        change, alignment = script.what_moved(step.drift, step.age, step.rewards, step.group_size, step.updates)
        drawdown = script.update_drawdown(drawdown, change, args.release).clamp(max=most)
        found = script.multipliers(drawdown, alignment, args.ki, args.kp, args.max_multiplier)


CONTROLLERS: dict[str, Controller] = {
    "ratchet": _ratchet,
    "linear": _linear,
    "ctwa": _ctwa,
    "tchebycheff": _tchebycheff,
    "lagrangian": _lagrangian,
    "famo": _famo,
    "pama": _pama,
    "dynamic_weighting": _dynamic_weighting,
    "gdpo": _linear,
    "gated": _linear,
    "rvpo": _rvpo,
    "sa_mrpo": _sa_mrpo,
    "hypervolume": _linear,  # it moves the length of the steps, not the weights
    "mgda": _mgda,
    "gradnorm": _gradnorm,
    "nash_mtl": _nash_mtl,
}


def _top(args: SimpleNamespace, steps: list[Step]) -> Tensor | None:
    """The best reward of each objective, [K], as its flag says; None where the run has a higher one."""
    top = torch.tensor(args.reward_max or [1.0] * steps[0].rewards.size(1))
    return None if any(bool((step.rewards > top).any()) for step in steps) else top


def _start(given: list[float], steps: list[Step]) -> Tensor:
    weights = torch.tensor(given or [1.0] * steps[0].rewards.size(1))
    return weights / weights.sum()


def _mean_over(grams: list[Tensor], weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean over the mini-batches of the weights of those objectives that have a gradient there; equal where none has."""
    total = torch.zeros(len(grams[0]))
    for gram in grams:
        present = has_gradient(gram)
        weights = torch.full_like(total, 1 / len(total))
        if present.any():
            weights = torch.zeros_like(total).masked_scatter(present, weigh(gram[present][:, present]).float())
        total += weights / len(grams)
    return total
