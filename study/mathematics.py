"""The theory of the paper as functions that can be checked: what it says of a finite set of completions is computed exactly, in float64.

Paper: arXiv 2602.06869, sections 4 and 6, appendices C and D. It was read as extracted text, without its formulas: equation numbers are the
paper's, the statements around Theorem 6.4 are a reconstruction. docs/theory.md says what was checked and where each statement stops;
`python -m study.theory` draws the pictures; tests/mathematics/test_theory.py is the check.

Names: Y completions of one prompt, K objectives, L tokens in a completion, V tokens in the vocabulary, H features of a prefix, N = V^L
completions of an enumerable model with D = V*H parameters. A leading `...` is any number of prompts. No function changes its arguments.
"""

import copy
import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# --- the covariance law (section 4.1) ---


def tilt(pi: Tensor, score: Tensor, eta: float) -> Tensor:
    """Lemma 4.1: q = pi e^(eta s) / Z, which maximises E_q s - KL(q || pi) / eta. pi [..., Y], score [..., Y] -> [..., Y].

    What has no probability gets none (Remark D.1). The largest exponent is taken out first, so that no step overflows.
    """
    exponent = (eta * score).masked_fill(pi == 0, -torch.inf)
    mass = pi * (exponent - exponent.amax(-1, keepdim=True)).exp()
    return mass / mass.sum(-1, keepdim=True)


def mean_rewards(pi: Tensor, rewards: Tensor) -> Tensor:
    """J_k = E_pi r_k. pi [..., Y], rewards [..., Y, K] -> [..., K]."""
    return (pi[..., None] * rewards).sum(-2)


def covariance(pi: Tensor, rewards: Tensor, score: Tensor) -> Tensor:
    """Cov_pi(r_k, s), the first order of the law (eq. 3). pi [..., Y], rewards [..., Y, K], score [..., Y] -> [..., K]."""
    centred = score - (pi * score).sum(-1, keepdim=True)
    return mean_rewards(pi * centred, rewards)


def third_moment(pi: Tensor, rewards: Tensor, score: Tensor) -> Tensor:
    """E_pi (r_k - rbar_k)(s - sbar)^2, twice the coefficient of eta^2. pi [..., Y], rewards [..., Y, K], score [..., Y] -> [..., K]."""
    centred = score - (pi * score).sum(-1, keepdim=True)
    return covariance(pi, rewards, centred**2)


def reward_covariance(pi: Tensor, rewards: Tensor) -> Tensor:
    """C, with C w = Cov(r, s) for linear scores s = r w (Remark 4.3). pi [..., Y], rewards [..., Y, K] -> [..., K, K].

    It is also the Gram matrix of the objectives' natural gradients on a categorical policy (Corollary C.3).
    """
    centred = rewards - mean_rewards(pi, rewards)[..., None, :]
    return centred.mT @ (pi[..., None] * centred)


def remainder_bound(rewards: Tensor, score: Tensor, eta: float) -> Tensor:
    """At most this much is between J_k(q) - J_k(pi) and eta Cov(r_k, s), for every eta: eta^2 range(r_k) range(s)^2 / 8. -> [..., K].

    Ours; it makes "sufficiently small" of Theorem 4.2 a number. Along the tilt q_t, dJ_k/dt = Cov_t(r_k, s) and d^2 J_k/dt^2 =
    Cov_t(r_k, X) with X = (s - sbar_t)^2 >= 0. With m the middle of r_k's range, |Cov(r_k, X)| = |E (r_k - m)(X - EX)|
    <= range/2 * E|X - EX| <= range * EX, since E|X - EX| <= 2 EX; and EX = Var_t(s) <= range(s)^2 / 4. Taylor with this remainder.
    rewards [..., Y, K], score [..., Y].
    """
    spread = score.amax(-1, keepdim=True) - score.amin(-1, keepdim=True)
    return eta**2 / 8 * (rewards.amax(-2) - rewards.amin(-2)) * spread**2


@dataclass(frozen=True)
class Law:
    """What a tilt by eta does to every objective, averaged over prompts; all [K]."""

    change: Tensor  # J_k(q) - J_k(pi), exact
    first: Tensor  # eta Cov(r_k, s)
    second: Tensor  # eta^2 / 2 E (r_k - rbar_k)(s - sbar)^2
    bound: Tensor  # of |change - first|


