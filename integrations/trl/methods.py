"""The methods, each with the defaults, the state and the mathematics of its script in algos/.

A weight rule sets the trainer's reward weights and leaves the advantages to TRL. An advantage rule computes the advantages itself, because
they are no weighted sum of the rewards. Arguments are the script's flags, which its --help and its page in docs/algos/ explain; numbers
per objective are in the order of the trainer's reward functions.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .errors import require
from .generation import Generation
from .scripts import mathematics

Numbers = Sequence[float]


class Method:
    """What `multi_objective` drives, in this order: `start` once; for every generation `weigh`, `advantages`, `learn`; and, if it wants to
    look at the updated policy, `measure` on every process and `updated` on what all have measured.

    Everything is computed from what all processes have, on the CPU in float64, so the state is the same on all of them.
    """

    LOOK: Literal["", "same", "fresh"] = ""
    """what of the updated policy it looks at: nothing; the completions that were trained on, by a forward pass (and one more before the
    update where TRL has none); or those not yet trained on, as the later updates of a generation come to them, at no cost"""
    SCALES: tuple = (True, "group", "batch", False, "none")
    """the values of `scale_rewards` with which its mathematics holds"""

    def start(self, objectives: list[str]) -> None:
        """Check the arguments against the objectives and set `state`, tensors by name. Raises SettingsError naming the argument."""
        self.objectives, self.K = objectives, len(objectives)
        self.state: dict[str, Tensor] = {}
        self.log: dict[str, Tensor] = {}  # [K] each, logged as <name>/<objective>
        self.begin()

    def begin(self) -> None:
        """The method's own part of `start`."""

    def weigh(self, generation: Generation) -> Tensor:
        """The weights [K] that the trainer sums these rewards with; also what is logged as the weights of a method that has others."""
        raise NotImplementedError

    def advantages(self, generation: Generation) -> Tensor | None:
        """[B], NaN for a completion that none can be given to; None leaves TRL's."""
        return None

    def learn(self, generation: Generation, advantages: Tensor) -> None:
        """Before the update, with the advantages [B] of all processes."""

    def measure(self, log_ratio: Tensor, mask: Tensor, advantages: Tensor, clip: tuple[float, float]) -> Tensor:
        """One number per completion of this process from the change of its tokens' log-probabilities. log_ratio, mask [b,T],
        advantages [b], clip low and high -> [b]."""
        raise NotImplementedError

    def updated(self, generation: Generation, measured: Tensor, age: Tensor, updates: int) -> None:
        """After the update. measured [B]; age [B]: updates that the policy had made when it was measured, of `updates` in all."""

    def numbers(self, name: str, default: float | Numbers, of: list[str] | None = None) -> Tensor:
        """The argument `name`, one number for each of `of` (the objectives), or its default where it was not given."""
        of, values = self.objectives if of is None else of, list(getattr(self, name))
        values = values or ([default] * len(of) if isinstance(default, int | float) else list(default))
        fits = len(values) == len(of)
        require(fits, f"{self.said(name)} has {len(values)} numbers for {len(of)} objectives, {', '.join(of)}: give one for each")
        return torch.tensor(values, dtype=torch.float64)

    def preferred(self, name: str = "weights", zero: bool = True) -> Tensor:
        """The argument `name` scaled to sum 1. zero: whether an objective may have none."""
        given = self.numbers(name, 1 / self.K)
        usable = (given.min() >= 0 if zero else given.min() > 0) and 0 < given.sum() < torch.inf
        require(bool(usable), f"{self.said(name)} must be finite and {'not negative, nor all 0' if zero else 'positive'}")
        return given / given.sum()

    def inside(self, name: str, low: float, high: float = math.inf, open_low: bool = False) -> None:
        """Raise SettingsError unless a number is between two others."""
        value = getattr(self, name)
        fits = (low < value if open_low else low <= value) and value <= high
        bounds = f"{'above' if open_low else 'at least'} {low:g}" + (f" and at most {high:g}" if high < math.inf else "")
        require(fits and math.isfinite(value), f"{self.said(name)} must be finite, {bounds}")

    def said(self, name: str) -> str:
        return f"{type(self).__name__}({name}={getattr(self, name)!r})"


# --- weight rules ---


