"""The theory of the paper as functions that can be checked, and the pictures of docs/theory.md.

    python -m study.theory [--out docs/theory]

What the paper (arXiv 2602.06869, sections 4 and 6, appendices C and D) says of a finite set of
completions is computed exactly, in float64. It was read as extracted text, without its formulas:
equation numbers are the paper's, the statements around Theorem 6.4 are a reconstruction.
docs/theory.md says what was checked and where each statement stops.

Names: Y completions of one prompt, K objectives, L tokens in a completion, V tokens in the
vocabulary, H features of a prefix, N = V^L completions of an enumerable model with D = V*H
parameters. A leading `...` is any number of prompts. No function changes its arguments.
"""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import tyro
from torch import Tensor, nn
from tyro.conf import Positional

from common.curves import DASHES, picture
from common.errors import plain_errors
from common.model import load_whole
from common.model import token_logprobs as model_logprobs
from common.seeds import derive
from study.gradients import policy_gradients, sampled, training_prompts
from study.results import DOCS
from testbed.arithmetic import base_path

# --- the covariance law (section 4.1) ---


def tilt(pi: Tensor, score: Tensor, eta: float) -> Tensor:
    """Lemma 4.1: q = pi e^(eta s) / Z, which maximises E_q s - KL(q || pi) / eta.
    pi [..., Y], score [..., Y] -> [..., Y].

    What has no probability gets none (Remark D.1). The largest exponent is taken out first, so that
    no step overflows.
    """
    return torch.softmax(pi.log() + eta * score, -1)


def mean_rewards(pi: Tensor, rewards: Tensor) -> Tensor:
    """J_k = E_pi r_k. pi [..., Y], rewards [..., Y, K] -> [..., K]."""
    return (pi[..., None] * rewards).sum(-2)


def covariance(pi: Tensor, rewards: Tensor, score: Tensor) -> Tensor:
    """Cov_pi(r_k, s), the first order of the law (eq. 3).
    pi [..., Y], rewards [..., Y, K], score [..., Y] -> [..., K]."""
    return mean_rewards(pi * (score - (pi * score).sum(-1, keepdim=True)), rewards)


def third_moment(pi: Tensor, rewards: Tensor, score: Tensor) -> Tensor:
    """E_pi (r_k - rbar_k)(s - sbar)^2, twice the coefficient of eta^2. Shapes as `covariance`."""
    return covariance(pi, rewards, (score - (pi * score).sum(-1, keepdim=True)) ** 2)


def reward_covariance(pi: Tensor, rewards: Tensor) -> Tensor:
    """C, with C w = Cov(r, s) for linear scores s = r w (Remark 4.3), which is the Gram matrix of
    the objectives' natural gradients on a categorical policy (Corollary C.3).
    pi [..., Y], rewards [..., Y, K] -> [..., K, K]."""
    centred = rewards - mean_rewards(pi, rewards)[..., None, :]
    return centred.mT @ (pi[..., None] * centred)


class Law(NamedTuple):
    """What a tilt by eta does to every objective, averaged over prompts; all [K]."""

    change: Tensor  # J_k(q) - J_k(pi), exact
    first: Tensor  # eta Cov(r_k, s)
    second: Tensor  # eta^2 / 2 E (r_k - rbar_k)(s - sbar)^2
    bound: Tensor  # of |change - first|: eta^2 range(r_k) range(s)^2 / 8


def covariance_law(pi: Tensor, rewards: Tensor, score: Tensor, eta: float) -> Law:
    """Theorem 4.2 (eq. 3) on P prompts. pi [P, Y], rewards [P, Y, K], score [P, Y].

    The bound is ours; it makes "sufficiently small" a number. Along the tilt q_t, dJ_k/dt =
    Cov_t(r_k, s) and d^2 J_k/dt^2 = Cov_t(r_k, X) with X = (s - sbar_t)^2 >= 0. With m the middle
    of r_k's range, |Cov(r_k, X)| = |E (r_k - m)(X - EX)| <= range/2 * E|X - EX| <= range * EX,
    since E|X - EX| <= 2 EX; and EX = Var_t(s) <= range(s)^2 / 4. Taylor with this remainder.
    """
    spread = score.amax(-1, keepdim=True) - score.amin(-1, keepdim=True)
    terms = (
        mean_rewards(tilt(pi, score, eta), rewards) - mean_rewards(pi, rewards),
        eta * covariance(pi, rewards, score),
        eta**2 / 2 * third_moment(pi, rewards, score),
        eta**2 / 8 * (rewards.amax(-2) - rewards.amin(-2)) * spread**2,
    )
    return Law(*(term.mean(0) for term in terms))


