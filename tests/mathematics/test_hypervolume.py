"""Hypervolume against the vector, inclusion and exclusion, and laws; trained."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.hypervolume import extend, hypervolume, step_factor
from common.errors import UserError
from support.running import train
from support.tensors import tensor


def test_vector(vectors):
    entry = vectors["dynamic_hypervolume_meta_reward"]
    front, new, reference = (tensor(entry["inputs"][key]) for key in ("front", "new", "reference"))
    gain, extended = extend(front, new, reference)
    assert step_factor(gain) == pytest.approx(entry["expected"]["meta_reward"], abs=entry["tol"])
    assert gain == pytest.approx(entry["expected"]["delta_hv"], abs=1e-12)
    assert len(extended) == 3


@pytest.mark.parametrize("K", [1, 2, 3, 5])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), N=st.integers(0, 6))
def test_hypervolume_is_that_of_the_union_of_boxes(K, seed, N):
    """Against inclusion and exclusion over all subsets of the points."""
    generator = torch.Generator().manual_seed(seed)
    points, reference = (torch.rand(N, K, generator=generator) * 8).round().double() / 8, torch.full((K,), 0.25).double()
    expected = 0.0
    for subset in range(1, 2**N):
        rows = [i for i in range(N) if subset >> i & 1]
        expected -= (-1) ** len(rows) * float((points[rows].amin(0) - reference).clamp(min=0).prod())
    assert hypervolume(points, reference) == pytest.approx(expected, abs=1e-12)


def test_the_step_is_longer_only_where_the_front_grows():
    reference, front = tensor([0.0, 0.0]), tensor([[0.5, 0.5]])
    gain, same = extend(front, tensor([0.4, 0.5]), reference)
    assert step_factor(gain) == 0.5
    assert torch.equal(same, front)
    gain, longer = extend(front, tensor([0.6, 0.4]), reference)
    assert step_factor(gain) == pytest.approx(0.5 + 1.5 * math.tanh(0.1 * 0.4))
    assert len(longer) == 2
    gain, shorter = extend(longer, tensor([0.7, 0.5]), reference)  # which is better than both in everything
    assert step_factor(gain) == pytest.approx(0.5 + 1.5 * math.tanh(0.7 * 0.5 - hypervolume(longer, reference)))
    assert shorter.tolist() == [[0.7, 0.5]]


def test_it_acts_on_the_step_and_keeps_the_weights(tmp_path):
    """Not cancelled by the normalisation: the parameters end elsewhere than linear's, by another step length from the first step on."""
    rows = train("hypervolume", tmp_path / "run", prompts=8)
    linear = train("linear", tmp_path / "linear", prompts=8)
    assert rows[1]["lr"] == pytest.approx(0.5e-4)  # the first batch is the reference point and adds no volume
    assert all(row["hypervolume/factor"] == pytest.approx(step_factor(row["hypervolume/gain"])) for row in rows[1:])
    assert all(row["lr"] == pytest.approx(1e-4 * row["hypervolume/factor"]) for row in rows[1:])
    assert all(row["weight/accuracy"] == pytest.approx(1 / 3) for row in rows[1:])
    assert rows[1]["loss/policy"] == pytest.approx(linear[1]["loss/policy"], abs=0.02)
    assert rows[3]["reward/accuracy"] != linear[3]["reward/accuracy"] or rows[3]["loss/kl"] != linear[3]["loss/kl"]
    state = torch.load(tmp_path / "run/checkpoints/step_000003/state.pt", weights_only=True)["algorithm"]
    assert state["reference"][0].item() == pytest.approx(rows[1]["reward/accuracy"])


def test_wrong_flags_are_named(tmp_path):
    with pytest.raises(UserError, match="--weights .* nor all zero"):
        train("hypervolume", tmp_path / "run", weights=(0.0, 0.0, 0.0))