class Linear(Method):
    """Fixed weights, scaled to sum 1. algos/linear.py."""

    def __init__(self, weights: Numbers = ()) -> None:
        self.weights = weights

    def begin(self) -> None:
        self.share = self.preferred()

    def weigh(self, generation: Generation) -> Tensor:
        return self.share


class CTWA(Method):
    """Raise the weight of every objective whose covariance with the update is under its target. algos/ctwa.py; arXiv 2602.06869.

    The script takes its covariances after the update, with W = mean over tokens of advantage * ratio, where the clip does not act. Here
    they are taken before it, where the ratio is 1 and W is the advantage: that costs nothing. `after_update=True` is the script's rule: a
    forward pass over the completions after the last update of a generation and, where TRL keeps no log-probabilities of the policy that
    sampled them, one before the first.
    """

    SCALES = (True, "group", "batch")  # targets are covariances with advantages of unit variance

    def __init__(
        self, weights: Numbers = (), cov_targets: Numbers = (), weight_lr: float = 1.0, ema_tau: float = 0.1, after_update: bool = False
    ) -> None:
        self.weights, self.cov_targets, self.weight_lr, self.ema_tau = weights, cov_targets, weight_lr, ema_tau
        self.after_update, self.LOOK = after_update, "same" if after_update else ""

    def begin(self) -> None:
        self.script = mathematics("ctwa")
        self.targets = self.numbers("cov_targets", [0.15] + [0.08] * (self.K - 1))
        self.inside("weight_lr", 0)
        self.inside("ema_tau", 0, 1, open_low=True)
        self.state = {"log_weights": self.preferred(zero=False).log(), "ema": torch.full_like(self.targets, torch.nan)}

    def weigh(self, generation: Generation) -> Tensor:
        return self.state["log_weights"].softmax(0)  # only their ratios matter to the advantages

    def learn(self, generation: Generation, advantages: Tensor) -> None:
        if not self.after_update:
            self.updated(generation, torch.where(generation.lengths > 0, advantages, 0.0), torch.ones_like(advantages), 1)

    def measure(self, log_ratio: Tensor, mask: Tensor, advantages: Tensor, clip: tuple[float, float]) -> Tensor:
        weight = self.script.completion_weights(advantages, log_ratio.clamp(-20, 20).exp(), mask, mask.sum(1), *clip)
        return weight.nan_to_num(0.0)  # 0 / 0: a completion without tokens in the loss moves nothing

    def updated(self, generation: Generation, measured: Tensor, age: Tensor, updates: int) -> None:
        log_weights, ema = self.state["log_weights"], self.state["ema"]
        covariance = generation.over_prompts(self.script.within_prompt_covariance, measured)
        raised, average = self.script.update_log_weights(
            log_weights, torch.where(ema.isnan(), covariance, ema), covariance, self.targets, self.weight_lr, self.ema_tau
        )
        seen = ~covariance.isnan()  # an objective that no completion has keeps what it had
        self.state = {"log_weights": torch.where(seen, raised, log_weights), "ema": torch.where(seen, average, ema)}
        self.log = {"ctwa/cov": covariance, "ctwa/ema": self.state["ema"], "ctwa/target": self.targets}


class Lagrangian(Method):
    """Maximise one objective subject to a floor under the mean reward of each other one. algos/lagrangian.py."""

    def __init__(
        self, primary: str = "", targets: Numbers = (), dual_lr: float = 0.08, multipliers: Numbers = (), max_multiplier: float = 5.0
    ) -> None:
        """primary: name of the objective to maximise, by default the first; targets and multipliers are of the others, in their order."""
        self.primary, self.targets, self.dual_lr = primary, targets, dual_lr
        self.multipliers, self.max_multiplier = multipliers, max_multiplier

    def begin(self) -> None:
        self.script, known = mathematics("lagrangian"), self.objectives
        require(self.primary in ("", *known), f"{self.said('primary')} is no reward function; there are {', '.join(known)}")
        self.main = known.index(self.primary) if self.primary else 0
        self.others = [k for k in range(self.K) if k != self.main]
        of = [known[k] for k in self.others]
        self.floors, multipliers = self.numbers("targets", 0.9, of), self.numbers("multipliers", 0.0, of)
        self.inside("dual_lr", 0)
        self.inside("max_multiplier", 0, open_low=True)
        require(bool(self.floors.isfinite().all()), f"{self.said('targets')} must be finite")
        fits = bool((multipliers >= 0).all() and (multipliers <= self.max_multiplier).all())
        require(fits, f"{self.said('multipliers')} must be between 0 and max_multiplier={self.max_multiplier}")
        self.state = {"multipliers": multipliers}

    def weigh(self, generation: Generation) -> Tensor:
        mean = generation.mean_rewards()[self.others]
        mean = torch.where(mean.isnan(), self.floors, mean)  # an objective that no completion has keeps its multiplier
        wanted = self.script.dual_step(self.state["multipliers"], mean, self.floors, self.dual_lr)
        self.state = {"multipliers": wanted.clamp(max=self.max_multiplier)}
        self.log = {"lagrangian/multiplier": self.script.with_primary(self.state["multipliers"], self.main, 1.0)}
        return self.script.lagrangian_weights(self.state["multipliers"], self.main)


