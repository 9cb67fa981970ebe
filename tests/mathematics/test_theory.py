"""The paper's statements, checked: exact where completions can be enumerated, on the testbed's language model where they cannot.

Every test is one statement of docs/theory.md. Randomness is seeded; "for every" means on all models drawn.
"""

import dataclasses
import math
from functools import cache
from itertools import pairwise

import pytest
import torch

from algos import linear
from algos.mgda import min_norm_weights
from study import mathematics as theory

ONE = torch.ones(1, 1, dtype=torch.float64)  # the features of a categorical policy
COMPACT_LONG_RUSH = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1]], dtype=torch.float64)  # accuracy, conciseness, clarity (docs/testbed.md)


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(seed: int):
    """Uniform and normal float64 tensors from one seed."""
    generator = torch.Generator().manual_seed(seed)
    return (
        lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64),
        lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64),
    )


def random_prompts(seed: int, prompts: int = 5, completions: int = 7, objectives: int = 3):
    uniform, normal = random(seed)
    return torch.softmax(2 * normal(prompts, completions), 1), uniform(prompts, completions, objectives), uniform(prompts, completions)


def close(actual, expected, tol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tol, atol=tol)


# --- Lemma 4.1 and Theorem 4.2 ---


def test_the_tilt_is_the_best_regularised_step():
    pi, _, score = random_prompts(1)
    uniform, _ = random(2)

    def regularised(q, eta):
        return (q * score).sum(1) - (q * (q / pi).log()).sum(1) / eta

    for eta in (0.1, 1.0, 10.0):
        q = theory.tilt(pi, score, eta)
        close(q.sum(1), torch.ones(5, dtype=torch.float64))
        best = regularised(q, eta)
        close(best, (pi * (eta * score).exp()).sum(1).log() / eta, 1e-10)  # log Z / eta
        for size in (1e-3, 0.1, 1.0):  # near rivals and far ones
            rival = (1 - size) * q + size * torch.distributions.Dirichlet(torch.ones(7).double()).expand((5,)).sample()
            assert (regularised(rival, eta) < best).all()
            nudged = q * (1 + size * (uniform(5, 7) - 0.5))
            assert (regularised(nudged / nudged.sum(1, keepdim=True), eta) < best).all()


def test_the_tilt_gives_nothing_to_the_impossible_and_does_not_overflow():
    pi, score = tensor([0.0, 0.4, 0.6]), tensor([1.0, 0.2, 0.1])
    assert theory.tilt(pi, score, 5.0)[0] == 0  # Remark D.1
    close(theory.tilt(pi, score, 1e6), tensor([0.0, 1.0, 0.0]))


def test_the_law_leaves_a_residual_of_second_order():
    etas = tensor([0.1, 0.05, 0.02, 0.01, 0.005])
    pi, rewards, score = random_prompts(3)
    laws = [theory.covariance_law(pi, rewards, score, float(eta)) for eta in etas]
    residual = torch.stack([law.change - law.first for law in laws])  # [etas, K]
    second = torch.stack([law.second for law in laws])
    x = etas.log() - etas.log().mean()
    slope = x @ residual.abs().log() / (x @ x)
    assert (slope - 2).abs().max() < 0.05
    assert ((residual - second).abs().amax(1) < etas**3 / 8).all()  # what is left is of third order
    assert (residual[-1] / second[-1] - 1).abs().max() < 0.02


def test_the_change_is_the_covariance_integrated_along_the_tilt():
    pi, rewards, score = random_prompts(4)
    times = torch.linspace(0, 3, 2001, dtype=torch.float64)
    path = torch.stack([theory.covariance(theory.tilt(pi, score, float(t)), rewards, score).mean(0) for t in times])
    close(torch.trapezoid(path, times, dim=0), theory.covariance_law(pi, rewards, score, 3.0).change, 1e-6)


