"""The paper's statements, checked: exact where completions can be enumerated, on the testbed's
language model where they cannot.

Every test is one statement of docs/theory.md or a few. Randomness is seeded; "for every" means on
all models drawn.
"""

import math
from functools import cache

import pytest
import torch

from algos import linear
from algos.mgda import min_norm_weights
from common.controllers import within_prompt_covariance
from study import theory
from support.tensors import tensor


def normal(*shape, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_prompts(seed: int, prompts: int = 5, completions: int = 7):
    """Policies, rewards of three objectives, and a score."""
    pi = torch.softmax(2 * normal(prompts, completions, seed=seed), 1)
    return pi, normal(prompts, completions, 3, seed=seed + 1), normal(*pi.shape, seed=seed + 2)


def close(actual, expected, tol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tol, atol=tol)


# --- Lemma 4.1 and Theorem 4.2 ---


def test_the_tilt_is_the_best_regularised_step():
    pi, _, score = random_prompts(1)

    def regularised(q):
        return (q * score).sum(1) - (q * (q / pi).log()).sum(1) / 3

    q = theory.tilt(pi, score, 3.0)
    close(regularised(q), (pi * (3 * score).exp()).sum(1).log() / 3, 1e-10)  # log Z / eta
    for size in (1e-3, 0.1, 1.0):  # near rivals and far ones
        rival = theory.tilt(q, normal(5, 7, seed=4), size)
        assert (regularised(rival) < regularised(q)).all()
    impossible, tempting = tensor([0.0, 0.4, 0.6]), tensor([1.0, 0.2, 0.1])
    close(theory.tilt(impossible, tempting, 1e6), tensor([0.0, 1.0, 0.0]))  # Remark D.1


def test_the_law_is_first_order_and_its_residual_is_second():
    errors = []
    for eta in (1e-3, 1e-4):
        law = theory.covariance_law(*random_prompts(3), eta)
        errors.append((law.change - law.first).norm() / law.first.norm())
        close((law.change - law.first) / law.second, tensor([1.0] * 3), 0.02)
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)


def test_the_residual_stays_within_its_bound_and_the_sign_holds_for_every_smaller_step():
    closest = 0.0
    for seed in range(300):
        pi, rewards, score = random_prompts(seed, prompts=1, completions=2 + seed % 6)
        for eta in (0.01, 0.3, 1.0, 3.0, 30.0):
            law = theory.covariance_law(pi, rewards, score, eta)
            closest = max(closest, ((law.change - law.first).abs() / law.bound).max().item())
            safe = law.first.abs() > law.bound
            assert (law.change.sign() == law.first.sign())[safe].all()
    assert 0.3 < closest <= 1 + 1e-9  # a bound that nothing comes near would say little


def test_a_linear_score_gives_the_reward_covariance_times_the_weights():
    pi, rewards, _ = random_prompts(5)
    weights = tensor([0.5, 0.3, 0.2])
    score = rewards @ weights
    close(theory.covariance(pi, rewards, score), theory.reward_covariance(pi, rewards) @ weights)
    # and the scripts' own function says the same of sampled completions, which are equally likely
    logged = within_prompt_covariance(score.flatten(), rewards.flatten(0, 1), 7)
    uniform = torch.full_like(pi, 1 / 7)
    close(theory.covariance(uniform, rewards, score).mean(0), logged)


def test_some_weights_always_improve_every_objective():
    """MGDA on the reward covariance: (C w)_k >= w'Cw >= 0 for all k. Equal weights can fail."""
    failed = 0
    for seed in range(200):
        pi, rewards, _ = random_prompts(seed, prompts=2, completions=4)
        C = theory.reward_covariance(pi, rewards).mean(0)
        weights = min_norm_weights(C)
        assert (C @ weights).min() >= weights @ C @ weights - 1e-10 >= -1e-9
        failed += bool((C.mean(1) < 0).any())
    assert failed > 10


# --- two modes, gradient steps ---


def test_two_modes_fall_to_the_bad_one_in_closed_form():
    reward, score = tensor([[0.9], [0.2]]), tensor([0.3, 0.8])  # r_g > r_b, s_g < s_b
    pi = start = tensor([0.999, 0.001])
    for n in range(41):
        p = torch.sigmoid(start.logit()[0] - n * 0.7 * 0.5)  # eq. 4
        close(pi[0], p, 1e-10)
        close(theory.covariance(pi, reward, score)[0], p * (1 - p) * 0.7 * -0.5)  # eq. 5
        pi = theory.tilt(pi, score, 0.7)