class _Distance(Method):
    """What the variants of algos/tchebycheff.py share: a preference and, as the ideal point, the best reward of training so far."""

    def begin(self) -> None:
        self.script, self.share = mathematics("tchebycheff"), self.preferred("preference", zero=False)
        self.state = {"ideal": torch.full_like(self.share, torch.nan)}

    def improve_ideal(self, generation: Generation) -> Tensor:
        self.state["ideal"] = torch.fmax(self.state["ideal"], generation.rewards.nan_to_num(-torch.inf).amax(0))
        self.state["ideal"] = self.state["ideal"].masked_fill(self.state["ideal"] == -torch.inf, torch.nan)
        self.log = {"tchebycheff/ideal": self.state["ideal"]}
        return self.state["ideal"]


class MirrorDescent(_Distance):
    """Weights that add up every objective's distance from its ideal. algos/tchebycheff.py --variant mirror-descent."""

    def __init__(self, preference: Numbers = (), weight_lr: float = 1.0, max_ratio: float = 20.0) -> None:
        self.preference, self.weight_lr, self.max_ratio = preference, weight_lr, max_ratio

    def begin(self) -> None:
        super().begin()
        self.inside("weight_lr", 0)
        self.inside("max_ratio", 1)
        self.state["log_weights"] = self.share.log()

    def weigh(self, generation: Generation) -> Tensor:
        ideal, mean, before = self.improve_ideal(generation), generation.mean_rewards(), self.state["log_weights"]
        mean = torch.where(mean.isnan(), ideal, mean).nan_to_num(0.0)  # an objective that no completion has is at no distance
        moved = self.script.mirror_descent_step(before, self.share, mean, ideal.nan_to_num(0.0), self.weight_lr).log_softmax(0)
        self.state["log_weights"] = moved.clamp(min=moved.max() - math.log(self.max_ratio))  # for the next generation
        return before.softmax(0)


class SmoothTchebycheff(_Distance):
    """Weights that follow every objective's distance from its ideal at the moment. algos/tchebycheff.py --variant smooth."""

    def __init__(self, preference: Numbers = (), smoothing: float = 0.05, ema_tau: float = 0.3) -> None:
        self.preference, self.smoothing, self.ema_tau = preference, smoothing, ema_tau

    def begin(self) -> None:
        super().begin()
        self.inside("smoothing", 0, open_low=True)
        self.inside("ema_tau", 0, 1, open_low=True)
        self.state["ema"] = torch.full_like(self.share, torch.nan)

    def weigh(self, generation: Generation) -> Tensor:
        ideal, mean, ema = self.improve_ideal(generation), generation.mean_rewards(), self.state["ema"]
        average = torch.where(ema.isnan(), mean, (1 - self.ema_tau) * ema + self.ema_tau * mean)
        self.state["ema"] = average = torch.where(mean.isnan(), ema, average)
        # an objective that no completion ever had is at no distance
        return self.script.smooth_weights(average.nan_to_num(0.0), self.share, ideal.nan_to_num(0.0), self.smoothing)