def test_the_residual_stays_within_its_bound_and_the_sign_holds_for_every_smaller_step():
    closest = 0.0
    for seed in range(300):
        pi, rewards, score = random_prompts(seed, prompts=1, completions=2 + seed % 6)
        for eta in (0.01, 0.3, 1.0, 3.0, 30.0):
            law = theory.covariance_law(pi, rewards, score, eta)
            used = ((law.change - law.first).abs() / law.bound).max().item()
            closest = max(closest, used)
            safe = law.first.abs() > law.bound
            assert (law.change.sign() == law.first.sign())[safe].all()
    assert 0.3 < closest <= 1 + 1e-9  # a bound that nothing comes near would say little


def test_a_linear_score_gives_the_reward_covariance_times_the_weights():
    pi, rewards, _ = random_prompts(5)
    weights = tensor([0.5, 0.3, 0.2])
    C = theory.reward_covariance(pi, rewards)
    close(theory.covariance(pi, rewards, rewards @ weights), C @ weights)
    assert torch.linalg.eigvalsh(C).min() > -1e-15
    # and the scripts' own function says the same of sampled completions, which are equally likely
    uniform = torch.full((5, 7), 1 / 7, dtype=torch.float64)
    logged = linear.within_prompt_covariance((rewards @ weights).flatten(), rewards.flatten(0, 1), 7)
    close(theory.covariance(uniform, rewards, rewards @ weights).mean(0), logged)


def test_some_weights_always_improve_every_objective():
    """MGDA on the reward covariance: its optimality conditions say (C w)_k >= w'Cw >= 0 for all k. Equal weights can fail."""
    failed = 0
    for seed in range(200):
        pi, rewards, _ = random_prompts(seed, prompts=2, completions=4)
        C = theory.reward_covariance(pi, rewards).mean(0)
        weights = min_norm_weights(C)
        assert (weights >= 0).all()
        assert (C @ weights).min() >= weights @ C @ weights - 1e-10
        failed += bool((C.mean(1) < 0).any())
        change = theory.covariance_law(pi, rewards, rewards @ weights, 1e-3).change
        assert change.min() > -1e-9
    assert failed > 10


# --- two modes ---


def test_two_mode_vector(vectors):
    entry = vectors["two_mode_update"]
    given, expected, tol = entry["inputs"], entry["expected"], entry["tol"]
    p, score, reward = tensor(given["p"]), tensor(given["s"]), tensor(given["r"])
    after = theory.two_mode_probability(p, score[0] - score[1], given["eta"])
    close(after, tensor(expected["p_next"]), tol)
    close(theory.two_mode_covariance(p, reward[0] - reward[1], score[0] - score[1]), tensor(expected["cov"]), tol)
    pi = torch.stack([p, 1 - p])[None]
    law = theory.covariance_law(pi, reward[None, :, None], score[None], given["eta"])
    close(law.change[0], tensor(expected["dJ"]), tol)
    close(law.first[0] / given["eta"], tensor(expected["cov"]), tol)


def test_two_modes_fall_to_the_bad_one_in_closed_form():
    reward, score, eta = tensor([[0.9], [0.2]]), tensor([0.3, 0.8]), 0.7  # r_g > r_b, s_g < s_b
    pi = tensor([0.999, 0.001])
    p, values = pi[0], []
    for n in range(41):
        close(pi[0], theory.two_mode_probability(p, score[0] - score[1], eta, n), 1e-10)
        close(theory.covariance(pi, reward, score)[0], theory.two_mode_covariance(pi[0], tensor(0.7), tensor(-0.5)), 1e-12)
        values.append(theory.mean_rewards(pi, reward).item())
        pi = theory.tilt(pi, score, eta)
    assert all(after < before for before, after in pairwise(values))
    assert values[0] > 0.899
    assert values[-1] == pytest.approx(0.2, abs=1e-3)


# --- Lemma C.1, Theorem C.2, Corollary C.3 ---


