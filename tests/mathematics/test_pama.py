"""PAMA's Pareto scalar against the vectors and its definition; trained, and why the official form
learns from no reward."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.pama import PAMA, binding_shares, pareto_scalar
from support.decoupled import batches, normalised, whitened
from support.running import OBJECTIVES, train
from support.tensors import close, tensor


def test_vectors(vectors):
    for i in range(4):
        entry = vectors[f"pama_s_star_{i}"]
        close(
            pareto_scalar(tensor([entry["inputs"]["a"]])),
            [entry["expected"]["s_star"]],
            entry["tol"],
        )
    entry = vectors["pama_batch_and_token_variants"]
    inputs, expected = entry["inputs"], entry["expected"]
    close(
        pareto_scalar(tensor([expected["a_batch"]])),
        [expected["s_star_batch_official"]],
        entry["tol"],
    )
    unclipped = (
        tensor(inputs["A"]).clamp(min=0)
        * (tensor(inputs["ratio_to_ref"]) <= 1 + inputs["clip"])[..., None]
    )
    close(
        pareto_scalar(unclipped.flatten(0, 1)),
        [s for row in expected["s_star_per_token_variant"] for s in row],
        entry["tol"],
    )


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), K=st.sampled_from([1, 2, 3, 5]), shift=st.floats(-2, 2))
def test_it_is_the_projection_of_0_on_the_range_of_the_advantages(seed, K, shift):
    """And that is the length, with sign, of the shortest convex combination sum_k c_k A_k, which
    PAMA minimises."""
    advantages = (
        torch.randn(8, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        + shift
    )
    scalar = pareto_scalar(advantages)
    torch.testing.assert_close(
        scalar, torch.zeros(8).double().clamp(advantages.amin(1), advantages.amax(1))
    )
    c = torch.rand(200, K, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    c = c / c.sum(1, keepdim=True)
    assert (scalar.abs()[:, None] <= (advantages @ c.T).abs() + 1e-12).all()


def test_shares_say_which_objective_decides():
    close(
        binding_shares(tensor([[1.0, 2.0], [3.0, 1.0], [1.0, 4.0], [0.0, 9.0]])),
        [2 / 3, 1 / 3],
        1e-12,
    )
    close(binding_shares(tensor([[1.0, 1.0]])), [0.5, 0.5], 1e-12)
    close(binding_shares(torch.zeros(3, 2).double()), [0.5, 0.5], 1e-12)


def test_only_completions_good_in_every_objective_are_learned_from(tmp_path):
    rows = train("pama", tmp_path / "run", prompts=8, completions=8)[1:]
    for row in rows:
        assert all(
            0 <= row[f"pama/credited/{o}"] < 0.5 < 2 * row[f"pama/good/{o}"] for o in OBJECTIVES
        )
        assert sum(row[f"weight/{o}"] for o in OBJECTIVES) == pytest.approx(1)
        assert row["cov/accuracy"] >= 0  # what is credited is better than average in each objective
    assert any(row["pama/credited/accuracy"] > 0 and row["grad/norm"] > 0.01 for row in rows)


@pytest.mark.parametrize("estimator", ["reinforce", "grpo"])
def test_a_run_has_these_advantages(estimator, tmp_path):
    """The least of the advantages of each objective by itself, none of them negative."""
    train("pama", tmp_path / "run", steps=2, estimator=estimator)
    for rewards, lengths, advantages in batches(tmp_path / "run"):
        if estimator == "grpo":
            each = normalised(rewards, 4)
        else:
            each = np.stack([whitened(column, lengths) for column in rewards.T], 1)
        np.testing.assert_allclose(advantages, np.maximum(each, 0).min(1), atol=2e-4)


@pytest.mark.parametrize("estimator", ["reinforce", "grpo"])
def test_completions_bad_in_every_objective_are_left_alone(estimator):
    rewards = tensor([[1, 1], [0, 0], [1, 0], [0, 1]])
    found, _ = PAMA().advantages(rewards, torch.full((4,), 5.0), 4, estimator)
    assert found[0] > 0
    assert found[1:].tolist() == [0, 0, 0]


def test_the_gradient_of_the_official_form_is_zero_mean_at_the_start():
    """E[grad] of -s* rho at pi = pi_ref is -s* grad sum_y pi(y) = 0 over all completions, whatever
    they earn; a Pareto scalar's is not."""
    theta = torch.randn(
        5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    reference = theta.detach().softmax(0)
    ratio = theta.softmax(0) / reference
    (official,) = torch.autograd.grad(
        -(0.3 * torch.min(ratio, ratio.clamp(0.8, 1.2)) * reference).sum(), theta, retain_graph=True
    )
    assert official.abs().max() < 1e-12
    per_completion = pareto_scalar(
        torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )
    (ours,) = torch.autograd.grad(-(per_completion * ratio * reference).sum(), theta)
    assert ours.abs().max() > 1e-3