class FAMO(Method):
    """Weights that make all gaps fall at the same relative rate. algos/famo.py; Liu et al., 2023.

    As in the script, the gaps after the update are those of the same completions, reweighted by how their probability has grown: a forward
    pass after the last update of a generation and, where TRL keeps no log-probabilities of the policy that sampled them, one before the
    first. A generation that lacks an objective altogether teaches nothing.
    """

    LOOK = "same"

    def __init__(self, reward_max: Numbers = (), weight_lr: float = 0.025, gamma: float = 1e-5) -> None:
        self.reward_max, self.weight_lr, self.gamma = reward_max, weight_lr, gamma

    def begin(self) -> None:
        self.script, self.best = mathematics("famo"), self.numbers("reward_max", 1.0)
        self.inside("weight_lr", 0)
        self.inside("gamma", 0)
        logits, m, v = torch.zeros(3, self.K, dtype=torch.float64)
        self.state = {"logits": logits, "m": m, "v": v, "t": torch.zeros((), dtype=torch.float64)}

    def weigh(self, generation: Generation) -> Tensor:
        above = (generation.rewards > self.best).any(0).tolist()
        names = [name for name, beyond in zip(self.objectives, above, strict=True) if beyond]
        require(
            not names, f"{self.said('reward_max')} is below a reward of {', '.join(names)}: give the best value each objective can have"
        )
        gaps = self.gaps(generation, torch.zeros_like(generation.lengths))
        # the weight of an objective that no completion has is of no effect
        return self.script.famo_weights(self.state["logits"], torch.where(gaps.isnan(), gaps.nanmean(), gaps))

    def gaps(self, generation: Generation, log_ratio: Tensor) -> Tensor:
        """[K], under the policy by which the completions [B] have become more probable by so many nats."""
        return self.best - generation.over_prompts(self._reweighted, log_ratio) + self.script.FLOOR

    def _reweighted(self, log_ratio: Tensor, rewards: Tensor, group_size: int) -> Tensor:
        return self.script.reweighted_rewards(rewards, log_ratio, group_size)

    def measure(self, log_ratio: Tensor, mask: Tensor, advantages: Tensor, clip: tuple[float, float]) -> Tensor:
        return (log_ratio.clamp(-20, 20) * mask).sum(1)

    def updated(self, generation: Generation, measured: Tensor, age: Tensor, updates: int) -> None:
        before, after = self.gaps(generation, torch.zeros_like(measured)), self.gaps(generation, measured)
        self.log = {"famo/gap": before, "famo/improvement": before.log() - after.log()}
        if before.isnan().any():
            return
        logits, m, v, t = (self.state[name] for name in ("logits", "m", "v", "t"))
        direction = self.script.famo_direction(logits, before, after) + self.gamma * logits
        logits, m, v, t = self.script.adam_step(logits, direction, m, v, int(t), self.weight_lr)
        self.state = {"logits": logits, "m": m, "v": v, "t": torch.tensor(float(t), dtype=torch.float64)}


# --- advantage rules ---


class AdvantageRule(Method):
    """Replaces TRL's advantages, which other settings of `scale_rewards` would change to no effect."""

    SCALES = (True, "group")


class PAMA(AdvantageRule):
    """A completion is worth what the objective it serves least is worth, and never less than 0. algos/pama.py."""

    def begin(self) -> None:
        self.script = mathematics("pama")

    def positive(self, generation: Generation) -> Tensor:
        each = generation.estimate_each(self.script).clamp(min=0)
        return each.masked_fill(generation.missing, torch.inf)  # what does not apply is never the least

    def weigh(self, generation: Generation) -> Tensor:
        rows = ~generation.missing.all(1)
        return (
            self.script.binding_shares(self.positive(generation)[rows])
            if rows.any()
            else torch.full_like(generation.rewards[0], 1 / self.K)
        )

    def advantages(self, generation: Generation) -> Tensor:
        return self.script.pareto_scalar(self.positive(generation)).masked_fill(generation.missing.all(1), torch.nan)


class Tchebycheff(_Distance, AdvantageRule):
    """A completion's score is -max_k p_k (z_k - r_k). algos/tchebycheff.py --variant classical."""

    def __init__(self, preference: Numbers = ()) -> None:
        self.preference = preference

    def weigh(self, generation: Generation) -> Tensor:
        self.improve_ideal(generation)
        return self.share

    def advantages(self, generation: Generation) -> Tensor:
        rewards = generation.rewards.nan_to_num(torch.inf)  # what does not apply is never the furthest
        scores = self.script.tchebycheff(rewards, self.share, self.state["ideal"].nan_to_num(0.0))
        return generation.estimate(self.script, scores.masked_fill(scores == torch.inf, torch.nan), "grpo")