def test_bandit_vector(vectors):
    entry = vectors["bandit_natural_gradient_identity"]
    given, expected, tol = entry["inputs"], entry["expected"], entry["tol"]
    pi, reward, weight = tensor(given["pi"]), tensor(given["r"])[:, None], tensor(given["w"])
    close(theory.mean_rewards(pi, reward)[0], tensor(expected["J0"]), tol)
    close(theory.covariance(pi, reward, weight)[0], tensor(expected["cov"]), tol)
    close(theory.third_moment(pi, reward, weight)[0], tensor(expected["third_cross_moment"]), tol)
    for eta, after in zip(given["etas"], expected["J_after"], strict=True):
        close(theory.mean_rewards(theory.tilt(pi, weight, eta), reward)[0], tensor(after), tol)
        stepped = torch.softmax(pi.log() + eta * weight, 0)  # the natural-gradient step is the tilt
        close(stepped, theory.tilt(pi, weight, eta))


def test_the_natural_gradient_of_a_categorical_policy_is_the_weight_itself():
    _, normal = random(6)
    for size in (2, 3, 9):
        logits, rewards, weight = normal(size), normal(size, 4), normal(size)
        pi = torch.softmax(logits, 0)
        gradient = theory.bandit_gradient(pi, rewards)
        by_autograd = torch.func.jacrev(lambda x, r=rewards: torch.softmax(x, 0) @ r)(logits).T
        close(gradient, by_autograd)
        ascent, fisher = theory.bandit_gradient(pi, weight[:, None])[:, 0], theory.bandit_fisher(pi)
        close(fisher @ weight, ascent)  # d = w solves F d = grad E w
        close(theory.natural_gradient(fisher, ascent), weight - weight.mean(), 1e-8)
        close(gradient.T @ weight, theory.covariance(pi, rewards, weight))  # and grad J_k . d = Cov(r_k, w)
        for constant in (-3.0, 11.0):
            close(gradient.T @ (weight + constant), theory.covariance(pi, rewards, weight), 1e-11)
        # C is the Gram matrix of the natural gradients
        natural = theory.natural_gradient(fisher, gradient)
        close(natural.T @ fisher @ natural, theory.reward_covariance(pi, rewards), 1e-9)


def test_smoothness_of_a_categorical_policy_and_the_gain_it_guarantees():
    uniform, normal = random(7)
    closest = 0.0
    for trial in range(120):
        size = 2 + trial % 5
        logits, reward = 3 * normal(size), uniform(size, 1)
        smoothness = theory.bandit_smoothness(reward)
        hessian = torch.func.hessian(lambda x, r=reward: torch.softmax(x, 0) @ r[:, 0])(logits)
        closest = max(closest, (torch.linalg.matrix_norm(hessian, 2) / smoothness[0]).item())
        pi = torch.softmax(logits, 0)
        direction = normal(size)
        slope = theory.bandit_gradient(pi, reward).T @ direction
        for step in (1e-3, 0.1, 1.0, 10.0):
            gain = theory.mean_rewards(torch.softmax(logits + step * direction, 0), reward) - theory.mean_rewards(pi, reward)
            assert gain >= theory.guaranteed_gain(slope, direction, smoothness, step) - 1e-13
            if 0 < step <= 2 * slope / (smoothness * direction.square().sum()):
                assert gain >= -1e-13
    assert 0.1 < closest <= 1


@cache
def shared_model(seed: int, vocabulary: int = 3, length: int = 2, width: int = 2):
    """A tiny autoregressive model whose tokens share their parameters: theta, features, rewards."""
    uniform, normal = random(seed)
    states = sum(vocabulary**position for position in range(length))
    return normal(vocabulary, width), 0.3 + uniform(states, width), uniform(vocabulary**length, 3)


def test_every_prefix_has_a_number_of_its_own():
    for vocabulary, length in ((2, 3), (3, 2), (4, 1)):
        tokens, places = theory.completions(vocabulary, length).tolist(), theory.prefixes(vocabulary, length).tolist()
        numbers = {(tuple(y[:place]), row[place]) for y, row in zip(tokens, places, strict=True) for place in range(length)}
        count = sum(vocabulary**place for place in range(length))
        assert len(numbers) == len({prefix for prefix, _ in numbers}) == count
        assert {number for _, number in numbers} == set(range(count))