# --- gradient steps (appendix C) ---


def bandit_gradient(pi: Tensor, rewards: Tensor) -> Tensor:
    """grad J_k = pi * (r_k - J_k) in the logits of a categorical policy (eq. 9).
    pi [Y], rewards [Y, K] -> [Y, K]."""
    return pi[:, None] * (rewards - mean_rewards(pi, rewards))


def bandit_fisher(pi: Tensor) -> Tensor:
    """F = diag(pi) - pi pi' of a categorical policy in its logits; F 1 = 0. pi [Y] -> [Y, Y]."""
    return torch.diag(pi) - torch.outer(pi, pi)


def bandit_smoothness(rewards: Tensor) -> Tensor:
    """A Lipschitz constant of grad J_k in the logits, for Lemma C.1: range(r_k) / 2. [Y, K] -> [K].

    u' (Hessian of J_k) u = Cov(r_k, (u - ubar)^2), at most range(r_k) Var(u) as in
    `covariance_law`, and Var(u) <= ||u||^2 / 2. Ours; the constant usually quoted for rewards in
    [0, 1] is 5/2 (Mei et al., 2020).
    """
    return (rewards.amax(0) - rewards.amin(0)) / 2


def pseudo_inverse(fisher: Tensor) -> Tensor:
    """F^+ [D, D]. Theorem C.2 assumes that F is invertible. With one logit per token it never is,
    because equal logits change nothing; but gradients have no part along that direction."""
    return torch.linalg.pinv(fisher, hermitian=True, rtol=1e-12)


# --- enumerable autoregressive models ---


def completions(vocabulary: int, length: int) -> Tensor:
    """All V^L completions in lexicographic order, [N, L]."""
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))


def prefixes(vocabulary: int, length: int) -> Tensor:
    """Number of the prefix that each token of each completion follows, shortest prefixes first,
    [N, L] of 0 .. 1 + V + ... + V^(L-1)."""
    tokens = completions(vocabulary, length)
    places = torch.zeros_like(tokens)
    for position in range(1, length):
        places[:, position] = vocabulary * places[:, position - 1] + 1 + tokens[:, position - 1]
    return places


def token_logprobs(theta: Tensor, features: Tensor, length: int) -> Tensor:
    """log pi(y_l | y_<l) of every completion; the logits that follow prefix number j are
    theta @ features[j], [N, L].

    theta [V, H], features [S, H] with S = 1 + V + ... + V^(L-1) prefixes; identity features make a
    table, and L = H = 1 a categorical policy with the logits theta. Differentiable.
    """
    logp = torch.log_softmax(features @ theta.T, 1)  # [S, V]
    return logp[prefixes(len(theta), length), completions(len(theta), length)]


def residuals(theta: Tensor, features: Tensor, length: int) -> Tensor:
    """e_y - p of every token of every completion, [N, L, V]. 1 - p_y is summed from the others, to
    keep its digits near 0."""
    one = torch.eye(len(theta), dtype=theta.dtype)
    others = torch.softmax(features @ theta.T, 1)[:, None] * (1 - one)
    every = one * others.sum(-1, keepdim=True) - others  # [S, V, V]
    return every[prefixes(len(theta), length), completions(len(theta), length)]


def token_features(theta: Tensor, features: Tensor, length: int) -> Tensor:
    """phi = J'(e_y - p) = grad_theta log pi(y_l | y_<l) in closed form, [N, L, D] (eq. 7)."""
    follow = features[prefixes(len(theta), length)]  # [N, L, H]
    return torch.einsum("nlv,nlh->nlvh", residuals(theta, features, length), follow).flatten(2)


def aggregated_fisher(pi: Tensor, phi: Tensor) -> Tensor:
    """F = E sum_l phi_l phi_l' (Theorem C.2), the same as with the completion's whole gradient:
    tokens' scores are martingale differences. pi [N], phi [N, L, D] -> [D, D]."""
    return torch.einsum("n,nld,nle->de", pi, phi, phi)


def policy_gradient(pi: Tensor, phi: Tensor, rewards: Tensor) -> Tensor:
    """grad J_k = E r_k sum_l phi_l. pi [N], phi [N, L, D], rewards [N, K] -> [D, K]."""
    return torch.einsum("n,nld,nk->dk", pi, phi, rewards)