def covariance_law(pi: Tensor, rewards: Tensor, score: Tensor, eta: float) -> Law:
    """Theorem 4.2 (eq. 3) on P prompts. pi [P, Y], rewards [P, Y, K], score [P, Y]."""
    change = mean_rewards(tilt(pi, score, eta), rewards) - mean_rewards(pi, rewards)
    first, second = eta * covariance(pi, rewards, score), eta**2 / 2 * third_moment(pi, rewards, score)
    return Law(*(term.mean(0) for term in (change, first, second, remainder_bound(rewards, score, eta))))


# --- two modes (section 4.2) ---


def two_mode_probability(p: Tensor, score_gap: Tensor, eta: float, steps: Tensor | int = 1) -> Tensor:
    """Probability of the good mode after `steps` tilts: logit p + steps eta (s_g - s_b) (eq. 4). Shapes broadcast."""
    return torch.sigmoid(torch.logit(p) + steps * eta * score_gap)


def two_mode_covariance(p: Tensor, reward_gap: Tensor, score_gap: Tensor) -> Tensor:
    """Cov(r, s) = p (1-p) (r_g - r_b) (s_g - s_b) (eq. 5). Shapes broadcast."""
    return p * (1 - p) * reward_gap * score_gap


# --- gradient steps (appendix C) ---


def bandit_gradient(pi: Tensor, rewards: Tensor) -> Tensor:
    """grad J_k = pi * (r_k - J_k) in the logits of a categorical policy (eq. 9). pi [Y], rewards [Y, K] -> [Y, K]."""
    return pi[:, None] * (rewards - mean_rewards(pi, rewards))


def bandit_fisher(pi: Tensor) -> Tensor:
    """F = diag(pi) - pi pi' of a categorical policy in its logits; F 1 = 0. pi [Y] -> [Y, Y]."""
    return torch.diag(pi) - torch.outer(pi, pi)


def bandit_smoothness(rewards: Tensor) -> Tensor:
    """A Lipschitz constant of grad J_k in the logits, for Lemma C.1: range(r_k) / 2. rewards [Y, K] -> [K].

    u' (Hessian of J_k) u = Cov(r_k, (u - ubar)^2), at most range(r_k) Var(u) as in `remainder_bound`, and Var(u) <= ||u||^2 / 2.
    Ours; the constant usually quoted for rewards in [0, 1] is 5/2 (Mei et al., 2020).
    """
    return (rewards.amax(0) - rewards.amin(0)) / 2


def natural_gradient(fisher: Tensor, vector: Tensor) -> Tensor:
    """F^+ v, the shortest of the natural-gradient directions. fisher [D, D], vector [D] or [D, n] -> like vector.

    Theorem C.2 assumes that F is invertible. With one logit per token it never is, because equal logits change nothing; but what
    is multiplied with it here are gradients, which have no part along that direction.
    """
    return torch.linalg.pinv(fisher, hermitian=True, rtol=1e-12) @ vector


def guaranteed_gain(slope: Tensor, direction: Tensor, smoothness: Tensor, step: float) -> Tensor:
    """Lemma C.1: J_k(theta + step d) - J_k(theta) >= step <grad J_k, d> - L_k step^2 ||d||^2 / 2.

    slope [K] = <grad J_k, d>, direction [D], smoothness L_k [K] -> [K]. Not negative up to the step 2 slope / (L_k ||d||^2).
    """
    return step * slope - smoothness * step**2 / 2 * direction.square().sum()


# --- enumerable autoregressive models ---


def completions(vocabulary: int, length: int) -> Tensor:
    """All V^L completions in lexicographic order, [N, L]."""
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))


def prefixes(vocabulary: int, length: int) -> Tensor:
    """Number of the prefix that each token of each completion follows, shortest prefixes first, [N, L] of 0 .. 1 + V + ... + V^(L-1)."""
    tokens, places = completions(vocabulary, length), torch.zeros(vocabulary**length, length, dtype=torch.long)
    for position in range(1, length):
        places[:, position] = vocabulary * places[:, position - 1] + 1 + tokens[:, position - 1]
    return places


def token_logprobs(theta: Tensor, features: Tensor, length: int) -> Tensor:
    """log pi(y_l | y_<l) of every completion; the logits that follow prefix number j are theta @ features[j], [N, L].

    theta [V, H], features [S, H] with S = 1 + V + ... + V^(L-1) prefixes; identity features make a table, and L = H = 1 a categorical
    policy with the logits theta. Differentiable.
    """
    logp = torch.log_softmax(features @ theta.T, 1)  # [S, V]
    return logp[prefixes(len(theta), length), completions(len(theta), length)]