def test_enumerated_model_against_autograd():
    for vocabulary, length in ((2, 3), (3, 2), (4, 1)):
        theta, features, rewards = shared_model(8, vocabulary, length)
        logp = theory.token_logprobs(theta, features, length)
        pi, phi = logp.sum(1).exp(), theory.token_features(theta, features, length)
        close(pi.sum(), tensor(1.0))
        close(phi, torch.func.jacrev(lambda t, f=features, n=length: theory.token_logprobs(t, f, n))(theta).flatten(2))
        gradient = torch.func.jacrev(lambda t, f=features, n=length, r=rewards: theory.token_logprobs(t, f, n).sum(1).exp() @ r)(theta)
        close(theory.policy_gradient(pi, phi, rewards), gradient.flatten(1).T)
        # the Fisher matrix is the curvature of the divergence, and the same for tokens as for completions
        fisher = theory.aggregated_fisher(pi, phi)
        curvature = torch.func.hessian(lambda t, f=features, n=length, a=logp, q=pi: q @ (a - theory.token_logprobs(t, f, n)).sum(1))(theta)
        close(fisher, curvature.reshape(fisher.shape), 1e-10)
        whole = phi.sum(1)
        close(fisher, torch.einsum("n,nd,ne->de", pi, whole, whole), 1e-10)


def test_natural_gradient_step_improves_what_its_margins_say():
    """Theorem C.2 with a KL regulariser: margins m_k = <grad J_k, F^+(v + reg)> > 0 give a step that degrades no objective."""
    checked = 0
    for seed in range(40):
        theta, features, rewards = shared_model(seed)
        start = shared_model(seed + 1000)[0]
        logp, phi = theory.token_logprobs(theta, features, 2), theory.token_features(theta, features, 2)
        pi = logp.sum(1).exp()
        divergence = (logp - theory.token_logprobs(start, features, 2)).sum(1)
        vector = theory.policy_gradient(pi, phi, torch.stack([rewards.mean(1) - 0.05 * divergence], 1))[:, 0]
        fisher, gradient = theory.aggregated_fisher(pi, phi), theory.policy_gradient(pi, phi, rewards)
        direction = theory.natural_gradient(fisher, vector)
        close(fisher @ direction, vector, 1e-9)
        margins = gradient.T @ direction
        # without the redundant logit F is invertible, as the theorem wants, and the margins are the same
        kept = slice(0, 4)
        close(gradient[kept].T @ torch.linalg.solve(fisher[kept, kept], vector[kept]), margins, 1e-8)

        def values(step, theta=theta, features=features, rewards=rewards, direction=direction):
            return theory.token_logprobs(theta + step * direction.view(3, 2), features, 2).sum(1).exp() @ rewards

        close(torch.func.jacrev(values)(tensor(0.0)), margins, 1e-10)  # the margin is the slope
        if margins.min() <= 0:
            continue
        along = torch.linspace(0, 4, 41, dtype=torch.float64)  # second derivatives along the segment bound L_k ||d||^2 from below
        curvature = torch.stack([torch.func.hessian(values)(t).abs() for t in along]).amax(0) * 1.05
        step = min(4.0, (2 * margins / curvature).min().item())
        for share in (1e-3, 0.3, 1.0):
            assert (values(tensor(share * step)) > values(tensor(0.0)) - 1e-13).all()
        checked += 1
    assert checked >= 10


# --- Corollary C.4 ---


def clipping_case(seed: int, distance: float):
    """Two policies of one shared model, `distance` apart, with group-normalised scores as advantages."""
    theta, features, rewards = shared_model(seed)
    _, normal = random(seed + 1)
    old = theory.token_logprobs(theta, features, 2)
    score, sampled = rewards.mean(1), old.sum(1).exp()
    centred = score - sampled @ score
    advantages = centred / (sampled @ centred**2).sqrt()
    return theta + distance * normal(3, 2), features, rewards, old, advantages