# --- clipping (section 4.3, Corollary C.4) ---


class ClipMargins(NamedTuple):
    """First-order change of every objective under the natural gradient of the surrogate, per unit
    of step; all [K]."""

    unclipped: Tensor
    clipped: Tensor
    bound: Tensor  # unclipped - ||grad J_k|| ||D|| in the norm of F^+, D what the clip removes


def clip_margins(
    old: Tensor, new: Tensor, phi: Tensor, advantages: Tensor, rewards: Tensor, clip: float
) -> ClipMargins:
    """Corollary C.4 without regularisers, at the current policy `new`, for completions of `old`.

    old, new [N, L]: the two policies' token log-probabilities of all completions. phi [N, L, D]: of
    `new`. advantages [N], rewards [N, K]. Clipped tokens (eq. 6) have no gradient.
    """
    ratio, gain = (new - old).exp(), advantages[:, None]
    outside = torch.where(gain >= 0, ratio > 1 + clip, ratio < 1 - clip)
    weight = old.sum(1, keepdim=True).exp() * gain * ratio  # W, unclipped
    update, removed = (torch.einsum("nl,nld->d", w, phi) for w in (weight, weight * outside))
    pi = new.sum(1).exp()
    gradient = policy_gradient(pi, phi, rewards)  # [D, K]
    inverse = pseudo_inverse(aggregated_fisher(pi, phi))
    unclipped, lost = gradient.T @ inverse @ update, gradient.T @ inverse @ removed
    squares = (gradient * (inverse @ gradient)).sum(0) * (removed @ inverse @ removed)
    return ClipMargins(unclipped, unclipped - lost, unclipped - squares.clamp(min=0).sqrt())


MODES = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1]], dtype=torch.float64)  # compact, long, rush


def clipping_example(distance: float) -> tuple[Tensor, ClipMargins]:
    """Where clipping turns the margin of an objective: (ratio [3], margins), at a tilt of the start
    by `distance` times the advantages.

    Three modes of the testbed, compact, long and rush (docs/testbed.md), start with probabilities
    .22, .20 and .58; objectives in the order of rewards.OBJECTIVES, equal weights, clip 0.2. The
    policy moves to where the update leads; the good mode leaves the window first, and what stays in
    it pushes accuracy down.
    """
    start = torch.tensor([0.22, 0.20, 0.58], dtype=torch.float64)
    advantages = MODES.mean(1) - start @ MODES.mean(1)
    new = tilt(start, advantages, distance).log()[:, None]
    phi = token_features(new, torch.ones(1, 1, dtype=torch.float64), 1)
    margins = clip_margins(start.log()[:, None], new, phi, advantages, MODES, 0.2)
    return new[:, 0].exp() / start, margins


# --- the PL condition (section 6, appendix D.7) ---


class Landscape(NamedTuple):
    """An enumerable model and a score at one parameter: all that Theorem 6.4 speaks of. Numbers,
    but for the gradients; the constants are the most favourable ones that its assumptions allow."""

    p: float  # pi(y*), the best completion's probability
    rest: float  # 1 - p
    best: float  # s* = s(y*), the value V* that no policy exceeds
    gap: float  # V* - V
    gradient: Tensor  # grad V [D]
    best_gradient: Tensor  # grad log pi(y*) [D]
    score_bound: float  # B >= |s| (Assumption 6.1)
    second: float  # highest suboptimal score (Assumption 6.1: best - second > 0)
    worst: float  # lowest suboptimal score
    delta: float  # every token of y* has probability <= 1 - delta (Assumption 6.2)
    alignment: float  # c, least cosine between gradients of y*'s tokens (Assumption 6.3)
    sigma_min: float  # least and greatest singular value of the Jacobians of the logits in theta
    sigma_max: float
    token_bound: float  # greatest ||e_y - p|| over all tokens after all prefixes; at most sqrt(2)
    length: int
    vocabulary: int

    @property
    def best_gradient_floor(self) -> float:
        """Lemma D.3: ||grad log pi(y*)|| >= L sigma_min delta sqrt(c V / (V - 1))."""
        ratio = max(self.alignment, 0.0) * self.vocabulary / (self.vocabulary - 1)
        return self.length * self.sigma_min * self.delta * math.sqrt(ratio)

    @property
    def slope(self) -> float:
        """<grad V, u> with u = grad log pi(y*) / ||grad log pi(y*)|| (eq. 15)."""
        return float(self.gradient @ self.best_gradient / self.best_gradient.norm())