def token_features(theta: Tensor, features: Tensor, length: int) -> Tensor:
    """phi = J'(e_y - p) = grad_theta log pi(y_l | y_<l), in closed form, [N, L, D] (eq. 7). Arguments as `token_logprobs`."""
    vocabulary = len(theta)
    places, tokens = prefixes(vocabulary, length), completions(vocabulary, length)
    residual = _residuals(theta, features)[places, tokens]  # [N, L, V]
    return torch.einsum("nlv,nlh->nlvh", residual, features[places]).flatten(2)


def _residuals(theta: Tensor, features: Tensor) -> Tensor:
    """e_y - p after every prefix for every token y, [S, V, V]; 1 - p_y is summed from the others, to keep its digits near 0."""
    one = torch.eye(len(theta), dtype=theta.dtype)
    others = torch.softmax(features @ theta.T, 1)[:, None] * (1 - one)
    return one * others.sum(-1, keepdim=True) - others


def aggregated_fisher(pi: Tensor, phi: Tensor) -> Tensor:
    """F = E sum_l phi_l phi_l' (Theorem C.2). pi [N], phi [N, L, D] -> [D, D].

    The same as with the completion's whole gradient, E (sum_l phi_l)(sum_l phi_l)': tokens' scores are martingale differences.
    """
    return torch.einsum("n,nld,nle->de", pi, phi, phi)


def policy_gradient(pi: Tensor, phi: Tensor, rewards: Tensor) -> Tensor:
    """grad J_k = E r_k sum_l phi_l. pi [N], phi [N, L, D], rewards [N, K] -> [D, K]."""
    return torch.einsum("n,nld,nk->dk", pi, phi, rewards)


# --- clipping (section 4.3, Corollary C.4) ---


def unclipped_tokens(advantages: Tensor, ratio: Tensor, clip: float) -> Tensor:
    """1 where the clipped surrogate has a gradient (eq. 6). advantages [N], ratio [N, L] -> [N, L]."""
    return torch.where(advantages[:, None] >= 0, ratio <= 1 + clip, ratio >= 1 - clip).to(ratio)


@dataclass(frozen=True)
class ClipMargins:
    """First-order change of every objective under the natural gradient of the surrogate, per unit of step."""

    unclipped: Tensor  # [K]
    clipped: Tensor  # [K]
    bound: Tensor  # [K] unclipped - ||grad J_k|| ||D||, both in the norm of F^+: the clipped margin is not below it
    distortion: Tensor  # ||D|| in that norm, of the part D = v_unclipped - v_clipped that the clip removes
    clipped_fraction: Tensor  # of the tokens, under the old policy


def clip_margins(old: Tensor, new: Tensor, phi: Tensor, advantages: Tensor, rewards: Tensor, clip: float) -> ClipMargins:
    """Corollary C.4 without regularisers, at the current policy `new`, for completions sampled from `old`.

    old, new [N, L]: the two policies' token log-probabilities of all completions. phi [N, L, D]: of `new`. advantages [N], rewards [N, K].
    """
    ratio = (new - old).exp()
    active = unclipped_tokens(advantages, ratio, clip)
    sampled, pi = old.sum(1).exp(), new.sum(1).exp()
    weight = advantages[:, None] * ratio  # W, unclipped
    update, removed = (torch.einsum("n,nl,nld->d", sampled, w, phi) for w in (weight, weight * (1 - active)))
    gradient = policy_gradient(pi, phi, rewards)  # [D, K]
    inverse = torch.linalg.pinv(aggregated_fisher(pi, phi), hermitian=True, rtol=1e-12)
    unclipped, lost = gradient.T @ inverse @ update, gradient.T @ inverse @ removed
    distortion = (removed @ inverse @ removed).clamp(min=0).sqrt()
    norms = torch.einsum("dk,de,ek->k", gradient, inverse, gradient).clamp(min=0).sqrt()
    fraction = (sampled[:, None] * (1 - active)).sum() / active.size(1)
    return ClipMargins(unclipped, unclipped - lost, unclipped - norms * distortion, distortion, fraction)