def test_the_clipped_update_is_the_gradient_of_the_clipped_loss():
    """The v of Corollary C.4 is what autograd gives for the loss of the scripts, on both sides of the window."""
    fractions = []
    for seed in range(20):
        theta, features, rewards, old, advantages = clipping_case(seed, 0.4)

        def surrogate(t, clip, old=old, features=features, advantages=advantages):
            ratio = (theory.token_logprobs(t, features, 2) - old).exp()
            return -(old.sum(1).exp()[:, None] * linear.policy_loss(ratio, advantages, clip, clip, 0.0)).sum()

        new, phi = theory.token_logprobs(theta, features, 2), theory.token_features(theta, features, 2)
        pi = new.sum(1).exp()
        inverse = torch.linalg.pinv(theory.aggregated_fisher(pi, phi), hermitian=True, rtol=1e-12)
        onto = theory.policy_gradient(pi, phi, rewards).T @ inverse
        margins = theory.clip_margins(old, new, phi, advantages, rewards, 0.2)
        close(margins.clipped, onto @ torch.func.grad(surrogate)(theta, 0.2).flatten(), 1e-9)
        close(margins.unclipped, onto @ torch.func.grad(surrogate)(theta, float("inf")).flatten(), 1e-9)
        fractions.append(margins.clipped_fraction.item())
    assert 0.1 < sum(fractions) / 20 < 0.6


def test_the_clipped_margin_is_within_the_distortion_of_the_unclipped_one():
    safe = flipped = 0
    for seed in range(300):
        theta, features, rewards, old, advantages = clipping_case(seed, 0.02 + 0.3 * (seed % 7) / 7)
        new, phi = theory.token_logprobs(theta, features, 2), theory.token_features(theta, features, 2)
        margins = theory.clip_margins(old, new, phi, advantages, rewards, 0.2)
        assert (margins.clipped >= margins.bound - 1e-10).all()
        assert margins.clipped[(margins.unclipped > 0) & (margins.bound > 0)].gt(0).all()
        safe += int((margins.bound > 0).sum())
        flipped += int(((margins.unclipped > 0) & (margins.clipped < 0)).sum())
        if margins.clipped_fraction == 0:
            close(margins.clipped, margins.unclipped)
    assert safe > 50
    assert flipped > 5  # so the condition is not idle


def test_clipping_flips_margins():
    """The good mode leaves the window first, and what stays in it pushes accuracy down; once `long` is out too, the other two fall."""
    start, advantages = tensor([0.22, 0.20, 0.58]), tensor([0.98, -1.02, -0.02]) / 3
    for distance, active, unclipped, clipped in (
        (0.50, [1.0, 1.0, 1.0], [0.0172, 0.0609, 0.0609], [0.0172, 0.0609, 0.0609]),
        (0.61, [0.0, 1.0, 1.0], [0.0201, 0.0594, 0.0594], [-0.0297, 0.0453, 0.0453]),
        (0.65, [0.0, 0.0, 1.0], [0.0211, 0.0588, 0.0588], [0.0016, -0.0006, -0.0006]),
    ):
        ratio, margins = theory.clipping_example(distance)
        assert ((ratio <= 1.2) & (ratio >= 0.8)).double().tolist() == active
        for actual, expected, weight in ((margins.unclipped, unclipped, 1.0), (margins.clipped, clipped, tensor(active))):
            close(actual, theory.covariance(start * ratio, COMPACT_LONG_RUSH, advantages * weight), 1e-10)  # Corollary C.3
            torch.testing.assert_close(actual, tensor(expected), rtol=0, atol=6e-5)
        assert (margins.bound <= margins.clipped + 1e-12).all()


# --- Theorem 6.4 ---