class Gated(AdvantageRule):
    """The first objective always counts, the others only in completions that earn it. algos/gated.py.

    A completion without the first reward is left out; another reward that it lacks counts 0, as in TRL's sum.
    """

    def __init__(self, weights: Numbers = (), gate: float = 0.5) -> None:
        self.weights, self.gate = weights, gate

    def begin(self) -> None:
        self.script, self.share = mathematics("gated"), self.preferred()
        require(math.isfinite(self.gate), f"{self.said('gate')} must be finite")

    def weigh(self, generation: Generation) -> Tensor:
        return self.share

    def advantages(self, generation: Generation) -> Tensor:
        scores = self.script.gated_scores(generation.rewards.nan_to_num(0.0), self.share, self.gate)
        return generation.estimate(self.script, scores.masked_fill(generation.missing[:, 0], torch.nan), "grpo")


class GDPO(AdvantageRule):
    """Every reward normalised within its prompt before they are summed. algos/gdpo.py; arXiv 2601.05242.

    TRL has it as multi_objective_aggregation="normalize_then_sum"; the last whitening there counts every completion once, here every token.
    """

    def __init__(self, weights: Numbers = ()) -> None:
        self.weights = weights

    def begin(self) -> None:
        self.script, self.share = mathematics("gdpo"), self.preferred()

    def weigh(self, generation: Generation) -> Tensor:
        return self.share

    def advantages(self, generation: Generation) -> Tensor:
        return _sum_of_normalised(self.script, generation, self.weigh(generation), "reinforce")


class SAMRPO(AdvantageRule):
    """GDPO with less weight on what is nearly reached. algos/sa_mrpo.py; arXiv 2608.16072."""

    def __init__(self, weights: Numbers = (), gamma: float = 1.0, lowest: Numbers = (), highest: Numbers = ()) -> None:
        self.weights, self.gamma, self.lowest, self.highest = weights, gamma, lowest, highest

    def begin(self) -> None:
        self.script, self.share = mathematics("sa_mrpo"), self.preferred(zero=False)
        self.inside("gamma", 0)
        self.low, self.high = self.numbers("lowest", 0.0), self.numbers("highest", 1.0)
        require(bool((self.high > self.low).all()), f"{self.said('highest')} must be above lowest={self.low.tolist()} for each objective")

    def weigh(self, generation: Generation) -> Tensor:
        above = bool((generation.rewards > self.high).any())
        require(not above, f"{self.said('highest')} is below a reward: give the best value each objective can have")
        if not generation.missing.any():
            return self.script.saturation_weights(self.share, generation.rewards, self.low, self.high, self.gamma)
        mean = generation.mean_rewards()
        mean = torch.where(mean.isnan(), self.high, mean)  # nothing is left to gain where no completion has the reward
        return self.script.saturation_weights(self.share, mean[None], self.low, self.high, self.gamma)

    def advantages(self, generation: Generation) -> Tensor:
        return _sum_of_normalised(self.script, generation, self.weigh(generation), "reinforce")


class RVPO(AdvantageRule):
    """The soft minimum of the normalised rewards in place of their mean. algos/rvpo.py; arXiv 2605.05750."""

    def __init__(self, weights: Numbers = (), kappa: float = 1.0) -> None:
        self.weights, self.kappa = weights, kappa

    def begin(self) -> None:
        self.script, self.share = mathematics("rvpo"), self.preferred(zero=False)
        self.inside("kappa", 0, open_low=True)

    def parts(self, generation: Generation) -> tuple[Tensor, Tensor]:
        """Normalised rewards [B, K] and the weights of those that a completion has: [K], or [B, K] where some lack one."""
        normalised = generation.estimate_each(self.script)
        if not generation.missing.any():
            return normalised, self.share
        present = self.share * ~generation.missing
        return normalised.nan_to_num(0.0), present / present.sum(1, keepdim=True)

    def weigh(self, generation: Generation) -> Tensor:
        rows = ~generation.missing.all(1)
        normalised, weights = self.parts(generation)
        if not rows.any():
            return self.share
        return self.script.deciding_shares(normalised[rows], weights[rows] if weights.dim() > 1 else weights, self.kappa)

    def advantages(self, generation: Generation) -> Tensor:
        normalised, weights = self.parts(generation)
        return generation.estimate(self.script, self.script.soft_minimum(normalised, weights, self.kappa), "reinforce")