def clipping_example(distance: float) -> tuple[Tensor, ClipMargins]:
    """Where clipping turns the margin of an objective: (ratio [3], margins), at a tilt of the start by `distance` times the advantages.

    Three modes of the testbed, compact, long and rush (docs/testbed.md), start with probabilities .22, .20 and .58; objectives in the
    order of rewards.OBJECTIVES, equal weights, clip 0.2. The policy moves to where the update leads; the good mode leaves the window
    first, and what stays in it pushes accuracy down.
    """
    rewards = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1]], dtype=torch.float64)
    start = torch.tensor([0.22, 0.20, 0.58], dtype=torch.float64)
    advantages = rewards.mean(1) - start @ rewards.mean(1)
    new = tilt(start, advantages, distance).log()[:, None]
    phi = token_features(new, torch.ones(1, 1, dtype=torch.float64), 1)
    return new[:, 0].exp() / start, clip_margins(start.log()[:, None], new, phi, advantages, rewards, 0.2)


# --- the PL condition (section 6, appendix D.7) ---


@dataclass(frozen=True)
class Landscape:
    """An enumerable model and a score at one parameter: all that Theorem 6.4 speaks of. Numbers, but for the gradient.

    The constants are the most favourable ones that its assumptions allow at this parameter.
    """

    p: float  # pi(y*), the best completion's probability
    rest: float  # 1 - p
    best: float  # s* = s(y*), the value V* that no policy exceeds
    gap: float  # V* - V
    gradient: Tensor  # grad V [D]
    best_gradient: Tensor  # grad log pi(y*) [D]
    score_bound: float  # B >= |s| (Assumption 6.1)
    margin: float  # Delta, from s* to the next score (Assumption 6.1)
    worst: float  # lowest suboptimal score
    second: float  # highest suboptimal score
    delta: float  # every token of y* has probability <= 1 - delta (Assumption 6.2)
    alignment: float  # c, least cosine between gradients of y*'s tokens (Assumption 6.3); 1 for a single token
    sigma_min: float  # least and greatest singular value of the Jacobians of the logits in theta
    sigma_max: float
    token_bound: float  # greatest ||e_y - p|| over all tokens after all prefixes; at most sqrt(2)
    length: int
    vocabulary: int

    @property
    def best_gradient_floor(self) -> float:
        """Lemma D.3: ||grad log pi(y*)|| >= L sigma_min delta sqrt(c V / (V - 1)). 0 where tokens' gradients are not aligned."""
        ratio = max(self.alignment, 0.0) * self.vocabulary / (self.vocabulary - 1)
        return self.length * self.sigma_min * self.delta * math.sqrt(ratio)

    @property
    def slope(self) -> float:
        """<grad V, u> with u = grad log pi(y*) / ||grad log pi(y*)|| (eq. 15)."""
        return float(self.gradient @ self.best_gradient / self.best_gradient.norm())


def landscape(theta: Tensor, features: Tensor, score: Tensor, length: int) -> Landscape:
    """Measure an enumerable model; the best completion must be unique. theta and features as `token_logprobs`, score [N]."""
    vocabulary, top = len(theta), int(score.argmax())
    logp, phi = token_logprobs(theta, features, length), token_features(theta, features, length)
    pi = logp.sum(1).exp()
    others = torch.cat([score[:top], score[top + 1 :]])
    if float(others.max()) >= float(score[top]):
        raise ValueError("the best completion is not unique (Assumption 6.1)")
    token_gradients = phi[top]  # [L, D]
    unit = token_gradients / token_gradients.norm(dim=1, keepdim=True)
    residuals = _residuals(theta, features)
    along = residuals[prefixes(vocabulary, length)[top], completions(vocabulary, length)[top]]  # [L, V] of y*'s tokens
    sigma = features.norm(dim=1)  # the Jacobian of the logits after a prefix is I (x) h', all of whose singular values are ||h||
    gap = (pi * (score[top] - score)).sum()  # not s* - V: near the optimum that would lose its digits
    return Landscape(
        p=float(pi[top]),
        best=float(score[top]),
        rest=float(pi[:top].sum() + pi[top + 1 :].sum()),
        gap=float(gap),
        gradient=policy_gradient(pi, phi, (score - score[top] + gap)[:, None])[:, 0],  # s - V
        best_gradient=token_gradients.sum(0),
        score_bound=float(score.abs().max()),
        margin=float(score[top] - others.max()),
        worst=float(others.min()),
        second=float(others.max()),
        delta=float(along.amax(1).min()),
        alignment=float((unit @ unit.T).min().clamp(max=1)),
        sigma_min=float(sigma.min()),
        sigma_max=float(sigma.max()),
        token_bound=float(residuals.norm(dim=2).max()),
        length=length,
        vocabulary=vocabulary,
    )


