"""UPGrad's projections against the optimality conditions, SciPy on the gradients themselves, and
laws; trained."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from algos.upgrad import UPGrad, project_each
from support.running import OBJECTIVES, read_lines, train
from support.tensors import close, tensor

KINDS = ["plain", "scaled", "opposed", "flat", "equal"]


def gradients(seed: int, K: int, kind: str) -> torch.Tensor:
    """K gradients [K, 8] that make the problem hard in a given way."""
    draw = torch.Generator().manual_seed(seed)
    G = torch.randn(K, 8, generator=draw, dtype=torch.float64)
    if kind == "scaled":
        return G * 10 ** (torch.rand(K, 1, generator=draw, dtype=torch.float64) * 8 - 4)
    if kind == "opposed":
        G[-1] = -0.7 * G[0] + 1e-2 * G[-1]
    if kind == "flat":  # of rank 2: often only 0 opposes nobody
        G = G[:, :2] @ torch.randn(2, 8, generator=draw, dtype=torch.float64)
    if kind == "equal":
        G[-1] = G[0]
    return G


def weigh(G: torch.Tensor) -> torch.Tensor:
    return UPGrad().weigh(G @ G.T).double()


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), K=st.integers(1, 6))
@example(seed=36649, K=6)  # opposed: 2.6e-5 off
def test_projections_are_those_of_non_negative_least_squares(kind, seed, K):
    """The multipliers m >= 0 make ||g_i + sum_k m_k g_k|| least: SciPy never sees the Gram matrix.
    And no objective is opposed by any projection, nor so by their mean.

    What counts as a tie, a violation of 1e-6 in units of the lengths, moves a projection by at most
    the root of that times the multipliers and slopes of the exact one: each system's own products
    of both are 0. That is little but where a gradient nearly is another's opposite.
    """
    G = gradients(seed, K, kind)
    found, lengths = project_each(G @ G.T) @ G, G.norm(dim=1)
    unit = (G / lengths[:, None]).numpy()
    for i in range(K):
        added, _ = nnls(unit.T, -unit[i], maxiter=1000)
        off = np.linalg.norm(found[i].numpy() / lengths[i].item() - (unit[i] + added @ unit))
        assert off <= ((1e-6 * (added.sum() + K)) ** 0.5 if kind == "opposed" else 2e-5)
    slopes = found @ G.T / torch.outer(lengths, lengths)
    assert slopes.min() > -2e-6


def test_two_opposed_gradients_by_hand():
    """Each loses its part along the other; a third that agrees with both keeps all of it."""
    G = tensor([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    found = project_each(G @ G.T) @ G
    close(found, [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0]], 1e-12)
    close(weigh(G) @ G, [0.5 / 3, 0.5, 5 / 3], 1e-6)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), K=st.integers(1, 5))
def test_laws(seed, K):
    """Without a conflict the mean; in other units a projection is the same; equal gradients, up to
    float32's rounding, share their weight; one without a gradient has none."""
    draw = torch.Generator().manual_seed(seed)
    agreeing = torch.rand(K, 8, generator=draw, dtype=torch.float64)
    close(weigh(agreeing), [1 / K] * K, 1e-6)
    G, scale = gradients(seed, K, "plain"), 10 ** (6 * torch.rand(K, generator=draw).double() - 3)
    S = scale[:, None] * G
    torch.testing.assert_close(
        project_each(S @ S.T) @ S, scale[:, None] * (project_each(G @ G.T) @ G)
    )
    noise = 3e-8 * torch.randn(G.shape, generator=draw, dtype=torch.float64)
    both = torch.cat([G, G[:1] * (1 + noise[:1])])
    weights = weigh(both)
    close(weights[:1], [float(weights[-1])], 1e-4)
    close(weigh(torch.cat([G, 0 * G[:1]])), [*weigh(G).tolist(), 0.0], 1e-6)


def test_a_run_steps_with_these_weights(tmp_path):
    """By the Gram matrix that it keeps, whose root SciPy projects: they give the same direction."""
    rows = train("upgrad", tmp_path / "run", steps=2, prompts=8, mini_batches=1)[1:]
    for row, line in zip(rows, read_lines(tmp_path / "run/statistics.jsonl"), strict=True):
        (gram,) = np.array(line["gram"])
        assert gram.diagonal().min() > 0 > gram.min()  # a conflict
        values, vectors = np.linalg.eigh(gram)
        G = (vectors * np.sqrt(values.clip(0))).T  # columns whose inner products these are
        wanted = np.mean([G[:, i] + G @ nnls(G, -G[:, i])[0] for i in range(3)], 0)
        found = G @ [row[f"weight/{name}"] for name in OBJECTIVES]
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(G).max())
