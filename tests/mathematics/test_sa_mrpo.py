"""SA-MRPO's weights against the paper's formula and laws; trained."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.sa_mrpo import saturation_weights
from support.decoupled import batches, normalised, whitened
from support.running import OBJECTIVES, train
from support.tensors import close, tensor

ZERO, ONE = torch.zeros(3).double(), torch.ones(3).double()


def test_the_formula():
    rewards, weights = (
        tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        tensor([0.5, 0.25, 0.25]),
    )
    close(
        saturation_weights(weights, rewards, ZERO, ONE, 1.0),
        [0.125 / 0.5, 0.1875 / 0.5, 0.1875 / 0.5],
        1e-12,
    )
    squared = np.array([0.5 / 16, 0.25 * 9 / 16, 0.25 * 9 / 16])
    close(
        saturation_weights(weights, rewards, ZERO, ONE, 2.0),
        (squared / squared.sum()).tolist(),
        1e-12,
    )
    close(saturation_weights(weights, rewards, ZERO, ONE, 0.0), [0.5, 0.25, 0.25], 1e-12)
    close(
        saturation_weights(weights, 10 * rewards - 5, ZERO - 5, ONE + 4, 1.0),
        [0.25, 0.375, 0.375],
        1e-12,
    )  # other units


@pytest.mark.parametrize("prescribed", [[0.5, 0.3, 0.2], [0.5, 0.0, 0.5]])
def test_where_all_is_reached_the_prescribed_weights_stand(prescribed):
    reached = torch.ones(4, 3).double()
    close(saturation_weights(tensor(prescribed), reached, ZERO, ONE, 1.0), prescribed, 1e-12)


def test_an_objective_of_weight_0_is_only_watched(tmp_path):
    for row in train("sa_mrpo", tmp_path / "run", steps=2, weights=(1.0, 0.0, 1.0))[1:]:
        assert row["weight/conciseness"] == 0


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), gamma=st.floats(0.1, 5))
def test_laws(seed, gamma):
    """The paper's ratio (section 4.1): it falls with gamma where a is nearer to its best than b;
    and the order of objectives is free."""
    generator = torch.Generator().manual_seed(seed)
    rewards, weights = (
        torch.rand(8, 3, generator=generator).double(),
        torch.rand(3, generator=generator).double() + 0.1,
    )
    found, order = (
        saturation_weights(weights, rewards, ZERO, ONE, gamma),
        torch.randperm(3, generator=generator),
    )
    assert float(found.sum()) == pytest.approx(1)
    torch.testing.assert_close(
        saturation_weights(weights[order], rewards[:, order], ZERO, ONE, gamma), found[order]
    )
    level = rewards.mean(0)
    high, low = int(level.argmax()), int(level.argmin())
    assert float(found[high] / found[low]) < float(weights[high] / weights[low]) or high == low


def test_a_run_has_these_advantages(tmp_path):
    rows = train("sa_mrpo", tmp_path / "run", steps=2, gamma=2.0, weights=(3.0, 2.0, 1.0))[1:]
    for row, (rewards, lengths, advantages) in zip(rows, batches(tmp_path / "run"), strict=True):
        weights = np.array([3, 2, 1]) * (1 - rewards.mean(0)) ** 2
        weights /= weights.sum()
        assert [row[f"weight/{name}"] for name in OBJECTIVES] == pytest.approx(weights, abs=1e-5)
        np.testing.assert_allclose(
            advantages, whitened(normalised(rewards, 4) @ weights, lengths), atol=2e-4
        )
