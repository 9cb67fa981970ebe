"""The Lagrangian's dual and primal step against the vectors and each other; the script's
multipliers, messages and errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.lagrangian import Lagrangian, dual_step, lagrangian_weights, with_primary
from support.running import OBJECTIVES, train
from support.tensors import close, finite_difference, tensor


def test_vectors(vectors):
    entry = vectors["lagrangian_dual_updates"]
    inputs = entry["inputs"]
    multipliers = tensor([float(m) for m in inputs["lambda0"]])
    for means, after in zip(
        inputs["J_constraints"], entry["expected"]["lambda_after"], strict=True
    ):
        multipliers = dual_step(
            multipliers, tensor(means), tensor(inputs["targets"]), inputs["dual_lr"]
        )
        close(multipliers, after, entry["tol"])
    entry = vectors["lagrangian_clamp_at_zero"]
    inputs = entry["inputs"]
    after = dual_step(
        tensor(inputs["lambda0"]), tensor(inputs["J"]), tensor(inputs["targets"]), inputs["dual_lr"]
    )
    close(after, entry["expected"]["lambda_after"], entry["tol"])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), K=st.sampled_from([2, 3, 5]), lr=st.floats(0, 10))
def test_a_multiplier_grows_exactly_where_its_target_is_missed(seed, K, lr):
    generator = torch.Generator().manual_seed(seed)
    multipliers, means, targets = torch.rand(3, K - 1, generator=generator, dtype=torch.float64)
    after = dual_step(multipliers, means, targets, lr)
    assert (after >= 0).all()
    assert torch.equal(
        after > multipliers,
        (means < targets) & (lr * (targets - means) > 0) & (after != multipliers),
    )
    assert (after[means >= targets] <= multipliers[means >= targets]).all()


@pytest.mark.parametrize(("K", "primary"), [(2, 0), (3, 1), (5, 4)])
def test_primal_and_dual_step_speak_of_one_lagrangian(K, primary):
    """L(theta, lambda) = J_0 + sum lambda_k (J_k - target_k) of a softmax policy: the score's
    policy gradient is its gradient in theta but for the factor 1 + sum lambda, and the dual step
    descends it in lambda."""
    generator = torch.Generator().manual_seed(K)
    rewards = torch.rand(
        7, K, generator=generator, dtype=torch.float64
    )  # of the seven completions there are
    theta = torch.randn(7, generator=generator, dtype=torch.float64)
    multipliers, targets = torch.rand(2, K - 1, generator=generator, dtype=torch.float64)
    others = [k for k in range(K) if k != primary]

    def lagrangian(theta, multipliers):
        J = theta.softmax(0) @ rewards
        return float(J[primary] + (multipliers * (J[others] - targets)).sum())

    policy = theta.softmax(0)
    score = rewards @ lagrangian_weights(multipliers, primary)
    policy_gradient = policy * (score - policy @ score)  # E[(s - E s) grad log pi]
    expected = finite_difference(lambda t: lagrangian(t, multipliers), theta)
    torch.testing.assert_close(
        policy_gradient * (1 + multipliers.sum()), expected, rtol=1e-6, atol=1e-9
    )
    downhill = finite_difference(lambda m: lagrangian(theta, m), multipliers)
    moved = dual_step(multipliers, (policy @ rewards)[others], targets, 1e-3)
    torch.testing.assert_close(
        moved, (multipliers - 1e-3 * downhill).clamp(min=0), rtol=0, atol=1e-9
    )


def test_weights_stand_in_the_order_of_the_rewards():
    close(lagrangian_weights(tensor([3.0, 2.0]), 1), [0.5, 1 / 6, 1 / 3], 1e-12)
    close(with_primary(tensor([1.0, 2.0]), 2, 9.0), [1.0, 2.0, 9.0], 0)


def test_dual_ascent_solves_a_small_constrained_problem():
    """max J_0 subject to J_1 >= 0.6 over a two-arm policy, J_0 = p, J_1 = 1 - p: p goes to 0.4 and
    the multiplier to 1."""
    p, multipliers, averages = 0.5, tensor([0.0]), []
    for step in range(20000):
        multipliers = dual_step(multipliers, tensor([1 - p]), tensor([0.6]), 0.02)
        weights = lagrangian_weights(multipliers, 0)
        p = min(max(p + 0.02 * float(weights[0] - weights[1]), 0.0), 1.0)
        if step >= 10000:
            averages.append((p, float(multipliers)))
    mean_p, mean_multiplier = (
        sum(values) / len(averages) for values in zip(*averages, strict=True)
    )
    assert mean_p == pytest.approx(0.4, abs=0.02)
    assert mean_multiplier == pytest.approx(1, abs=0.15)


def test_the_batch_is_weighed_with_the_multipliers_it_has_just_moved(tmp_path):
    rows = train(
        "lagrangian",
        tmp_path / "run",
        prompts=8,
        primary="clarity",
        targets=(0.9, 0.2),
        dual_lr=0.5,
    )[1:]
    accuracy = conciseness = 0.0
    for row in rows:
        accuracy = max(accuracy + 0.5 * (0.9 - row["reward/accuracy"]), 0)
        conciseness = max(conciseness + 0.5 * (0.2 - row["reward/conciseness"]), 0)
        expected = [m / (1 + accuracy + conciseness) for m in (accuracy, conciseness, 1.0)]
        assert [row[f"weight/{o}"] for o in OBJECTIVES] == pytest.approx(
            expected, rel=1e-4, abs=1e-6
        )
        assert row["lagrangian/multiplier/accuracy"] == pytest.approx(accuracy, rel=1e-4)
        assert row["lagrangian/violation/accuracy"] == pytest.approx(
            0.9 - row["reward/accuracy"], abs=1e-6
        )
    state = torch.load(tmp_path / "run/checkpoints/step_000003/state.pt", weights_only=True)[
        "algorithm"
    ]
    assert state["multipliers"].tolist() == pytest.approx(
        [accuracy, conciseness], rel=1e-4, abs=1e-6
    )


def test_a_multiplier_stops_at_its_bound():
    made = Lagrangian(0, torch.zeros(2), torch.full((2,), 0.9), 100.0, 3.0)
    weights = made.weights(torch.tensor([[1.0, 0.5, 0.9], [0.0, 0.5, 0.9]]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 3.0, 0.0]) / 4)
    assert made.state["multipliers"].tolist() == [3.0, 0.0]


def test_without_dual_steps_it_is_linear(tmp_path):
    fixed = train("lagrangian", tmp_path / "l", dual_lr=0.0, multipliers=(1.0, 2.0))
    linear = train("linear", tmp_path / "linear", weights=(0.25, 0.25, 0.5))
    for row, other in zip(fixed, linear, strict=True):
        assert {k: v for k, v in row.items() if not k.startswith("lagrangian/")} == pytest.approx(
            other, rel=1e-3, abs=1e-4
        )