def test_the_natural_gradient_of_a_categorical_policy_is_the_weight_itself():
    for size in (2, 3, 9):
        logits, rewards, weight = normal(size, 6, seed=size).split([1, 4, 1], 1)
        pi = torch.softmax(logits[:, 0], 0)
        gradient, fisher = theory.bandit_gradient(pi, rewards), theory.bandit_fisher(pi)
        inverse, ascent = theory.pseudo_inverse(fisher), theory.bandit_gradient(pi, weight)
        close(fisher @ weight, ascent)  # d = w solves F d = grad E w
        close(inverse @ ascent, weight - weight.mean(), 1e-8)
        # and grad J_k . d = Cov(r_k, w); C is the Gram matrix of the natural gradients
        close(gradient.T @ (weight[:, 0] + 11), theory.covariance(pi, rewards, weight[:, 0]), 1e-11)
        close(torch.softmax(logits + 0.3 * weight, 0)[:, 0], theory.tilt(pi, weight[:, 0], 0.3))
        close(gradient.T @ inverse @ gradient, theory.reward_covariance(pi, rewards), 1e-9)


def test_the_smoothness_of_a_categorical_policy_bounds_its_curvature():
    closest = 0.0
    for seed in range(120):
        logits, reward = normal(2 + seed % 5, 2, seed=seed).T
        hessian = torch.func.hessian(lambda x, r=reward: torch.softmax(x, 0) @ r)(3 * logits)
        used = torch.linalg.matrix_norm(hessian, 2) / theory.bandit_smoothness(reward[:, None])
        closest = max(closest, used.item())
    assert 0.1 < closest <= 1


@cache
def shared_model(seed: int, vocabulary: int = 3, length: int = 2):
    """A tiny autoregressive model whose tokens share their parameters: theta, features, rewards."""
    states = sum(vocabulary**position for position in range(length))
    features = 0.8 + 0.2 * normal(states, 2, seed=seed).tanh()
    return normal(vocabulary, 2, seed=seed), features, normal(vocabulary**length, 3, seed=seed)


def test_enumerated_models_against_autograd():
    for vocabulary, length in ((2, 3), (3, 2)):
        theta, features, _ = shared_model(8, vocabulary, length)

        def logprobs(t, features=features, length=length):
            return theory.token_logprobs(t, features, length)

        phi, pi = theory.token_features(theta, features, length), logprobs(theta).sum(1).exp()
        assert len(theory.prefixes(vocabulary, length).unique()) == len(features)
        close(phi, torch.func.jacrev(logprobs)(theta).flatten(2))
        # the Fisher matrix is the curvature of the divergence, of tokens as of completions
        fisher, whole = theory.aggregated_fisher(pi, phi), phi.sum(1)
        divergence = torch.func.hessian(lambda t, q=pi, f=logprobs: -q @ f(t).sum(1))(theta)
        close(fisher, divergence.reshape(fisher.shape), 1e-10)
        close(fisher, whole.T @ (pi[:, None] * whole), 1e-10)


def clipping_case(seed: int):
    """Two policies of a shared model, some tokens outside the window."""
    theta, features, rewards = shared_model(seed)
    old = theory.token_logprobs(theta, features, 2)
    advantages = rewards.mean(1) - old.sum(1).exp() @ rewards.mean(1)
    theta = theta + 0.05 * (seed % 7) * normal(3, 2, seed=seed + 1)
    new, phi = theory.token_logprobs(theta, features, 2), theory.token_features(theta, features, 2)
    margins = theory.clip_margins(old, new, phi, advantages, rewards, 0.2)
    return theta, features, rewards, old, advantages, margins


def test_margins_are_the_slopes_of_a_natural_gradient_step_of_the_scripts_loss():
    """Theorem C.2 and the update of Corollary C.4, whose loss is the scripts', clipped and not."""
    for seed in range(20):
        theta, features, rewards, old, advantages, margins = clipping_case(seed)
        phi = theory.token_features(theta, features, 2)

        def values(t, features=features, rewards=rewards):
            return theory.token_logprobs(t, features, 2).sum(1).exp() @ rewards

        def surrogate(t, clip, old=old, features=features, advantages=advantages):
            ratio = (theory.token_logprobs(t, features, 2) - old).exp()
            loss, _ = linear.policy_loss(ratio, advantages, clip, clip, 0.0)
            return -(old.sum(1).exp()[:, None] * loss).sum()

        pi = theory.token_logprobs(theta, features, 2).sum(1).exp()
        inverse = theory.pseudo_inverse(theory.aggregated_fisher(pi, phi))
        for clip, expected in ((0.2, margins.clipped), (math.inf, margins.unclipped)):
            direction = inverse @ torch.func.grad(surrogate)(theta, clip).flatten()
            slope = torch.func.jvp(values, (theta,), (direction.view(3, 2),))[1]
            close(expected, slope, 1e-9)


def test_the_clipped_margin_is_within_the_distortion_of_the_unclipped_one():
    flipped = 0
    for seed in range(200):
        *_, margins = clipping_case(seed)
        assert (margins.clipped >= margins.bound - 1e-10).all()
        flipped += int(((margins.unclipped > 0) & (margins.clipped < 0)).sum())
    assert flipped > 5  # so the bound is not idle


