"""GDPO's advantages against loops over prompts and tokens, and what the normalisation is for."""

import numpy as np
import pytest
import torch

from algos.gdpo import estimate_advantages, scalarize
from support.decoupled import batches, normalised, whitened
from support.running import train
from support.tensors import tensor


def gdpo(
    rewards: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor, group_size: int
) -> torch.Tensor:
    each = [estimate_advantages(r, lengths, group_size, "grpo") for r in rewards.T]
    return estimate_advantages(
        scalarize(torch.stack(each, 1), weights), lengths, group_size, "reinforce"
    )


@pytest.mark.parametrize("estimator", ["reinforce", "grpo"])
def test_a_run_has_these_advantages(estimator, tmp_path):
    """With either estimator, which decides the clip alone."""
    train("gdpo", tmp_path / "run", steps=2, estimator=estimator, weights=(3.0, 2.0, 1.0))
    for rewards, lengths, advantages in batches(tmp_path / "run"):
        scores = normalised(rewards, 4) @ np.array([3, 2, 1]) / 6
        np.testing.assert_allclose(advantages, whitened(scores, lengths), atol=2e-4)
        assert np.ptp(advantages) > 1


def test_units_of_a_reward_do_not_count():
    rewards = torch.rand(24, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lengths, weights = torch.arange(5, 29), tensor([0.5, 0.3, 0.2])
    units = rewards * tensor([100.0, 1.0, 0.01]) + tensor([7.0, 0.0, -3.0])
    torch.testing.assert_close(
        gdpo(units, lengths, weights, 6), gdpo(rewards, lengths, weights, 6), rtol=1e-2, atol=1e-3
    )
    linear = estimate_advantages(scalarize(rewards, weights), lengths, 6, "reinforce")
    other = estimate_advantages(scalarize(units, weights), lengths, 6, "reinforce")
    assert (linear - other).abs().max() > 0.5


def test_profiles_of_one_sum_stay_apart():
    """GRPO's collapse: 1 of one objective and 1 of the other are worth the same, though one of them
    is rare."""
    rewards = tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    lengths, weights = torch.full((4,), 3), tensor([0.5, 0.5])
    assert torch.equal(
        estimate_advantages(scalarize(rewards, weights), lengths, 4, "grpo"),
        torch.zeros(4).double(),
    )
    advantages = gdpo(
        torch.cat([rewards, torch.tensor([[1.0, 1.0], [0, 0], [0, 0], [0, 0]]).double()]),
        lengths.repeat(2),
        weights,
        4,
    )
    assert torch.equal(
        advantages[:4], advantages[:4].mean().expand(4)
    )  # two objectives that mirror each other cancel
    mixed = tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    found = gdpo(mixed, lengths, weights, 4)
    assert found[0] > found[1] == found[2] > found[3]


def test_a_reward_that_is_the_same_within_prompts_is_no_objective():
    rewards = torch.rand(12, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rewards[:, 1] = torch.arange(3).repeat_interleave(4)
    lengths = torch.full((12,), 5)
    alone = gdpo(rewards[:, :1], lengths, tensor([1.0]), 4)
    torch.testing.assert_close(
        gdpo(rewards, lengths, tensor([0.5, 0.5]), 4), alone, rtol=1e-5, atol=1e-6
    )