def bandits(count: int, seed: int = 9):
    uniform, normal = random(seed)
    for trial in range(count):
        size = 2 + trial % 8
        yield theory.landscape((1 + trial % 5) * normal(size, 1), ONE, uniform(size), 1)


def sequences(count: int, seed: int = 10):
    """Autoregressive models with shared parameters whose best completion repeats one token, which aligns its gradients."""
    uniform, normal = random(seed)
    for trial in range(count):
        vocabulary, length = ((2, 2), (3, 2), (2, 3))[trial % 3]
        states = sum(vocabulary**position for position in range(length))
        theta, features = normal(vocabulary, 2), 0.5 + 0.2 * uniform(states, 2)
        theta[0] += 2 * uniform(1)
        score = 0.9 * uniform(vocabulary**length)
        score[0] = 1.0
        yield theory.landscape(theta, features, score, length)


@cache
def models() -> list[theory.Landscape]:
    return [*bandits(800), *sequences(210)]


def test_the_gradient_of_the_best_completion_has_its_floor():
    aligned = 0
    for at in models():
        assert at.best_gradient.norm() >= at.best_gradient_floor * (1 - 1e-9)
        aligned += at.length > 1 and at.alignment > 0
    assert aligned > 70


def test_a_table_has_no_aligned_token_gradients():
    """Assumption 6.3 needs shared parameters: in a table every token's gradient has entries of its own, so c = 0 and the floor is 0."""
    _, normal = random(11)
    at = theory.landscape(normal(3, 4), torch.eye(4, dtype=torch.float64), torch.arange(9, dtype=torch.float64), 2)
    assert at.alignment == 0
    assert at.best_gradient_floor == 0


def test_the_value_gap_is_between_its_bounds():
    for at in models():  # Lemma D.5 and its sharper form
        assert at.margin * at.rest * (1 - 1e-9) <= at.gap
        assert at.gap <= (at.best - at.worst) * at.rest * (1 + 1e-9)
        assert at.best - at.worst <= 2 * at.score_bound


def test_the_brackets_bound_the_slope_and_give_valid_constants():
    positive = 0
    for at in models():
        plain, repaired = theory.pl_bracket(at), theory.repaired_bracket(at)
        assert at.slope >= max(plain, repaired) - 1e-12
        assert theory.pl_bracket(at, at.token_bound) >= plain
        mu = theory.pl_constant(repaired, at, at.best - at.worst)
        assert theory.pl_ratio(at) >= mu * (1 - 1e-9)
        positive += mu > 0
    assert positive > 100


def test_the_premise_of_the_theorem_never_holds():
    """docs/theory.md proves it: not with sqrt(2), and not with the sharpest bound of ||e_y - p|| either."""
    nearest = -math.inf
    for at in models():
        assert at.delta <= at.rest * (1 + 1e-9)
        for bound in (math.sqrt(2), at.token_bound):
            assert theory.pl_bracket(at, bound) <= theory.pl_bracket_ceiling(at, bound) + 1e-14
            assert theory.pl_bracket_ceiling(at, bound) <= 1e-14
        assert theory.pl_bracket(at) < 0
        assert theory.pl_constant(theory.pl_bracket(at), at, 2 * at.score_bound) == 0
        if at.vocabulary > 2:  # with two tokens it comes as near to 0 as one likes when p -> 1
            nearest = max(nearest, theory.pl_bracket(at) / (at.score_bound * at.sigma_max * at.length * at.rest))
    assert nearest <= math.sqrt(3 / 2) - math.sqrt(2)  # delta <= 1-p in the ceiling


def test_the_repaired_bracket_and_the_ratio_do_not_see_a_constant_in_the_score():
    theta, features, _ = shared_model(12)
    score = torch.linspace(0, 1, 9, dtype=torch.float64) ** 2
    at, moved = (theory.landscape(theta, features, score + shift, 2) for shift in (0.0, 5.0))
    assert theory.repaired_bracket(moved) == pytest.approx(theory.repaired_bracket(at), rel=1e-9)
    assert theory.pl_ratio(moved) == pytest.approx(theory.pl_ratio(at), rel=1e-9)
    assert theory.pl_bracket(moved) < theory.pl_bracket(at)  # the paper's does


