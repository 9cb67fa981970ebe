"""Advantages, losses and covariances against the reference vectors, finite differences and laws
they must obey, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos import ctwa, linear
from common.controllers import first_order_change, within_prompt_covariance
from support.tensors import close, finite_difference, tensor

INF = float("inf")


# --- advantages ---


def test_reinforce_advantages_match_the_vector(vectors):
    entry = vectors["reinforce_pp_whitening"]
    mask = tensor(entry["inputs"]["mask"])
    scores = tensor(entry["inputs"]["token_rewards"]).sum(1)
    advantages = linear.estimate_advantages(scores, mask.sum(1), 2, "reinforce")
    close(advantages[:, None] * mask, entry["expected"]["advantages"], entry["tol"])


def test_grpo_advantages_match_the_vectors(vectors):
    entry = vectors["grpo_advantage"]
    advantages = linear.estimate_advantages(
        tensor(entry["inputs"]["scores"]), torch.ones(8), 4, "grpo"
    )
    close(advantages, entry["expected"]["advantages"], entry["tol"])
    # the other vector's group of one is refused by --completions; its group of equal scores must
    # give no advantage
    equal = vectors["grpo_degenerate_groups"]
    advantages = linear.estimate_advantages(
        tensor(equal["inputs"]["scores"][:4]), torch.ones(4), 4, "grpo"
    )
    close(advantages, equal["expected"]["advantages"][:4], equal["tol"])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.floats(0.5, 100), st.floats(-5, 5))
def test_advantages_are_centred_scaled_and_invariant_to_units(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(24, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 30, (24,), generator=generator).double()
    for estimator in ("reinforce", "grpo"):
        advantages = linear.estimate_advantages(scores, lengths, 6, estimator)
        moved = linear.estimate_advantages(scale * scores + shift, lengths, 6, estimator)
        torch.testing.assert_close(
            moved, advantages, rtol=2e-3, atol=1e-3
        )  # the epsilons are all that breaks it
        if estimator == "reinforce":  # mean 0 and variance 1 over tokens
            assert abs((lengths * advantages).sum()) < 1e-9 * lengths.sum()
            assert abs((lengths * advantages**2).sum() / (lengths.sum() - 1) - 1) < 1e-5
        else:
            assert advantages.view(-1, 6).mean(1).abs().max() < 1e-12


# --- policy loss and KL ---


def test_dual_clip_loss_and_its_gradient_match_the_vector(vectors):
    entry = vectors["ppo_dual_clip_loss"]
    ratio = tensor(entry["inputs"]["ratio"])[:, None].requires_grad_()
    clips = (entry["inputs"]["eps"], entry["inputs"]["eps"], entry["inputs"]["c"])
    loss, _ = linear.policy_loss(ratio, tensor(entry["inputs"]["A"]), *clips)
    close(loss.detach()[:, 0], entry["expected"]["loss"], entry["tol"])
    (gradient,) = torch.autograd.grad(loss.sum(), ratio)
    close(gradient[:, 0], entry["expected"]["dloss_dratio"], entry["tol"])


def test_policy_loss_without_clip_is_reinforce():
    ratio = torch.rand(5, 7, dtype=torch.float64) * 10
    advantages = torch.randn(5, dtype=torch.float64)
    loss, active = linear.policy_loss(ratio, advantages, INF, INF, 0.0)
    torch.testing.assert_close(loss, -advantages[:, None] * ratio)
    assert active.all()


def test_active_tokens_are_those_with_a_gradient():
    ratio = (torch.rand(40, 9, dtype=torch.float64) * 2).requires_grad_()
    advantages = torch.randn(40, dtype=torch.float64)
    for dual in (0.0, 1.5):
        loss, active = linear.policy_loss(ratio, advantages, 0.2, 0.3, dual)
        (gradient,) = torch.autograd.grad(loss.sum(), ratio)
        assert torch.equal(gradient != 0, active)
    assert (ratio[advantages < 0] > 1.5).any()


def test_one_token_that_counts_has_no_spread_and_no_advantage():
    scores = tensor([torch.nan, 0.7, torch.nan, torch.nan])
    found = linear.estimate_advantages(scores, tensor([3.0, 1.0, 2.0, 2.0]), 2, "reinforce")
    assert found.tolist() == [0.0] * 4


def test_kl_matches_the_vector(vectors):
    entry = vectors["low_var_kl"]
    kl = linear.kl_penalty(tensor(entry["inputs"]["logp"]), tensor(entry["inputs"]["ref_logp"]))
    close(kl, entry["expected"]["k3"], entry["tol"])


def test_kl_is_an_unbiased_non_negative_estimate():
    policy, reference = (torch.randn(2, 6, dtype=torch.float64) / 2).log_softmax(
        -1
    )  # far from the clamps, which would bias it
    kl = linear.kl_penalty(policy, reference)
    assert (kl >= 0).all()
    torch.testing.assert_close(
        (policy.exp() * kl).sum(), (policy.exp() * (policy - reference)).sum()
    )


@pytest.mark.parametrize(("clip", "dual"), [(INF, 0.0), (0.2, 0.0), (0.2, 3.0)])
def test_loss_gradient_against_finite_differences(clip, dual):
    generator = torch.Generator().manual_seed(0)
    logp, old, ref = (
        torch.randn(6, 5, generator=generator, dtype=torch.float64) * 0.7 for _ in range(3)
    )
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)

    def loss(logp):
        surrogate, _ = linear.policy_loss((logp - old).exp(), advantages, clip, clip, dual)
        return (surrogate + 0.1 * linear.kl_penalty(logp, ref)).sum()

    logp.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logp), logp)
    torch.testing.assert_close(
        gradient, finite_difference(loss, logp.detach()), rtol=1e-5, atol=1e-6
    )


# --- covariances and CTWA ---


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_the_predicted_change_is_the_true_one_to_first_order(seed):
    """Softmax policies over G completions, each sampled once, uniform at first; a small move of the
    logits changes each mean reward by the prediction, up to the square of the step. Prompts of the
    first mini-batch (age 0) do not count, and a step of two updates is twice what was seen after
    one."""
    G, prompts = 5, 4
    generator = torch.Generator().manual_seed(seed)
    rewards, direction = (
        torch.randn(prompts, G, k, generator=generator, dtype=torch.float64) for k in (3, 1)
    )
    age = tensor([0, 0, 1, 1]).repeat_interleave(G)
    advantages = 2 * direction.flatten() + 1

    def predicted(size: float) -> tuple[torch.Tensor, torch.Tensor]:
        logits = size * direction[..., 0]
        drift = (logits.log_softmax(1) - torch.zeros(prompts, G).log_softmax(1)).flatten()
        seen = torch.where(age > 0, drift, 1e6)  # to be left out
        change, rate, nats = first_order_change(
            seen, age, advantages, rewards.view(-1, 3), G, updates=2
        )
        close(rate, size * 2 / 2, 1e-9)  # nats of the whole step over units of advantage
        close(nats, float(2 * size * direction[2:, :, 0].var(1).mean().sqrt()), 1e-9)
        exact = ((logits.softmax(1)[..., None] - 1 / G) * rewards).sum(1)[2:].mean(0)
        return change / 2 * (
            G - 1
        ) / G, exact  # one update; here all completions are known, not G drawn of many

    errors = [float((change - exact).abs().max()) for change, exact in map(predicted, (1e-2, 1e-3))]
    assert errors[1] < errors[0] / 50 + 1e-12
    # fresh rows anywhere, as where rows and not prompts are dealt, and rewards that do not apply to
    # all: by a loop over the prompts, the covariances pooled by their degrees of freedom
    some = torch.rand(prompts, G, generator=generator) < 0.7
    partly = torch.rand(prompts, G, 3, generator=generator) < 0.3
    partly = rewards.masked_fill(partly, torch.nan)
    change, *_ = first_order_change(
        direction.flatten(), some.flatten().double(), advantages, partly.view(-1, 3), G, updates=1
    )
    for k in range(3):
        pairs = torch.stack([direction[..., 0], partly[..., k]], 1)  # [prompts, 2, G]
        known = some & ~partly[..., k].isnan()
        pairs = [own[:, s] for own, s in zip(pairs, known, strict=True) if s.sum() > 1]
        if pairs:
            total = sum(own.cov(correction=0)[0, 1] * own.size(1) for own in pairs)
            close(change[k], float(total / sum(own.size(1) - 1 for own in pairs)), 1e-9)
        else:
            assert change[k].isnan()
    alone = first_order_change(
        torch.zeros(8), torch.zeros(8), torch.ones(8), torch.rand(8, 3), 4, 1
    )
    assert all(values.isnan().all() for values in alone)  # a single mini-batch tells nothing


@pytest.mark.parametrize("name", ["ctwa_covariance_clip0.2", "ctwa_covariance_noclip"])
def test_ctwa_statistics_match_the_vectors(vectors, name):
    entry = vectors[name]
    given_ = {
        key: tensor(value) if isinstance(value, list) else value
        for key, value in entry["inputs"].items()
    }
    ratio = (given_["new_logp"] - given_["old_logp"]).exp()
    mask = given_["mask"]
    weight = ctwa.completion_weights(
        given_["A_seq"], ratio, mask, given_["eps_low"], given_["eps_high"]
    )
    close(weight, entry["expected"]["w_completion"], entry["tol"])
    covariance = ctwa.within_prompt_covariance(weight, given_["U"], 4)
    close(covariance, entry["expected"]["cov_biased_official"], entry["tol"])
    close(covariance * 4 / 3, entry["expected"]["cov_unbiased"], entry["tol"])


def test_ctwa_weight_updates_match_the_vector(vectors):
    entry = vectors["ctwa_three_weight_updates"]
    inputs = entry["inputs"]
    log_weights, ema = tensor(inputs["lambda0"]).log(), None
    for step, covariance in enumerate(inputs["cov"]):
        log_weights, ema = ctwa.update_log_weights(
            log_weights,
            ema,
            tensor(covariance),
            tensor(inputs["targets"]),
            inputs["lr"],
            inputs["ema_tau"],
        )
        expected = entry["expected"]["steps"][step]
        close(ema, expected["ema"], entry["tol"])
        close(log_weights.exp(), expected["weights"], entry["tol"])


def test_ctwa_hands_its_average_on_and_does_not_raise_what_has_reached_its_cap():
    """Three steps of the controller against its equation."""
    generator = torch.Generator().manual_seed(0)
    start, targets = tensor([2.0, 0.5, 1.0]), tensor([0.3, 0.1, 0.2])
    controller = ctwa.CTWA(start, targets, tensor([INF, INF, 0.0]), 0.5, 0.25, 0.0)
    log_weights, ema = start.log(), None
    for _ in range(3):
        W = torch.randn(8, generator=generator, dtype=torch.float64)
        rewards = torch.rand(8, 3, generator=generator, dtype=torch.float64)
        controller.learn(rewards, W, 4)
        covariance = within_prompt_covariance(W, rewards, 4)
        log_weights, ema = ctwa.update_log_weights(log_weights, ema, covariance, targets, 0.5, 0.25)
        weights = controller.weights(rewards)
        torch.testing.assert_close(weights[:2], log_weights[:2].exp())
        assert weights[2] == 1 < log_weights[2].exp()
    # no covariance is beyond what is reachable, of a reward that few completions have either
    rewards[1:6, 0] = torch.nan
    controller.learn(rewards, W, 4)
    reachable = controller.log["ctwa/reachable"]
    assert (controller.log["ctwa/cov"].abs() < reachable).all()
    # and it is reached: two have it, and only they are paid unlike the others
    W, rewards = tensor([1.0, -1, 0, 0, 0, 0, 0, 0]), torch.rand(8, 3, dtype=torch.float64)
    rewards[:, 0] = tensor([1.0, 0] + [torch.nan] * 6)
    controller.learn(rewards, W, 4)
    close(controller.log["ctwa/cov"][0], 0.5, 1e-9)
    close(controller.log["ctwa/reachable"][0], 0.5, 1e-9)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 5]))
def test_covariance_laws(seed, K):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(24, generator=generator, dtype=torch.float64)
    rewards = torch.rand(24, K, generator=generator, dtype=torch.float64)
    covariance = within_prompt_covariance(weight, rewards, 6)
    prompts = zip(weight.split(6), rewards.split(6), strict=True)
    tables = [torch.cov(torch.cat([w[None], R.T]), correction=0) for w, R in prompts]
    by_hand = torch.stack(tables)[:, 0, 1:].mean(0)
    torch.testing.assert_close(covariance, by_hand)
    # what is constant within a prompt, and the order of its completions, must not matter
    offset = torch.randn(4, generator=generator, dtype=torch.float64).repeat_interleave(6)
    torch.testing.assert_close(
        within_prompt_covariance(weight + offset, rewards + offset[:, None], 6), covariance
    )
    order = torch.cat([6 * p + torch.randperm(6, generator=generator) for p in range(4)])
    torch.testing.assert_close(
        within_prompt_covariance(weight[order], rewards[order], 6), covariance
    )
    torch.testing.assert_close(within_prompt_covariance(3 * weight, rewards, 6), 3 * covariance)


def test_outliers_leave_the_covariance_as_if_they_had_the_mean_weight():
    weight = tensor([0.1, -0.2, 0.3, 1e6, 0.5, -0.5, 0.2, 0.1])
    kept = ctwa.drop_outliers(weight, 4, 100.0)
    assert torch.equal(kept[[0, 1, 2, 4, 5, 6, 7]], weight[[0, 1, 2, 4, 5, 6, 7]])
    assert kept[3] == pytest.approx((0.1 - 0.2 + 0.3) / 3)
    assert torch.equal(ctwa.drop_outliers(weight, 4, 1e9), weight)


def test_prompts_without_differences_make_no_outliers():
    """All weights of such a prompt are 0. Were they counted, the median would be 0 and everything
    else an outlier."""
    weight = torch.cat([torch.zeros(12), tensor([0.1, -0.2, 0.3, 1e6])])
    kept = ctwa.drop_outliers(weight, 4, 100.0)
    assert torch.equal(kept[:15], weight[:15])
    assert kept[15] == pytest.approx((0.1 - 0.2 + 0.3) / 3)
    assert torch.equal(ctwa.drop_outliers(torch.zeros(8), 4, 100.0), torch.zeros(8))


def test_ctwa_weighs_tokens_as_the_loss_does():
    """W is minus the derivative of a completion's loss by a common shift of its tokens'
    log-probabilities, over its tokens."""
    shift = torch.zeros(3, requires_grad=True)
    mask, ratio, advantages = (
        tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]),
        torch.rand(3, 3) + 0.5,
        tensor([1.0, -2.0, 0.5]),
    )
    token_weight, lengths = mask * torch.rand(3, 3), mask.sum(1)  # as --tis-cap makes it
    loss, _ = linear.policy_loss(ratio * shift[:, None].exp(), advantages, 0.2, 0.2, 0.0)
    (loss * token_weight).sum().backward()
    found = ctwa.completion_weights(advantages, ratio, token_weight, 0.2, 0.2)
    torch.testing.assert_close(found, -shift.grad / lengths)