def landscape(theta: Tensor, features: Tensor, score: Tensor, length: int) -> Landscape:
    """Measure an enumerable model; its best completion is unique (Assumption 6.1). theta and
    features as `token_logprobs`, score [N]."""
    top, others = int(score.argmax()), torch.arange(len(score)) != score.argmax()
    pi = token_logprobs(theta, features, length).sum(1).exp()
    phi, residual = token_features(theta, features, length), residuals(theta, features, length)
    unit = phi[top] / phi[top].norm(dim=1, keepdim=True)  # [L, D]
    sigma = features.norm(dim=1)  # the Jacobian after a prefix is I (x) h', singular values ||h||
    gap = (pi * (score[top] - score)).sum()  # not s* - V: near the optimum that loses its digits
    return Landscape(
        p=float(pi[top]),
        rest=float(pi[others].sum()),
        best=float(score[top]),
        gap=float(gap),
        gradient=policy_gradient(pi, phi, (score - score[top] + gap)[:, None])[:, 0],  # s - V
        best_gradient=phi[top].sum(0),
        score_bound=float(score.abs().max()),
        second=float(score[others].max()),
        worst=float(score[others].min()),
        delta=float(residual[top].amax(1).min()),
        alignment=float((unit @ unit.T).min().clamp(max=1)),
        sigma_min=float(sigma.min()),
        sigma_max=float(sigma.max()),
        token_bound=float(residual.norm(dim=2).max()),
        length=length,
        vocabulary=len(theta),
    )


def pl_bracket(at: Landscape, token_bound: float = math.sqrt(2)) -> float:
    """h(p), the lower bound of the slope (eq. 16, reconstructed); Theorem 6.4 needs it positive.

    h = L [p s* sigma_min delta sqrt(c V / (V-1)) - beta sigma_max B (1-p)] with beta = token_bound
    >= ||e_y - p||, sqrt(2) in the reconstruction and `at.token_bound` at its sharpest. It is never
    positive; docs/theory.md has the proof.
    """
    lost = token_bound * at.sigma_max * at.length * at.score_bound * at.rest
    return at.p * at.best * at.best_gradient_floor - lost


def repaired_bracket(at: Landscape) -> float:
    """A lower bound of the slope that can be positive: the bracket of s - b, with b the middle of
    the suboptimal scores. Ours.

    A constant added to the score changes no gradient, so it may be chosen: B is then half the range
    of the suboptimal scores.
    """
    middle, half = (at.second + at.worst) / 2, (at.second - at.worst) / 2
    lost = math.sqrt(2) * at.sigma_max * at.length * half * at.rest
    return at.p * (at.best - middle) * at.best_gradient_floor - lost


def pl_ratio(at: Landscape) -> float:
    """The empirical PL ratio ||grad V||^2 / (2 (V* - V)): no assumption, and the largest mu that
    holds at this parameter."""
    return float(at.gradient.square().sum()) / (2 * at.gap)


def pl_ratio_ceiling(at: Landscape) -> float:
    """4 L^2 sigma_max^2 (s* - min s)^2 (1-p) / Delta with Delta = s* - the next score, which the
    ratio cannot exceed: no mu > 0 holds up to the optimum.

    Ours. ||grad V|| <= E|s - V| * sqrt(2) L sigma_max; E|s - V| = 2 E max(V - s, 0) <= 2 (1-p)(s* -
    min s); V* - V >= Delta (1-p).
    """
    reach = at.length * at.sigma_max * (at.best - at.worst)
    return 4 * reach**2 * at.rest / (at.best - at.second)


# --- a language model (the testbed) ---


class FirstStep(NamedTuple):
    """One update of a language model, and what it did to every objective; [K] unless said.

    All but `fresh` is measured on the completions that the update was made from, whose own
    log-probabilities it moves most.
    """

    change: Tensor  # of the rewards, the completions weighed anew by pi_new / pi_old
    gradient: Tensor  # <grad J_k, theta_new - theta_old>: first order in the parameters
    law: Tensor  # eta Cov(r_k, s), eta from regressing the tilt that was made on the score
    fresh: Tensor  # [n, K] `change` as the other draws see it, which the update does not know
    share: Tensor  # squared correlation of that tilt with the score: 1 is the paper's update
    size: Tensor  # root mean square of log pi_new / pi_old within prompts, in nats


