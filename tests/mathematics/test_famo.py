"""FAMO's weights and direction against the vectors and finite differences; trained."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.famo import (
    FAMO,
    FLOOR,
    adam_step,
    famo_direction,
    famo_weights,
    reweighted_rewards,
)
from support.running import OBJECTIVES, train
from support.tensors import close, finite_difference, tensor


def case(seed: int, K: int) -> tuple[torch.Tensor, ...]:
    """Logits, gaps before and after a step."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(K, generator=generator, dtype=torch.float64)
    before, fall = torch.rand(2, K, generator=generator, dtype=torch.float64)
    return logits, before + 0.1, (before + 0.1) * (0.8 + 0.4 * fall)


@pytest.mark.parametrize(
    "name", ["famo_three_steps_reward_gap", "famo_three_steps_official_margin"]
)
def test_vectors(name, vectors):
    entry = vectors[name]
    inputs = entry["inputs"]
    minimum = (
        tensor([inputs["min_loss"]] * 3)
        if "min_loss" in inputs
        else tensor(inputs["first_loss"]) - inputs["margin"]
    )
    logits, m, v = torch.zeros(3, 3, dtype=torch.float64)
    t = 0
    for before, after, step in zip(
        inputs["loss_before"], inputs["loss_after"], entry["expected"]["steps"], strict=True
    ):
        gaps, gaps_after = (tensor(x) - minimum + inputs["eps"] for x in (before, after))
        close(logits.softmax(0), step["z_used"], 1e-7)
        close(famo_weights(logits, gaps), step["grad_weights"], 1e-7)
        direction = famo_direction(logits, gaps, gaps_after) + inputs["weight_decay"] * logits
        logits, m, v, t = adam_step(logits, direction, m, v, t, inputs["w_lr"])
        close(logits, step["w_after"], 1e-7)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), K=st.sampled_from([1, 2, 3, 5]))
def test_direction_and_weights_against_finite_differences(seed, K):
    logits, before, after = case(seed, K)
    improvement = before.log() - after.log()
    expected = finite_difference(lambda w: float(w.softmax(0) @ improvement), logits)
    torch.testing.assert_close(
        famo_direction(logits, before, after), expected, rtol=1e-5, atol=1e-8
    )
    slopes = finite_difference(lambda gaps: float(logits.softmax(0) @ gaps.log()), before)
    torch.testing.assert_close(
        famo_weights(logits, before), slopes / slopes.sum(), rtol=1e-5, atol=1e-8
    )


def test_adam_is_torchs():
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=0.025)
    logits, m, v = torch.zeros(3, 3, dtype=torch.float64)
    t = 0
    for i in range(20):
        gradient = torch.randn(3, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        parameter.grad = gradient.clone()
        optimizer.step()
        logits, m, v, t = adam_step(logits, gradient, m, v, t, 0.025)
    torch.testing.assert_close(logits, parameter.detach(), rtol=1e-9, atol=0)


def test_reweighted_rewards_are_the_new_policys():
    """All completions of a prompt that there are, drawn in proportion: the exact expectation under
    the new policy."""
    old, new = tensor([0.5, 0.25, 0.25]), tensor([0.1, 0.6, 0.3])
    drawn = torch.tensor([0, 0, 1, 2])
    rewards = tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    estimate = reweighted_rewards(rewards[drawn], (new / old).log()[drawn], 4)
    torch.testing.assert_close(estimate, new @ rewards)
    far = reweighted_rewards(rewards[drawn], tensor([500.0, -500.0, 0.0, 3.0]), 4)
    assert ((far >= 0) & (far <= 1)).all()
    two = reweighted_rewards(
        torch.cat([rewards[drawn], rewards[drawn]]),
        torch.cat([(new / old).log()[drawn], torch.zeros(4).double()]),
        4,
    )
    torch.testing.assert_close(two, (new @ rewards + old @ rewards) / 2)


def test_weights_follow_the_gaps_and_the_logits_follow_the_improvement(tmp_path):
    rows = train("famo", tmp_path / "run", prompts=8, weight_lr=0.5)[1:]
    for row in rows:
        gaps = tensor([row[f"famo/gap/{o}"] for o in OBJECTIVES])
        z = tensor([row[f"famo/z/{o}"] for o in OBJECTIVES])
        close(gaps, [1 - row[f"reward/{o}"] + FLOOR for o in OBJECTIVES], 1e-6)
        close(famo_weights(z.log(), gaps), [row[f"weight/{o}"] for o in OBJECTIVES], 1e-5)
    first = {o: rows[0][f"famo/improvement/{o}"] for o in OBJECTIVES}
    least, most = min(first, key=first.get), max(first, key=first.get)
    assert rows[1][f"famo/z/{least}"] > 1 / 3 > rows[1][f"famo/z/{most}"]


def test_without_a_step_nothing_improves(tmp_path):
    row = train("famo", tmp_path / "run", lr=0.0, weight_decay=0.0, steps=1)[1]
    assert all(row[f"famo/improvement/{o}"] == pytest.approx(0, abs=1e-5) for o in OBJECTIVES)


def test_an_objective_that_is_absent_does_not_hold_the_others_back():
    """The other two go as they go without it."""
    three, two = FAMO(torch.ones(3), 0.1, 1e-3), FAMO(torch.ones(2), 0.1, 1e-3)
    for step in range(10):
        rewards = torch.rand(8, 3, generator=torch.Generator().manual_seed(step))
        rewards[:, 2] = torch.nan
        for learner, own in ((three, rewards), (two, rewards[:, :2])):
            learner.weights(own)
            learner.reached(own.mean(0) + torch.tensor([0.02, 0.1, 0.0])[: own.size(1)])
    torch.testing.assert_close(three.state["logits"][:2], two.state["logits"])
    assert three.state["logits"][2] == 0 < three.state["logits"].abs().max()


def test_rounding_is_no_direction():
    """Nothing has moved, and nothing decays: rewards that float32 does not hold exactly."""
    rewards = torch.rand(64, 3, generator=torch.Generator().manual_seed(0)) / 3
    learner = FAMO(torch.ones(3), 0.1, 0.0)
    for _ in range(3):
        learner.weights(rewards)
        learner.learn(rewards, torch.zeros(64).double(), 4)
    assert learner.state["logits"].abs().max() < 1e-6


def test_without_an_update_the_means_are_those_of_the_batch_whatever_applies():
    rewards = torch.rand(32, 3, generator=torch.Generator().manual_seed(0)).double()
    rewards = rewards.masked_fill(
        torch.rand(32, 3, generator=torch.Generator().manual_seed(1)) < 0.4, torch.nan
    )
    found = reweighted_rewards(rewards, torch.zeros(32).double(), 4)
    torch.testing.assert_close(found, rewards.nanmean(0))
