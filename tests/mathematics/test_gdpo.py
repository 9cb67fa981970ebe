"""GDPO's advantages against loops over prompts and tokens, and what the normalisation is for."""

import numpy as np
import pytest
import torch

from algos.gdpo import GDPO, estimate_advantages, scalarize
from support.decoupled import batches, normalised, whitened
from support.running import train
from support.tensors import tensor


@pytest.mark.parametrize("estimator", ["reinforce", "grpo"])
def test_a_run_has_these_advantages(estimator, tmp_path):
    """With either estimator, which decides the clip alone."""
    train("gdpo", tmp_path / "run", steps=2, estimator=estimator, weights=(3.0, 2.0, 1.0))
    for rewards, lengths, advantages in batches(tmp_path / "run"):
        scores = normalised(rewards, 4) @ np.array([3, 2, 1]) / 6
        np.testing.assert_allclose(advantages, whitened(scores, lengths), atol=2e-4)
        assert np.ptp(advantages) > 1


def test_profiles_of_one_sum_stay_apart():
    """GRPO's collapse: 1 of one objective and 1 of the other are worth the same, though one of them
    is rare."""
    rewards = tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    lengths, weights = torch.full((4,), 3), tensor([0.5, 0.5])
    assert torch.equal(
        estimate_advantages(scalarize(rewards, weights), lengths, 4, "grpo"),
        torch.zeros(4).double(),
    )
    other = tensor([[1.0, 1.0], [0, 0], [0, 0], [0, 0]])
    both = torch.cat([rewards, other])
    advantages, _ = GDPO(weights).advantages(both, lengths.repeat(2), 4, "grpo")
    assert torch.equal(
        advantages[:4], advantages[:4].mean().expand(4)
    )  # two objectives that mirror each other cancel
    mixed = tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    found, _ = GDPO(weights).advantages(mixed, lengths, 4, "grpo")
    assert found[0] > found[1] == found[2] > found[3]
