"""DVAO's advantages against its two formulas by loops over prompts, and GRPO's; trained."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.dvao import DVAO, estimate_advantages, scalarize
from support.decoupled import batches, normalised
from support.running import OBJECTIVES, train
from support.tensors import tensor


def by_hand(rewards: np.ndarray, weights, G: int) -> tuple[np.ndarray, np.ndarray]:
    """The paper's: normalised rewards, weighted by the shares of the spreads. And these shares."""
    z, advantages, shares = normalised(rewards, G), np.zeros(len(rewards)), []
    for start in range(0, len(rewards), G):
        spread = weights * rewards[start : start + G].std(0, ddof=1)
        shares.append(spread / (spread.sum() + 1e-6))
        advantages[start : start + G] = z[start : start + G] @ shares[-1]
    return advantages, np.mean(shares, 0)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), K=st.integers(1, 4))
def test_it_is_grpo_times_how_far_the_rewards_of_a_prompt_agree(seed, K):
    """So a prompt's completions are told apart as linear tells them, and never louder."""
    draw = np.random.default_rng(seed)
    rewards, weights = draw.random((24, K)) * (draw.random(K) + 0.1), draw.random(K) + 0.1
    given_ = tensor(rewards.tolist()), torch.ones(24)
    found, shares = DVAO(tensor(weights.tolist())).advantages(*given_, 6, "reinforce")
    wanted, wanted_shares = by_hand(rewards, weights, 6)
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    np.testing.assert_allclose(shares, wanted_shares, atol=1e-9)
    scores = scalarize(given_[0], tensor(weights.tolist()))
    plain = estimate_advantages(scores, given_[1], 6, "grpo").view(-1, 6)
    spreads = rewards.reshape(-1, 6, K).std(1, ddof=1) @ weights
    heard = scores.view(-1, 6).std(1) / torch.from_numpy(spreads)
    torch.testing.assert_close(found.view(-1, 6), plain * heard[:, None], rtol=0, atol=1e-3)
    assert (heard < 1 + 1e-9).all()


def test_rewards_that_pull_apart_silence_their_prompt():
    opposed = tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    agreed = tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    both = torch.cat([opposed, agreed])
    found, shares = DVAO(tensor([0.5, 0.5])).advantages(both, torch.ones(8), 4, "grpo")
    assert found[:4].abs().max() < 1e-9
    assert found[4] == pytest.approx(0.75**0.5, abs=1e-5)  # one spread from its mean
    assert shares.tolist() == pytest.approx([0.5, 0.5], abs=1e-5)


def test_without_a_difference_there_is_no_advantage():
    flat = torch.full((8, 3), 0.1)
    found, shares = DVAO(torch.full((3,), 1 / 3)).advantages(flat, torch.ones(8), 4, "grpo")
    assert found.abs().max() < 1e-6
    assert shares.sum() == pytest.approx(1)


def test_a_run_has_these_advantages(tmp_path):
    rows = train("dvao", tmp_path / "run", steps=2, weights=(3.0, 2.0, 1.0))[1:]
    for row, (rewards, _, advantages) in zip(rows, batches(tmp_path / "run"), strict=True):
        wanted, shares = by_hand(rewards, np.array([3, 2, 1]) / 6, 4)
        np.testing.assert_allclose(advantages, wanted, atol=2e-4)
        assert [row[f"weight/{name}"] for name in OBJECTIVES] == pytest.approx(shares, abs=1e-4)
