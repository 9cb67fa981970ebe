"""The ratchet's drawdowns and multipliers: Page's recursion, its bounds and units, and what a run makes of its own move."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algos.ratchet import multipliers, update_drawdown
from common.errors import UserError
from support.decoupled import batches, normalised, whitened
from support.running import train
from support.tensors import tensor

CHANGES = st.lists(st.floats(-1, 1), min_size=1, max_size=30)


def drawdowns(changes: list[float], release: float) -> list[float]:
    found, drawdown = [], tensor([0.0])
    for change in changes:
        drawdown = update_drawdown(drawdown, tensor([change]), release)
        found.append(drawdown.item())
    return found


@given(CHANGES)
def test_with_full_release_it_is_the_distance_from_the_highest_level(changes):
    """Page's CUSUM, and the reflected sum: the recursion is the running maximum less the sum."""
    levels = np.concatenate([[0.0], np.cumsum(changes)])
    np.testing.assert_allclose(drawdowns(changes, 1.0), (np.maximum.accumulate(levels) - levels)[1:], atol=1e-12)


@given(CHANGES, st.floats(0.1, 1))
def test_a_loss_is_paid_back_only_by_a_larger_gain(changes, release):
    """When the drawdown is back at 0 for the first time, the objective has won at least what release asks for."""
    assert all(d >= full - 1e-12 for d, full in zip(drawdowns(changes, release), drawdowns(changes, 1.0), strict=True))
    assert drawdowns([-0.3, 0.3 / release], release)[-1] == pytest.approx(0, abs=1e-12)
    assert drawdowns([-0.3, 0.29 / release], release)[-1] > 0


@given(st.floats(0, 5), st.floats(-1, 1), st.floats(0, 50), st.floats(0, 9))
def test_multipliers_are_those_of_a_dual(drawdown, alignment, ki, kp):
    """Never negative, never above the bound; none for what rises and has lost nothing; more for more loss (KKT: complementary)."""
    found = multipliers(tensor([drawdown]), tensor([alignment]), ki, kp, 7.0).item()
    assert 0 <= found <= 7
    if drawdown == 0 and alignment >= 0:
        assert found == 0
    assert multipliers(tensor([drawdown + 0.1]), tensor([alignment]), ki, kp, 7.0).item() >= found
    assert multipliers(tensor([drawdown]), tensor([alignment - 0.1]), ki, kp, 7.0).item() >= found


def rows(folder) -> list[dict]:
    return [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if row["step"] > 0]


@pytest.mark.parametrize("estimator", ["reinforce", "grpo"])
def test_a_run_follows_its_own_move(estimator, tmp_path):
    """Weights, drawdowns and advantages by loops over what the log has: law/<k>, law/nats and the rewards."""
    names, preference = ("accuracy", "conciseness", "clarity"), np.array([2.0, 0.5, 0.5])
    train("ratchet", tmp_path / "run", steps=4, prompts=8, completions=8, estimator=estimator, weights=(4.0, 1.0, 1.0), warmup=2)
    drawdown, extra = np.zeros(3), np.zeros(3)
    for row, (rewards, lengths, advantages) in zip(rows(tmp_path / "run"), batches(tmp_path / "run"), strict=True):
        weights = preference + extra
        np.testing.assert_allclose([row[f"weight/{name}"] for name in names], weights, rtol=1e-4, atol=1e-4)
        one = (lambda r, n=lengths: whitened(r, n)) if estimator == "reinforce" else (lambda r: normalised(r[:, None], 8)[:, 0])
        scores = np.stack([one(rewards[:, k]) for k in range(3)], 1) @ weights
        np.testing.assert_allclose(advantages, one(scores), atol=2e-3)
        spread = np.sqrt(rewards.reshape(-1, 8, 3).var(1, ddof=1).mean(0))
        change = np.array([row[f"law/{name}"] for name in names]) / spread
        drawdown = np.minimum(np.maximum(drawdown - np.where(change > 0, 0.7 * change, change), 0), 7 / 35)
        extra = np.clip(35 * drawdown - 4 * change / row["law/nats"], 0, 7)
    assert (drawdown > 0).any()


def test_rewards_units_do_not_count_and_a_constant_reward_has_no_multiplier(tmp_path):
    (tmp_path / "units_of_rewards.py").write_text(
        "from rewards.accuracy import accuracy\n"
        "def percent(completions, **columns):\n    return [100.0 * r for r in accuracy(completions=completions, **columns)]\n"
        "def constant(completions, **columns):\n    return [0.1] * len(completions)\n"
    )
    plain, scaled = ("rewards.accuracy:accuracy", "rewards.clarity:clarity"), f"{tmp_path}/units_of_rewards.py"
    for name, first in (("plain", plain[0]), ("scaled", f"{scaled}:percent")):
        train("ratchet", tmp_path / name, steps=3, prompts=8, completions=8, rewards=(first, plain[1], f"{scaled}:constant"))
    for one, other in zip(rows(tmp_path / "plain"), rows(tmp_path / "scaled"), strict=True):
        assert one["weight/accuracy"] == pytest.approx(other["weight/percent"], rel=1e-3, abs=1e-3)
        assert one["weight/constant"] == pytest.approx(1, abs=1e-2)


def test_the_learning_rate_rises_over_the_warm_up(tmp_path):
    train("ratchet", tmp_path / "run", steps=4, warmup=3, lr=3e-4)
    np.testing.assert_allclose([row["lr"] for row in rows(tmp_path / "run")], [1e-4, 2e-4, 3e-4, 3e-4])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"mini_batches": 1}, "--mini-batches 1 must be 2 or more: the move is seen on completions not trained on yet"),
        ({"warmup": 0}, "--warmup 0 must be at least 1"),
        ({"release": 0.0}, "--release 0.0 must be in"),
        ({"kp": -1.0}, "--kp -1.0 must not be negative"),
        ({"weights": (1.0, 0.0, 1.0)}, "--weights 1, 0, 1 must be positive"),
    ],
)
def test_wrong_flags_are_refused(flags, told, tmp_path):
    with pytest.raises(UserError, match=told):
        train("ratchet", tmp_path / "run", steps=1, **flags)
