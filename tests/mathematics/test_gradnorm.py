"""GradNorm's weight step against the vectors and finite differences; its script's state and
losses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.gradnorm import FLOOR, MIN_WEIGHT, GradNorm, gradnorm_step
from support.own_rewards import OWN
from support.running import OBJECTIVES, train
from support.tensors import close, finite_difference, tensor


def case(seed: int, K: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    weights, norms, losses, first = torch.rand(4, K, generator=generator, dtype=torch.float64) + 0.1
    return {
        "weights": weights * K / weights.sum(),
        "grad_norms": norms,
        "losses": losses,
        "initial_losses": first,
    }


def test_vectors(vectors):
    for name in ("gradnorm_positive_losses", "gradnorm_second_step", "gradnorm_reward_gap_losses"):
        entry = vectors[name]
        inputs = entry["inputs"]
        tensors = [tensor(inputs[key]) for key in ("w", "grad_norms", "loss", "loss0")]
        close(
            gradnorm_step(*tensors, inputs["alpha"], inputs["lr"]),
            entry["expected"]["w_new"],
            entry["tol"],
        )


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), K=st.integers(2, 5))
def test_the_step_descends_the_loss_of_the_weights_with_the_target_held(seed, K):
    inputs = case(seed, K)
    weights, norms = inputs["weights"], inputs["grad_norms"]
    rate = inputs["losses"] / inputs["initial_losses"]
    target = (weights * norms).mean() * (rate / rate.mean()) ** 1.5
    slope = finite_difference(lambda w: float((w * norms - target).abs().sum()), weights, 1e-7)
    lr = 1e-3
    moved = weights - lr * slope
    torch.testing.assert_close(
        gradnorm_step(**inputs, alpha=1.5, lr=lr), moved * K / moved.sum(), rtol=1e-6, atol=0
    )


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), K=st.integers(1, 5), lr=st.floats(0, 100), alpha=st.floats(0, 3))
def test_weights_stay_positive_and_sum_to_the_number_of_objectives(seed, K, lr, alpha):
    weights = gradnorm_step(**case(seed, K), alpha=alpha, lr=lr)
    assert float(weights.sum()) == pytest.approx(K)
    assert (weights > 0).all()


def test_with_alpha_0_repeated_steps_make_the_gradients_alike():
    inputs = case(3, 3)
    weights, rest = inputs["weights"], list(inputs.values())[1:]
    for _ in range(4000):
        weights = gradnorm_step(weights, *rest, alpha=0.0, lr=1e-3)
    lengths = weights * inputs["grad_norms"]
    torch.testing.assert_close(lengths, lengths.mean().expand(3), rtol=0.02, atol=0)


def test_the_weights_are_learned_from_the_gaps_and_logged(tmp_path):
    rows = train("gradnorm", tmp_path / "run", prompts=8, weight_lr=0.1)[1:]
    assert all(rows[0][f"weight/{o}"] == pytest.approx(1 / 3, abs=0.1) for o in OBJECTIVES)
    assert any(rows[2][f"weight/{o}"] != pytest.approx(1 / 3, abs=1e-3) for o in OBJECTIVES)
    assert all(sum(row[f"weight/{o}"] for o in OBJECTIVES) == pytest.approx(1) for row in rows)
    state = torch.load(tmp_path / "run/checkpoints/step_000003/state.pt", weights_only=True)[
        "algorithm"
    ]
    assert float(state["weights"].sum()) == pytest.approx(3, rel=1e-5)
    average = rows[0]["reward/accuracy"]
    for row in rows[1:]:
        average = 0.7 * average + 0.3 * row["reward/accuracy"]
    assert rows[2]["gradnorm/average_reward/accuracy"] == pytest.approx(average, abs=1e-6)
    assert state["seen"].tolist() == [6, 6, 6]  # updates
    average, gaps = None, 0  # of the batch means; and of each step's two updates
    for row in rows:
        seen = torch.tensor([row[f"reward/{o}"] for o in OBJECTIVES])
        average = seen if average is None else 0.7 * average + 0.3 * seen
        gaps = gaps + 2 * (1 - average).clamp(min=FLOOR)
    torch.testing.assert_close(state["first"], gaps)
    assert float(state["weights"].min()) > MIN_WEIGHT


def test_an_objective_that_no_completion_has_yet_is_waited_for():
    learner, gram = GradNorm(torch.ones(2), 1.0, 0.1, 0.3), torch.diag(torch.tensor([4.0, 0.0]))
    learner.see(torch.tensor([[0.5, torch.nan]]))
    assert learner.weigh(gram.double()).tolist() == [0.5, 0.5]
    for _ in range(20):
        learner.see(torch.tensor([[0.5, 0.2]]))
        weights = learner.weigh(torch.eye(2).double() * torch.tensor([4.0, 1.0]))
    assert weights[1] > weights[0]  # its gradient is the shorter
    assert learner.state["ema"].tolist() == pytest.approx([0.5, 0.2])


@pytest.mark.parametrize("missing", [(0, 1, 2, 3, 4), (0, 3, 7)])
def test_the_first_losses_of_an_objective_are_those_that_it_has(missing):
    """Two that are equal but for batches without one of them are weighed equally in the end."""
    learner, gram = GradNorm(torch.ones(2), 1.5, 0.1, 0.3), torch.eye(2).double()
    for step in range(40):
        absent = step in missing
        learner.see(torch.tensor([[0.5, torch.nan if absent else 0.5]]))
        weights = learner.weigh(gram * torch.tensor([1.0, 0.0 if absent else 1.0]))
    assert weights.tolist() == pytest.approx([0.5, 0.5], abs=1e-5)


def test_an_objective_without_a_gradient_keeps_its_weight(tmp_path):
    rewards = (f"{OWN}:flat", "rewards.accuracy:accuracy", "rewards.clarity:clarity")
    rows = train("gradnorm", tmp_path / "run", rewards=rewards, steps=3, prompts=8, weight_lr=0.1)
    assert all(row["gradnorm/no_gradient/flat"] == 1 for row in rows[1:])
    assert all(row["weight/flat"] == pytest.approx(1 / 3, abs=1e-6) for row in rows[1:])
    assert rows[3]["weight/accuracy"] != pytest.approx(1 / 3, abs=1e-3)
    assert rows[3]["grad/norm"] > 0.01


def test_a_reward_may_be_at_its_best_everywhere(tmp_path):
    """Whose mean in float32 is above .1 by rounding."""
    (tmp_path / "low.py").write_text(
        "def low(completions, **columns):\n    return [0.1] * len(completions)\n"
    )
    rewards = ("rewards.accuracy:accuracy", f"{tmp_path / 'low.py'}:low")
    rows = train(
        "gradnorm",
        tmp_path / "run",
        rewards=rewards,
        reward_max=(1.0, 0.1),
        steps=1,
        prompts=8,
        completions=8,
    )
    assert torch.full((64,), 0.1).mean().item() > torch.tensor(0.1).item()
    assert rows[1]["reward/low"] == pytest.approx(0.1)
