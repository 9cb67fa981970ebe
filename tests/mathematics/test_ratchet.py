"""The ratchet's drawdowns and multipliers: Page's recursion, its bounds and units, and what a run
makes of its own move."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algos.ratchet import Args, multipliers, update_drawdown, what_moved
from support.decoupled import batches, normalised, whitened
from support.running import OBJECTIVES, read_lines, train
from support.tensors import tensor

RELEASE = Args().release
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
    np.testing.assert_allclose(
        drawdowns(changes, 1.0), (np.maximum.accumulate(levels) - levels)[1:], atol=1e-12
    )


@given(CHANGES, st.floats(0.1, 1))
def test_a_loss_is_paid_back_only_by_a_larger_gain(changes, release):
    """When the drawdown is back at 0 for the first time, the objective has won at least what
    release asks for."""
    assert all(
        d >= full - 1e-12
        for d, full in zip(drawdowns(changes, release), drawdowns(changes, 1.0), strict=True)
    )
    assert drawdowns([-0.3, 0.3 / release], release)[-1] == pytest.approx(0, abs=1e-12)
    assert drawdowns([-0.3, 0.29 / release], release)[-1] > 0


@given(st.floats(0, 5), st.floats(-1, 1), st.floats(0, 50), st.floats(0, 9))
def test_multipliers_are_those_of_a_dual(drawdown, alignment, ki, kp):
    """Never negative, never above the bound; none for what rises and has lost nothing; more for
    more loss (KKT: complementary)."""
    found = multipliers(tensor([drawdown]), tensor([alignment]), ki, kp, 7.0).item()
    assert 0 <= found <= 7
    if drawdown == 0 and alignment >= 0:
        assert found == 0
    assert multipliers(tensor([drawdown + 0.1]), tensor([alignment]), ki, kp, 7.0).item() >= found
    assert multipliers(tensor([drawdown]), tensor([alignment - 0.1]), ki, kp, 7.0).item() >= found


@pytest.mark.parametrize("estimator", ["reinforce", "grpo"])
def test_a_run_follows_its_own_move(estimator, tmp_path):
    """Weights, drawdowns and advantages by loops over what statistics.jsonl has: rewards, and how
    far log pi had moved."""
    preference = np.array([2.0, 0.5, 0.5])
    rows = train(
        "ratchet",
        tmp_path / "run",
        steps=4,
        prompts=8,
        completions=8,
        estimator=estimator,
        weights=(4.0, 1.0, 1.0),
        desired_kl=0,
        max_multiplier=0.5,
    )[1:]
    kept = read_lines(tmp_path / "run/statistics.jsonl")
    drawdown, extra, variance = np.zeros(3), np.zeros(3), None
    for row, line, (rewards, lengths, advantages) in zip(
        rows, kept, batches(tmp_path / "run"), strict=True
    ):
        weights = preference + extra
        np.testing.assert_allclose(
            [row[f"weight/{name}"] for name in OBJECTIVES], weights, rtol=1e-3, atol=1e-3
        )
        one = (
            (lambda r, n=lengths: whitened(r, n))
            if estimator == "reinforce"
            else (lambda r: normalised(r[:, None], 8)[:, 0])
        )
        scores = np.stack([one(rewards[:, k]) for k in range(3)], 1) @ weights
        np.testing.assert_allclose(advantages, one(scores), atol=2e-3)
        every = [slice(s, s + 8) for s in range(0, 64, 8)]
        fresh = [s for s in every if line["age"][s.start] == 1]  # of two updates
        ratio = 2 * np.exp(np.array(line["drift"]))
        table = np.mean([np.cov(ratio[s], rewards[s].T) for s in fresh], axis=0)
        now = np.mean([rewards[s].var(0, ddof=1) for s in every], axis=0)
        variance = now if variance is None else 0.9 * variance + 0.1 * now
        change = table[0, 1:] / np.sqrt(variance)
        np.testing.assert_allclose(
            [row[f"ratchet/change/{name}"] for name in OBJECTIVES], change, rtol=1e-3, atol=1e-5
        )
        drawdown = np.maximum(drawdown - np.where(change > 0, RELEASE * change, change), 0)
        np.testing.assert_allclose(
            [row[f"ratchet/drawdown/{name}"] for name in OBJECTIVES], drawdown, rtol=1e-3, atol=1e-5
        )
        alignment = table[0, 1:] / np.sqrt(table[0, 0] * now)
        extra = np.clip(35 * drawdown - 4 * alignment, 0, 0.5)
    assert len(fresh) == 4
    assert drawdown.max() > 0.5 / 35  # a loss is remembered whole, beyond what the bound answers


def test_the_change_is_exact_where_the_first_order_is_not():
    """Every completion of one prompt, as often as the old policy samples it: J_new - J_old by hand,
    whatever the size of the step."""
    old, new = tensor([0.5, 0.25, 0.125, 0.125]), tensor([0.1, 0.6, 0.1, 0.2])
    reward = tensor([1.0, 0.0, 1.0, 0.5])
    rows = torch.tensor(
        [0] * 4 + [1] * 2 + [2] + [3]
    )  # eight completions, in the old policy's shares
    drift, rewards = (new / old).log()[rows], reward[rows][:, None]
    found, correlation, variance = what_moved(drift, torch.ones(8), rewards, 8, 1)
    assert variance.item() == pytest.approx(rewards.var().item())
    unbiased = 8 / 7  # covariances divide by one completion less
    assert found.item() == pytest.approx(((new - old) @ reward).item() * unbiased, abs=1e-12)
    assert correlation.item() == pytest.approx(np.corrcoef((new / old)[rows], reward[rows])[0, 1])
    first_order = torch.cov(torch.stack([drift, rewards[:, 0]]))[0, 1].item()
    assert abs(first_order - found.item()) > 0.02
    trained = torch.cat(
        [torch.zeros(8), torch.full((8,), 1.0)]
    )  # completions that were trained on first tell nothing
    both = what_moved(torch.cat([drift * 9, drift]), trained, rewards.repeat(2, 1), 8, 1)
    torch.testing.assert_close(both[0], found)


def test_rewards_units_do_not_count_and_a_constant_reward_has_no_multiplier(tmp_path):
    (tmp_path / "units_of_rewards.py").write_text(
        "from rewards.accuracy import accuracy\n"
        "def percent(**columns):\n    return [100.0 * r for r in accuracy(**columns)]\n"
        "def constant(completions, **columns):\n    return [0.1] * len(completions)\n"
    )
    plain, scaled = (
        ("rewards.accuracy:accuracy", "rewards.clarity:clarity"),
        f"{tmp_path}/units_of_rewards.py",
    )
    runs = (
        train(
            "ratchet",
            tmp_path / name,
            steps=3,
            prompts=8,
            completions=8,
            rewards=(first, plain[1], f"{scaled}:constant"),
        )[1:]
        for name, first in (("plain", plain[0]), ("scaled", f"{scaled}:percent"))
    )
    for one, other in zip(*runs, strict=True):
        assert one["weight/accuracy"] == pytest.approx(other["weight/percent"], rel=1e-3, abs=1e-3)
        assert one["weight/constant"] == pytest.approx(1, abs=1e-2)


def test_an_objective_of_weight_0_is_pulled_up_once_it_falls_and_else_left_alone(tmp_path):
    _, first, *others = train(
        "ratchet",
        tmp_path / "run",
        steps=4,
        prompts=8,
        completions=8,
        weights=(0.0, 1.0, 1.0),
        desired_kl=0,
    )
    assert first["weight/accuracy"] == 0
    for before, row in zip([first, *others], others, strict=False):
        held = (
            before["ratchet/drawdown/accuracy"] == 0 and before["ratchet/alignment/accuracy"] >= 0
        )
        assert (row["weight/accuracy"] == 0) == held
    assert any(row["weight/accuracy"] > 0 for row in others)
