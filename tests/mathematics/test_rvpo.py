"""RVPO's soft minimum against its limits, its expansion and its gradient; trained."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.gdpo import GDPO
from algos.rvpo import RVPO, deciding_shares, soft_minimum
from support.decoupled import batches, normalised, whitened
from support.running import OBJECTIVES, train
from support.tensors import close, finite_difference


def random(seed: int, B: int = 6, K: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(K, generator=generator, dtype=torch.float64) + 0.1
    return torch.randn(B, K, generator=generator, dtype=torch.float64), weights / weights.sum()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_its_limits_and_its_expansion(seed):
    """kappa to 0: the mean; to infinity: the minimum; in between, to second order, the mean minus
    kappa/2 times the variance."""
    values, weights = random(seed)
    mean = values @ weights
    torch.testing.assert_close(soft_minimum(values, weights, 1e-7), mean, rtol=0, atol=1e-6)
    assert ((soft_minimum(values, weights, 1e4) - values.amin(1)).abs() < 1e-3).all()
    variance = (values - mean[:, None]) ** 2 @ weights
    kappa = 1e-3
    torch.testing.assert_close(
        soft_minimum(values, weights, kappa), mean - kappa / 2 * variance, rtol=0, atol=1e-5
    )


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), kappa=st.floats(0.1, 20))
def test_laws(seed, kappa):
    values, weights = random(seed)
    found = soft_minimum(values, weights, kappa)
    assert (values.amin(1) - 1e-9 <= found).all()
    assert (found <= values @ weights + 1e-9).all()
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(soft_minimum(values[:, order], weights[order], kappa), found)
    torch.testing.assert_close(soft_minimum(values + 2, weights, kappa), found + 2)
    shares = deciding_shares(values, weights, kappa)
    assert float(shares.sum()) == pytest.approx(1)
    gradient = finite_difference(lambda at: soft_minimum(at, weights, kappa).sum(), values)
    torch.testing.assert_close(gradient.mean(0), shares, rtol=1e-4, atol=1e-6)


def test_a_reward_that_does_not_apply_leaves_its_weight_to_the_others():
    """Of the first two prompts of four completions the last reward applies to none."""
    rewards, weights = torch.rand(16, 3), torch.tensor([0.5, 0.3, 0.2])
    rewards[:8, 2] = torch.nan
    each = np.stack([normalised(r[:, None].double().numpy(), 4)[:, 0] for r in rewards.T], 1)
    each, heard = torch.tensor(each), torch.tensor([0.625, 0.375]).double()
    scores = [soft_minimum(each[:8, :2], heard, 3.0), soft_minimum(each[8:], weights.double(), 3.0)]
    found, _ = RVPO(weights, 3.0).advantages(rewards, torch.ones(16), 4, "grpo")
    wanted = whitened(torch.cat(scores).numpy(), np.ones(16, int))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_tiny_kappa_is_gdpo_in_float32():
    rewards, lengths = torch.rand(24, 3), torch.randint(1, 50, (24,))
    found, shares = RVPO(torch.full((3,), 1 / 3), 1e-7).advantages(rewards, lengths, 4, "grpo")
    wanted, _ = GDPO(torch.full((3,), 1 / 3)).advantages(rewards, lengths, 4, "grpo")
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert shares.dtype == torch.float32


def test_a_hundred_is_no_overflow():
    close(
        soft_minimum(
            torch.tensor([[1000.0, -1000.0]]).double(), torch.tensor([0.5, 0.5]).double(), 10.0
        ),
        [-1000 + np.log(2) / 10],
        1e-9,
    )


def test_a_run_has_these_advantages(tmp_path):
    rows = train("rvpo", tmp_path / "run", steps=2, kappa=2.0, weights=(3.0, 2.0, 1.0))[1:]
    given = np.array([3, 2, 1]) / 6
    for row, (rewards, lengths, advantages) in zip(rows, batches(tmp_path / "run"), strict=True):
        parts = given * np.exp(-2 * normalised(rewards, 4))
        np.testing.assert_allclose(
            advantages, whitened(-np.log(parts.sum(1)) / 2, lengths), atol=2e-4
        )
        shares = (parts / parts.sum(1, keepdims=True)).mean(0)
        assert [row[f"weight/{name}"] for name in OBJECTIVES] == pytest.approx(shares, abs=1e-4)
