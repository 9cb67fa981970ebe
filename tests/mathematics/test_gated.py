"""The gate against its definition and what it is for; trained."""

import numpy as np
import pytest

from algos.gated import gated_scores
from common.controllers import within_prompt_covariance
from support.decoupled import batches, whitened
from support.running import train
from support.tensors import close, tensor


def test_the_definition():
    rewards, weights = (
        tensor([[1.0, 0.0, 1.0], [0.5, 1.0, 1.0], [0.4, 1.0, 1.0], [0.0, 0.0, 0.0]]),
        tensor([0.5, 0.25, 0.25]),
    )
    close(gated_scores(rewards, weights, 0.5), [0.75, 0.75, 0.2, 0.0], 1e-12)
    close(gated_scores(rewards, weights, 0.0), (rewards @ weights).tolist(), 1e-12)  # linear


def test_an_outvoted_objective_is_no_longer_outvoted():
    """Short, tidy, wrong against long and right: the sum prefers the wrong one, the gate the right
    one."""
    rewards = tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]] * 4)
    weights = tensor([1 / 3] * 3)
    assert within_prompt_covariance(rewards @ weights, rewards, 8)[0] < 0
    assert within_prompt_covariance(gated_scores(rewards, weights, 0.5), rewards, 8)[0] > 0


def test_a_run_has_these_advantages(tmp_path):
    rows = train("gated", tmp_path / "run", steps=2, weights=(3.0, 2.0, 1.0))[1:]
    for row, (rewards, lengths, advantages) in zip(rows, batches(tmp_path / "run"), strict=True):
        scores = np.array([(3 * r[0] + (2 * r[1] + r[2]) * (r[0] >= 0.5)) / 6 for r in rewards])
        np.testing.assert_allclose(advantages, whitened(scores, lengths), atol=2e-4)
        assert row["gated/earned"] == pytest.approx((rewards[:, 0] >= 0.5).mean())
