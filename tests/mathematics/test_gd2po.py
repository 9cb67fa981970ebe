"""GD2PO's advantages against loops over completions and tokens, and its limit, GDPO; trained."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.gd2po import GD2PO, agree
from algos.gdpo import GDPO
from support.decoupled import batches, normalised, whitened
from support.running import train
from support.tensors import tensor


def by_hand(rewards: np.ndarray, weights, lengths, G: int, agreement: float) -> np.ndarray:
    """A completion at a time: signs are counted where all of mixed sign go."""
    z = normalised(rewards, G) * weights
    z[abs(z) < 1e-8] = 0
    kept = np.zeros(len(z), bool)
    for i, own in enumerate(z):
        mixed = max(own) > 0 > min(own)
        weak = agreement == 1 or abs(sum(own)) < agreement * sum(abs(own))
        kept[i] = not (mixed and weak)
    scores = np.array([kept[i - i % G :][:G].mean() * sum(z[i]) for i in range(len(z))])
    advantages = np.zeros(len(z))
    advantages[kept] = whitened(scores[kept], lengths[kept])
    return advantages


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), agreement=st.sampled_from([0.0, 0.2, 0.8, 1.0]))
def test_completions_that_disagree_are_dropped(seed, agreement):
    draw = np.random.default_rng(seed)
    rewards = np.where(draw.random((24, 3)) < 0.5, draw.integers(0, 2, (24, 3)), 0.1)
    lengths, weights = draw.integers(2, 50, 24), draw.random(3) + 0.1
    algorithm = GD2PO(tensor(weights.tolist()), agreement)
    found, _ = algorithm.advantages(tensor(rewards.tolist()), torch.tensor(lengths), 4, "grpo")
    wanted = by_hand(rewards, weights, lengths, 4, agreement)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    if agreement == 0:
        plain, _ = GDPO(algorithm.fixed).advantages(
            tensor(rewards.tolist()), torch.tensor(lengths), 4, "grpo"
        )
        torch.testing.assert_close(found, plain)
        assert algorithm.log["gd2po/kept"] == 1


def test_what_disagrees():
    each = tensor([[1.0, 2.0, 0.0], [-0.1, -0.3, -0.2], [1.0, -1e-12, 0.0], [0, 0, 0], [3, -1, 0]])
    assert agree(each, 1.0).tolist() == [True, True, True, True, False]
    assert agree(each.float(), 1.0).tolist() == [True, True, True, True, False]
    assert agree(each, 0.5).tolist() == [True] * 5  # |3 - 1| of 3 + 1
    assert agree(each, 0.51).tolist() == [True] * 4 + [False]


def test_a_reward_that_does_not_apply_disagrees_with_nobody():
    """And a completion that has none counts for no share."""
    nan = torch.nan
    rewards = tensor([[1.0, nan], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [nan, nan]])
    algorithm = GD2PO(tensor([0.5, 0.5]), 1.0)
    found, _ = algorithm.advantages(rewards, torch.full((5,), 3), 5, "grpo")
    assert algorithm.log["gd2po/kept"] == 0.75
    assert found[1] == found[4] == 0
    assert found[2] > found[0] > found[3]


@pytest.mark.parametrize("agreement", [0.8, 1.0])
def test_a_run_has_these_advantages(agreement, tmp_path):
    flags = {"prompts": 8, "weights": (3.0, 2.0, 1.0), "agreement": agreement}
    rows = train("gd2po", tmp_path / "run", steps=2, **flags)[1:]
    for row, (rewards, lengths, advantages) in zip(rows, batches(tmp_path / "run"), strict=True):
        wanted = by_hand(rewards, np.array([3, 2, 1]) / 6, lengths, 4, agreement)
        np.testing.assert_allclose(advantages, wanted, atol=2e-4)
        assert 0 < row["gd2po/kept"] < 1