def pl_bracket(at: Landscape, token_bound: float = math.sqrt(2)) -> float:
    """h(p), the lower bound of the slope (eq. 16, reconstructed); Theorem 6.4 needs it positive.

    h = L [p s* sigma_min delta sqrt(c V / (V-1)) - beta sigma_max B (1-p)] with beta = token_bound >= ||e_y - p||, sqrt(2) in the
    reconstruction and `at.token_bound` at its sharpest. It is never positive: `pl_bracket_ceiling`.
    """
    return at.p * at.best * at.best_gradient_floor - token_bound * at.sigma_max * at.length * at.score_bound * at.rest


def pl_bracket_ceiling(at: Landscape, token_bound: float = math.sqrt(2)) -> float:
    """What the bracket cannot exceed, L delta sigma_max B [p sqrt(V/(V-1)) - beta] <= 0. The proof is in docs/theory.md."""
    return at.length * at.delta * at.sigma_max * at.score_bound * (at.p * math.sqrt(at.vocabulary / (at.vocabulary - 1)) - token_bound)


def repaired_bracket(at: Landscape) -> float:
    """A lower bound of the slope that can be positive: the bracket of s - b, with b the middle of the suboptimal scores.

    A constant added to the score changes no gradient, so it may be chosen: B is then half the range of the suboptimal scores, and the
    bound is p (s* - b) floor - sqrt(2) sigma_max L B_b (1-p) with the floor of Lemma D.3. Ours.
    """
    middle, half = (at.second + at.worst) / 2, (at.second - at.worst) / 2
    return at.p * (at.best - middle) * at.best_gradient_floor - math.sqrt(2) * at.sigma_max * at.length * half * at.rest


def pl_constant(bracket: float, at: Landscape, spread: float) -> float:
    """mu with ||grad V||^2 / 2 >= mu (V* - V) at this parameter, from a lower bound of the slope; 0 where that is not positive.

    spread: at least (V* - V) / (1-p). 2B gives the paper's h^2 / (4 B (1-p)) (Lemma D.5, eq. 18); s* - min s is the sharpest.
    """
    return max(bracket, 0.0) ** 2 / (2 * spread * at.rest)


def pl_ratio(at: Landscape) -> float:
    """The empirical PL ratio ||grad V||^2 / (2 (V* - V)): no assumption, and the largest mu that holds at this parameter."""
    return float(at.gradient.square().sum()) / (2 * at.gap)


def pl_ratio_ceiling(at: Landscape) -> float:
    """4 L^2 sigma_max^2 (s* - min s)^2 (1-p) / Delta, which the ratio cannot exceed: no mu > 0 holds up to the optimum.

    Ours. ||grad V|| <= E|s - V| * sqrt(2) L sigma_max; E|s - V| = 2 E max(V - s, 0) <= 2 (1-p)(s* - min s); V* - V >= Delta (1-p).
    """
    return 4 * (at.length * at.sigma_max * (at.best - at.worst)) ** 2 * at.rest / at.margin


# --- a language model (the testbed) ---


@dataclass(frozen=True)
class FirstStep:
    """One update of a language model, and what it did to every objective; [K] unless said.

    All but `fresh` is measured on the completions that the update was made from, whose own log-probabilities it moves most.
    """

    change: Tensor  # of the rewards, the completions weighed anew by pi_new / pi_old, normalised within the prompt
    gradient: Tensor  # <grad J_k, theta_new - theta_old>: first order in the parameters
    realised: Tensor  # Cov(r_k, log pi_new / pi_old): the law for the tilt that the update really made
    law: Tensor  # eta Cov(r_k, s): the law for the score that was meant, eta from regressing that tilt on the score
    score_share: float  # squared correlation, within prompts, of log pi_new / pi_old with the score: 1 is the paper's update
    size: float  # root mean square of log pi_new / pi_old within prompts, in nats per completion
    fresh: Tensor  # [n, K] `change` as n other draws of completions see it, which the update does not know