@pytest.mark.parametrize(
    ("distance", "unclipped", "clipped", "bound"),
    [
        (0.50, [0.0172, 0.0609, 0.0609], [0.0172, 0.0609, 0.0609], [0.0172, 0.0609, 0.0609]),
        (0.61, [0.0201, 0.0594, 0.0594], [-0.0297, 0.0453, 0.0453], [-0.0514, 0.0063, 0.0063]),
        (0.65, [0.0211, 0.0588, 0.0588], [0.0016, -0.0006, -0.0006], [-0.0850, -0.0196, -0.0196]),
    ],
)
def test_clipping_turns_margins(distance, unclipped, clipped, bound):
    """The good mode leaves the window first, and what stays pushes accuracy down."""
    _, margins = theory.clipping_example(distance)
    for actual, expected in zip(margins, (unclipped, clipped, bound), strict=True):
        torch.testing.assert_close(actual, tensor(expected), rtol=0, atol=6e-5)


# --- Theorem 6.4 ---


@cache
def models() -> list[theory.Landscape]:
    """Categorical policies, and autoregressive models with shared parameters whose best completion
    repeats one token, which aligns its gradients."""
    found = list(theory.bandits(800, 9))
    for seed in range(210):
        vocabulary, length = ((2, 2), (3, 2), (2, 3))[seed % 3]
        theta, features, rewards = shared_model(seed, vocabulary, length)
        score = 0.9 * rewards[:, 0].sigmoid()
        score[0] = 1.0
        bias = torch.eye(vocabulary, 1).double()  # towards the token that is repeated
        found.append(theory.landscape(theta + bias, features, score, length))
    return found


def test_the_lemmas_behind_theorem_6_4():
    aligned = positive = 0
    for at in models():
        assert at.best_gradient.norm() >= at.best_gradient_floor * (1 - 1e-9)  # Lemma D.3
        gaps = (at.best - at.second) * at.rest, at.gap, (at.best - at.worst) * at.rest  # Lemma D.5
        assert gaps[0] * (1 - 1e-9) <= gaps[1] <= gaps[2] * (1 + 1e-9)
        plain, repaired = theory.pl_bracket(at), theory.repaired_bracket(at)
        assert at.slope >= max(plain, repaired) - 1e-12  # eq. 16
        mu = max(repaired, 0) ** 2 / (2 * (at.best - at.worst) * at.rest)
        assert mu * (1 - 1e-9) <= theory.pl_ratio(at) <= theory.pl_ratio_ceiling(at) * (1 + 1e-9)
        aligned += at.length > 1 and at.alignment > 0
        positive += mu > 0
    assert aligned > 70
    assert positive > 100


def test_the_premise_of_the_theorem_never_holds():
    """docs/theory.md proves it: with sqrt(2), and with the sharpest bound of ||e_y - p||."""
    for at in models():
        assert at.delta <= at.rest * (1 + 1e-9)
        assert theory.pl_bracket(at) <= theory.pl_bracket(at, at.token_bound) <= 1e-14
    table = torch.eye(4, dtype=torch.float64)  # where no two tokens share parameters: c = 0
    at = theory.landscape(normal(3, 4, seed=11), table, tensor(range(9)), 2)
    assert at.alignment == at.best_gradient_floor == 0


def test_the_pl_ratio_of_two_completions_is_greatest_at_two_thirds():
    one = torch.ones(1, 1, dtype=torch.float64)  # the features of a categorical policy
    for p in (0.01, 2 / 3, 1 - 1e-6):
        at = theory.landscape(tensor([[p / (1 - p)], [1.0]]).log(), one, tensor([1.0, 0.6]), 1)
        assert theory.pl_ratio(at) == pytest.approx(p**2 * (1 - p) * 0.4, rel=1e-6)


# --- a language model ---


def test_first_order_on_the_testbed_model():
    policy, draws = theory.draw_testbed(4, 16, 1, 2)
    for optimizer, lr in (("SGD", 1e-4), ("AdamW", 1e-6)):
        steps = theory.first_step(policy, [*draws, draws[0]], optimizer, [lr, 2 * lr, 1000 * lr])
        error = [(s.change - s.gradient).norm() / s.change.norm() for s in steps]
        assert error[0] < 0.02 < 0.2 < error[2]
        assert error[1] / error[0] == pytest.approx(2, abs=0.2)  # relatively of first order
        small = steps[0]
        assert 0.1 < small.share < 0.9  # the score is a part of what the optimizer tilts by
        assert (small.law.sign() == small.change.sign()).all()
        # what others see: the very same where they are the same, less of the score elsewhere
        close(small.fresh[1], small.change)
        assert small.fresh[0].sum() < small.change.sum()