def test_the_pl_ratio_of_a_categorical_policy():
    """Between p^2 (V* - V) / 2 (entry y* of the gradient, p (s* - V), alone gives it) and a ceiling that vanishes as p -> 1."""
    for at in bandits(600):
        assert theory.pl_ratio(at) >= at.p**2 * at.gap / 2 * (1 - 1e-9)
    for at in models():
        assert theory.pl_ratio(at) <= theory.pl_ratio_ceiling(at) * (1 + 1e-9)
    for p in (0.01, 0.5, 2 / 3, 0.9, 1 - 1e-6):  # two completions: p^2 (1-p) Delta, greatest at 2/3
        at = theory.landscape(tensor([[math.log(p / (1 - p))], [0.0]]), ONE, tensor([1.0, 0.6]), 1)
        assert theory.pl_ratio(at) == pytest.approx(p**2 * (1 - p) * 0.4, rel=1e-6)


def test_equal_best_scores_are_refused():
    with pytest.raises(ValueError, match="not unique"):
        theory.landscape(tensor([[0.0], [0.0], [0.0]]), ONE, tensor([1.0, 1.0, 0.0]), 1)


# --- a language model ---


@pytest.fixture(scope="module")
def testbed():
    return theory.sample_testbed(prompts=4, group=16, seed=1), theory.sample_testbed(prompts=4, group=16, seed=1, draw=2)


def test_first_order_on_the_testbed_model(testbed):
    (policy, batch, rewards), (_, other, other_rewards) = testbed
    assert not torch.equal(batch.completions, other.completions)
    weights = torch.full((3,), 1 / 3)
    before = [parameter.clone() for parameter in policy.parameters()]
    for optimizer, lrs in (("sgd", [1e-4, 2e-4, 0.1]), ("adamw", [1e-6, 2e-6, 1e-3])):
        fresh = [(batch, rewards), (other, other_rewards)]
        small, double, large = theory.first_step(policy, batch, rewards, weights, optimizer, lrs, fresh)
        error = [(s.change - s.gradient).norm() / s.change.norm() for s in (small, double, large)]
        assert error[0] < 0.02
        assert error[1] / error[0] == pytest.approx(2, abs=0.2)  # absolutely of second order, relatively of first
        assert error[2] > 0.2
        # a small step is the tilt by log pi_new / pi_old, so its covariances say the same as the gradients
        close(small.realised, small.gradient, 2e-6)
        # the meant score is a part of what the optimizer tilts by, and the law's signs are right here
        assert 0.1 < small.score_share < 0.9
        assert (small.law.sign() == small.change.sign()).all()
        # what others see: the very same where they are the same, less of the score where they are not
        close(small.fresh[0], small.change)
        assert small.fresh[1].sum() < small.change.sum()
        close(small.law @ weights.double(), small.realised @ weights.double(), 1e-12)  # eta is fitted to the score
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


# --- purity ---


def test_no_function_changes_its_arguments():
    pi, rewards, score = random_prompts(13)
    theta, features, sequence_rewards = shared_model(13)
    logp, phi = theory.token_logprobs(theta, features, 2), theory.token_features(theta, features, 2)
    arguments = (pi, rewards, score, theta, features, sequence_rewards, logp, phi)
    copies = [argument.clone() for argument in arguments]
    theory.covariance_law(pi, rewards, score, 0.5)
    theory.reward_covariance(pi, rewards)
    theory.clip_margins(logp, logp, phi, sequence_rewards[:, 0], sequence_rewards, 0.2)
    at = theory.landscape(theta, features, sequence_rewards[:, 0], 2)
    assert all(torch.equal(a, b) for a, b in zip(arguments, copies, strict=True))
    assert all(isinstance(value, float | int | torch.Tensor) for value in dataclasses.asdict(at).values())