def first_step(policy: nn.Module, batch, rewards: Tensor, weights: Tensor, optimizer: str, lrs: list[float], fresh=()) -> list[FirstStep]:
    """Ascend E s for s = r w by one step from the same start, once for every learning rate: the plain policy gradient, completions centred
    within their prompt.

    policy: any causal model that common.model.token_logprobs reads; a copy of it, in float64, is updated. batch: B = P * G completions,
    a prompt's G together. rewards [P, G, K], weights [K]. optimizer: sgd or adamw, whose first step divides every entry of the gradient
    by its own size; no weight decay, so that both go where the gradient says. fresh: other pairs (batch, rewards) of the same shape.
    """
    from common.model import token_logprobs as model_logprobs  # here: the mathematics above needs no transformers

    policy = copy.deepcopy(policy).double()
    start = [parameter.detach().clone() for parameter in policy.parameters()]
    rewards, weights = rewards.double(), weights.double()
    groups, size, objectives = rewards.shape
    score = rewards @ weights  # [P, G]
    uniform = torch.full_like(score, 1 / size)

    def completion_logprobs(of) -> Tensor:
        return model_logprobs(policy, of, 1.0).sum(1).view(groups, size)

    logp = completion_logprobs(batch)
    objective = covariance(uniform, rewards, logp).mean(0)  # its gradient is grad J_k on these completions, baseline included
    gradients = [torch.autograd.grad(objective[k], list(policy.parameters()), retain_graph=True) for k in range(objectives)]
    old = logp.detach()
    with torch.no_grad():
        fresh = [(other, scored.double(), completion_logprobs(other)) for other, scored in fresh]

    steps = []
    for lr in lrs:
        with torch.no_grad():
            for parameter, value in zip(policy.parameters(), start, strict=True):
                parameter.copy_(value)
        for i, parameter in enumerate(policy.parameters()):
            parameter.grad = -sum(w * g[i] for w, g in zip(weights, gradients, strict=True))
        kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
        kind(policy.parameters(), lr=lr, weight_decay=0.0).step()
        with torch.no_grad():
            moved = [parameter - value for parameter, value in zip(policy.parameters(), start, strict=True)]
            log_ratio = completion_logprobs(batch) - old
            seen = [covariance_law(uniform, scored, completion_logprobs(other) - before, 1.0).change for other, scored, before in fresh]
        steps.append(_first_step(rewards, score, uniform, log_ratio, gradients, moved, seen))
    return steps


def _first_step(rewards: Tensor, score: Tensor, uniform: Tensor, log_ratio: Tensor, gradients, moved, seen) -> FirstStep:
    both = torch.stack([score, log_ratio], -1)
    (variance, shared), (_, spread) = reward_covariance(uniform, both).mean(0).tolist()
    eta = shared / variance
    return FirstStep(
        # log_ratio is what the update tilts by, so the new policy on these completions is an exact tilt with step 1
        change=covariance_law(uniform, rewards, log_ratio, 1.0).change,
        gradient=torch.stack([sum((g * m).sum() for g, m in zip(gradient, moved, strict=True)) for gradient in gradients]),
        realised=covariance(uniform, rewards, log_ratio).mean(0),
        law=eta * covariance(uniform, rewards, score).mean(0),
        score_share=shared**2 / (variance * spread),
        size=math.sqrt(spread),
        fresh=torch.stack(seen) if seen else rewards.new_zeros(0, rewards.size(2)),
    )


def sample_testbed(prompts: int, group: int, seed: int, draw: int = 1):
    """Completions of the first training prompts of the testbed: (policy, batch, rewards [P, G, K]), a prompt's G completions together.

    Conciseness compares with the batch's own mean length, as in the first step of a run. Another `draw` is other completions of the same
    prompts.
    """
    import rewards as reward_functions
    from common.batch import pad
    from common.model import load_model, load_tokenizer
    from common.rollout import TransformersEngine
    from common.seeds import derive
    from prompts import load_prompts

    policy, tokenizer = load_model("testbed", torch.device("cpu")), load_tokenizer("testbed")
    problems = load_prompts("arithmetic", tokenizer, "", "", "", 64)["train"].batch(1, prompts, seed)
    ids, _ = TransformersEngine(policy, tokenizer).generate(problems.ids, group, 56, 1.0, [derive(seed, draw, i) for i in range(prompts)])
    batch, columns = pad([p for p in problems.ids for _ in range(group)], ids, tokenizer.pad_token_id), problems.repeat(group)
    scored = reward_functions.score(
        reward_functions.load(("rewards.accuracy:accuracy", "rewards.conciseness:conciseness", "rewards.clarity:clarity")),
        prompts=columns["prompt"],
        completions=tokenizer.batch_decode(ids, skip_special_tokens=True),
        completion_ids=ids,
        mean_length=batch.lengths.mean().item(),
        columns=columns,
        answer_check="exact",
    )
    return policy, batch, scored.view(prompts, group, -1)