class Ratchet(AdvantageRule):
    """The weighted sum, and for every objective that the last updates moved backwards a multiplier that pulls it up. algos/ratchet.py.

    As in the script, an update is judged by completions that it was not trained on: those of the later updates of the same generation, as
    they are reached. So a generation must be used for two updates or more: steps_per_generation >= 2 * gradient_accumulation_steps. TRL
    shuffles completions where the script shuffles prompts, so a completion's siblings may have been trained on: docs/integrations.md. Its
    warm-up of the learning rate is GRPOConfig's (`warmup_steps`).
    """

    LOOK = "fresh"

    def __init__(self, weights: Numbers = (), ki: float = 35.0, kp: float = 4.0, release: float = 0.7, max_multiplier: float = 7.0) -> None:
        self.weights, self.ki, self.kp, self.release, self.max_multiplier = weights, ki, kp, release, max_multiplier

    def begin(self) -> None:
        self.script = mathematics("ratchet")
        share = self.preferred()
        self.preference = share / share.mean()
        for name in ("ki", "kp", "max_multiplier"):
            self.inside(name, 0)
        self.inside("release", 0, 1, open_low=True)
        self.state = {"drawdown": torch.zeros_like(self.preference), "multipliers": torch.zeros_like(self.preference)}

    def weigh(self, generation: Generation) -> Tensor:
        return self.preference + self.state["multipliers"]

    def advantages(self, generation: Generation) -> Tensor:
        return _sum_of_normalised(self.script, generation, self.weigh(generation), "grpo")

    def measure(self, log_ratio: Tensor, mask: Tensor, advantages: Tensor, clip: tuple[float, float]) -> Tensor:
        return (log_ratio * mask).sum(1)

    def updated(self, generation: Generation, measured: Tensor, age: Tensor, updates: int) -> None:
        change, alignment = self.moved(generation, measured, age, updates)
        most = self.max_multiplier / self.ki if self.ki else torch.inf  # what is beyond has no effect
        drawdown = self.script.update_drawdown(self.state["drawdown"], change, self.release).clamp(max=most)
        multipliers = self.script.multipliers(drawdown, alignment, self.ki, self.kp, self.max_multiplier)
        self.state = {"drawdown": drawdown, "multipliers": multipliers}
        self.log = {"ratchet/change": change, "ratchet/alignment": alignment, "ratchet/drawdown": drawdown}

    def moved(self, generation: Generation, drift: Tensor, age: Tensor, updates: int) -> tuple[Tensor, Tensor]:
        """The script's `what_moved` where prompts differ in how many of their completions are fresh. drift, age [B] -> [K], [K]; 0 for an
        objective that no prompt has on two fresh completions.

        The script wants as many of every prompt. So the others stand at their prompt's mean, which adds nothing to a covariance: what is
        left is the covariance pooled over prompts, each with its fresh completions less one, by what G less one stands in the denominator.
        """
        G, change, alignment = generation.group_size, torch.zeros(self.K).double(), torch.zeros(self.K).double()
        for k, column in enumerate(generation.rewards.T):
            fresh = ((age > 0) & ~column.isnan()).view(-1, G)
            groups = fresh.sum(1) > 1
            if not groups.any():
                continue
            fresh, counts = fresh[groups], fresh[groups].sum(1, keepdim=True)
            log_ratio = (drift * updates / age.clamp(min=1)).view(-1, G)[groups].clamp(-20, 20)
            mean_ratio = (log_ratio.exp() * fresh).sum(1, keepdim=True) / counts
            reward = column.nan_to_num(0.0).view(-1, G)[groups]
            mean_reward = (reward * fresh).sum(1, keepdim=True) / counts
            filled = torch.where(fresh, log_ratio, mean_ratio.log()).flatten(), torch.where(fresh, reward, mean_reward).view(-1, 1)
            found, correlation = self.script.what_moved(filled[0], torch.ones_like(filled[0]), filled[1], G, 1)
            change[k] = found.item() * ((counts - 1.0).mean() / (G - 1)).rsqrt()
            alignment[k] = correlation.item()
        return change, alignment


def _sum_of_normalised(script, generation: Generation, weights: Tensor, estimator: str) -> Tensor:
    """The advantages of sum_k w_k z_ik, z normalised within prompts; what does not apply adds nothing. weights [K] -> [B]."""
    scores = generation.estimate_each(script).nan_to_num(0.0) @ weights
    return generation.estimate(script, scores.masked_fill(generation.missing.all(1), torch.nan), estimator)