def first_step(
    policy: nn.Module, draws: Sequence, optimizer: str, lrs: Sequence[float]
) -> list[FirstStep]:
    """Ascend E s for s = the mean reward by one step from the same start, for every learning rate:
    the plain policy gradient, completions centred within their prompt.

    policy: a copy of it, in float64, is updated. draws: pairs (batch, rewards [P, G, K]); the first
    makes the step. optimizer: SGD or AdamW, whose first step divides every entry of the gradient by
    its own size; no weight decay, so that both go where the gradient says.
    """
    policy = copy.deepcopy(policy).double()
    parameters, kind = list(policy.parameters()), getattr(torch.optim, optimizer)
    rewards = [scored.double() for _, scored in draws]
    score = rewards[0].mean(2)  # [P, G]
    uniform = torch.full_like(score, 1 / score.size(1))

    @torch.no_grad()
    def logprobs() -> list[Tensor]:
        return [model_logprobs(policy, of, 1.0).sum(1).view_as(score) for of, _ in draws]

    start, before, steps = nn.utils.parameters_to_vector(parameters).detach(), logprobs(), []
    # biased (1/G), as what is measured is
    gradients = policy_gradients(policy, *draws[0]) * (1 - uniform[0, 0])  # [K, D]
    for lr in lrs:
        nn.utils.vector_to_parameters(start.clone(), parameters)
        descent = kind(parameters, lr=lr, weight_decay=0.0)
        descent.zero_grad()
        (-gradients.mean(0) @ nn.utils.parameters_to_vector(parameters)).backward()
        descent.step()
        moved = nn.utils.parameters_to_vector(parameters).detach() - start
        # these tilts are what the update did, so that the new policy is an exact tilt with step 1
        tilts = [after - old for after, old in zip(logprobs(), before, strict=True)]
        seen = zip(rewards, tilts, strict=True)
        change, *fresh = (covariance_law(uniform, *each, 1.0).change for each in seen)
        both = reward_covariance(uniform, torch.stack([score, tilts[0]], -1)).mean(0)
        (variance, shared), (_, spread) = both
        law = shared / variance * covariance(uniform, rewards[0], score).mean(0)
        numbers = shared**2 / (variance * spread), spread.sqrt()
        steps.append(FirstStep(change, gradients @ moved, law, torch.stack(fresh), *numbers))
    return steps


def draw_testbed(prompts: int, group: int, seed: int, draws: int) -> tuple[nn.Module, list]:
    """The testbed's base, and draws of completions of the same prompts: (policy, [(batch, rewards
    [P, G, K])])."""
    policy, asked = load_whole(str(base_path("fragile")), "cpu"), training_prompts(prompts, seed)
    seeds = [[derive(seed, draw, i) for i in range(prompts)] for draw in range(1, draws + 1)]
    return policy, [sampled(policy, asked, group, each) for each in seeds]


# --- the pictures ---


def plot(panel, x, lines: dict, **words) -> None:
    """Lines by their labels, which differ in colour and dash."""
    for n, (label, y) in enumerate(lines.items()):
        panel.plot(x, y, DASHES[n % 3], label=label)
    panel.legend(ncols=2)
    panel.set(**words)


def stacked(found: Sequence[NamedTuple]) -> NamedTuple:
    """Tuples of tensors as one, with their number before each tensor's shape."""
    return type(found[0])(*map(torch.stack, zip(*found, strict=True)))


def draw_law(left, right) -> None:
    """Theorem 4.2 on one prompt with three modes."""
    pi, rewards = torch.tensor([[0.1, 0.5, 0.4]], dtype=torch.float64), MODES[None]
    for panel, etas in ((left, torch.linspace(0, 6, 121)), (right, torch.logspace(-3, 1, 41))):
        laws = stacked([covariance_law(pi, rewards, rewards.mean(2), float(x)) for x in etas])
        if panel is left:
            lines = {"accuracy": laws.change[:, 0], "the law": laws.first[:, 0]}
            lines |= {"conciseness, clarity": laws.change[:, 1], "its law": laws.first[:, 1]}
            plot(left, etas, lines, xlabel="size of the step, η", ylabel="change of the objective")
        else:
            lines = {"accuracy's change beyond the law": (laws.change - laws.first)[:, 0].abs()}
            lines |= {"second order": laws.second[:, 0].abs(), "bound": laws.bound[:, 0]}
            plot(right, etas, lines, xlabel="size of the step, η", xscale="log", yscale="log")


def draw_clipping(*panels) -> None:
    """Corollary C.4 along the path of the update."""
    distances = torch.linspace(0, 1, 401)
    margins = stacked([clipping_example(float(x))[1] for x in distances])
    for k, panel in enumerate(panels):
        lines = {key: value[:, k] for key, value in margins._asdict().items()}
        plot(panel, distances, lines, xlabel="distance from the sampling policy, in tilts")
        panel.set(title=("accuracy", "conciseness, and clarity alike")[k], ylabel="gain per step")


def bandits(count: int, seed: int = 0) -> Iterator[Landscape]:
    """Categorical policies of 2 to 9 completions, with scores in 0..1 of every spread."""
    drawn = torch.Generator().manual_seed(seed)
    for trial in range(count):
        size, scale = 2 + trial % 8, 1 + trial % 5
        logits = scale * torch.randn(size, 1, generator=drawn, dtype=torch.float64)
        score = torch.rand(size, generator=drawn, dtype=torch.float64)
        yield landscape(logits, torch.ones(1, 1, dtype=torch.float64), score, 1)


def draw_pl(*panels) -> None:
    """Theorem 6.4 on random policies: the bracket, its repair, and the ratio of two completions."""
    models = list(bandits(4000))
    for panel, bracket in zip(panels, (pl_bracket, repaired_bracket), strict=False):
        heights = [bracket(at) / (at.score_bound * at.rest) for at in models]
        panel.plot([at.p for at in models], heights, ".", markersize=1.5)
        panel.set(xlabel="probability p of the best completion", ylim=(-1.6, 1.6))
        panel.set_title(f"{bracket.__name__} over B (1 - p)")
        panel.axhline(0, color="0.5")
    p = torch.linspace(0, 1, 250)
    lines = {f"scores {gap:g} apart": p**2 * (1 - p) * gap for gap in (1.0, 0.5, 0.2)}
    plot(panels[2], p, lines, title="PL ratio, two completions", xlabel="probability of the better")


def draw_model(left, right) -> None:
    """One step of the testbed's model, of many sizes, and printed at the scripts' rate."""
    rates, axes = torch.logspace(-2, 1.5, 8), {"xlabel": "nats per completion", "xscale": "log"}
    for seed in (3, 2, 1):
        policy, draws = draw_testbed(16, 16, seed, 5)
        for optimizer, lr in (("SGD", 1e-2), ("AdamW", 1e-4)):
            (at,) = first_step(policy, draws, optimizer, [lr])
            error = at.fresh.std(0) / len(at.fresh) ** 0.5
            told = at._replace(fresh=at.fresh.mean(0))._asdict() | {"error of fresh": error}
            print(f"seed {seed}, {optimizer} {lr:g}:", *told.items(), sep="\n    ")
            if seed == 1:
                steps = stacked(first_step(policy, draws, optimizer, (lr * rates).tolist()))
                errors = (steps.change - steps.gradient).norm(dim=1) / steps.change.norm(dim=1)
                plot(left, steps.size, {optimizer: errors}, **axes, yscale="log")
    lines = {key: getattr(steps, key)[:, 0] for key in ("gradient", "change", "law")}
    lines["fresh"] = steps.fresh[:, :, 0].mean(1)
    lines = {key: value / steps.size for key, value in lines.items()}
    plot(right, steps.size, lines, **axes, ylabel="change of accuracy per nat, AdamW")
    left.set_ylabel("relative error of the gradient")


PICTURES = {  # by the names of their files, with the number of their panels
    "law": (draw_law, 2),
    "clipping": (draw_clipping, 2),
    "pl": (draw_pl, 3),
    "model": (draw_model, 2),
}


def main(
    names: Positional[tuple[Literal[*PICTURES], ...]] = (), out: Path = DOCS / "theory"
) -> None:
    """Draw the pictures of docs/theory.md, all or those named, into a folder."""
    for name in names or PICTURES:
        draw, count = PICTURES[name]
        with picture(out / f"{name}.png", 4.0 * count, 3.2) as figure:
            draw(*figure.subplots(1, count))
            for panel in figure.axes:
                for axis in (panel.xaxis, panel.yaxis):
                    axis.set_major_formatter("{x:g}")


if __name__ == "__main__":
    with plain_errors():
        tyro.cli(main)
