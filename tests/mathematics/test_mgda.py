"""MGDA's weights against the vectors, the optimality conditions and SciPy; trained."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from algos.mgda import merge_equal, min_norm_weights
from support.running import train
from support.tensors import close, tensor


def gradients(seed: int, K: int, kind: str) -> torch.Tensor:
    """K gradients [K, P] that make the problem hard in a given way."""
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(K, 8, generator=generator, dtype=torch.float64)
    if kind == "scaled":
        return G * 10 ** (torch.rand(K, 1, generator=generator, dtype=torch.float64) * 8 - 4)
    if kind == "tiny":
        return G * 1e-12
    if kind == "alike":
        return G[:1] + 1e-3 * G
    if kind == "opposed":
        return torch.cat([G[:-1], -0.7 * G[:1] + 1e-4 * G[-1:]]) if K > 1 else G
    if kind == "flat":  # of rank 2: often some combination cancels
        return G[:, :2] @ torch.randn(2, 8, generator=generator, dtype=torch.float64)
    if kind == "zero":
        G[K // 2] = 0
    return G


def kkt_residual(weights: torch.Tensor, gram: torch.Tensor) -> float:
    """How far w is from optimal: (Hw)_k >= w'Hw for all k, relative to the largest squared norm
    that w leans on."""
    slopes = gram @ weights
    return float(
        ((weights @ slopes) - slopes.min()) / (gram.diagonal()[weights > 0].max() + 1e-300)
    )


KINDS = ["plain", "scaled", "tiny", "alike", "opposed", "flat", "zero"]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), K=st.integers(1, 6))
def test_weights_are_on_the_simplex_and_optimal(kind, seed, K):
    G = gradients(seed, K, kind)
    gram = G @ G.T
    weights = min_norm_weights(gram)
    assert (weights >= 0).all()
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    assert kkt_residual(weights, gram) <= 1e-9


def test_the_residual_sees_a_wrong_answer():
    G = gradients(0, 3, "plain")
    assert kkt_residual(min_norm_weights(G @ G.T) + tensor([1e-6, -1e-6, 0]), G @ G.T) > 1e-8


def test_vectors(vectors):
    used = {
        name: entry
        for name, entry in vectors.items()
        if name.startswith(("mgda", "simplex_projection"))
    }
    assert len(used) >= 5
    for name, entry in used.items():
        inputs, expected = entry["inputs"], entry["expected"]
        if name.startswith(
            "simplex_projection"
        ):  # the point of the simplex nearest v is the shortest combination of the e_k - v
            rows = torch.eye(3, dtype=torch.float64) - tensor(inputs["v"])
            close(min_norm_weights(rows @ rows.T), expected["w"], entry["tol"])
        elif name == "mgda_two_objective_closed_form":
            G = torch.stack([tensor(inputs["g1"]), tensor(inputs["g2"])])
            assert float(min_norm_weights(G @ G.T)[0]) == pytest.approx(
                expected["w1"], abs=entry["tol"]
            )
        else:
            weights = min_norm_weights(tensor(inputs["gram"]))
            close(weights, expected["w"], entry["tol"])
            close(weights @ tensor(inputs["G"]), expected["direction"], entry["tol"])


@pytest.mark.parametrize("kind", ["plain", "alike", "opposed"])
@pytest.mark.parametrize("K", [2, 3, 5])
def test_no_shorter_combination_is_found_by_slsqp(K, kind):
    for seed in range(10):
        G = gradients(seed, K, kind)
        H = (G @ G.T / (G * G).sum(1).max()).numpy()
        found = minimize(
            lambda w, H=H: w @ H @ w,
            np.full(K, 1 / K),
            jac=lambda w, H=H: 2 * H @ w,
            bounds=[(0, 1)] * K,
            method="SLSQP",
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-15, "maxiter": 500},
        )
        weights = min_norm_weights(torch.from_numpy(H)).numpy()
        assert weights @ H @ weights <= found.fun + 1e-12
        assert weights @ H @ weights == pytest.approx(found.fun, abs=1e-6)


def test_equal_gradients_share_their_weight():
    for K in (1, 2, 3, 5):
        close(min_norm_weights(torch.full((K, K), 4.0)), [1 / K] * K, 1e-12)
    G = tensor([[1.0, 0.2], [1.0, 0.2], [-0.1, 0.5]])
    weights = min_norm_weights(G @ G.T)
    pair = min_norm_weights(G[1:] @ G[1:].T)
    close(weights, [pair[0] / 2, pair[0] / 2, pair[1]], 1e-9)


def test_normalized_gradients_lengthen_the_direction(tmp_path):
    """The weights for unit gradients differ from the plain ones, and the direction is the longer
    one: the plain one is the shortest."""
    plain = train("mgda", tmp_path / "a", steps=1, prompts=8, kl_coef=0.0, mini_batches=1)[1]
    unit = train(
        "mgda", tmp_path / "b", steps=1, prompts=8, kl_coef=0.0, mini_batches=1, normalize=True
    )[1]
    assert unit["grad/norm"] > plain["grad/norm"]
    assert unit["weight/accuracy"] != pytest.approx(plain["weight/accuracy"], rel=1e-3)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), K=st.sampled_from([2, 3, 5]), scale=st.floats(1e-4, 1e4))
def test_gradients_that_differ_by_rounding_share_the_weights(seed, K, scale):
    """In float32, summed in another order as on another number of ranks: the weights must not
    depend on it."""
    generator = torch.Generator().manual_seed(seed)
    gradients = scale * torch.randn(K, 40, generator=generator, dtype=torch.float64)
    gradients[1] = gradients[0]  # two objectives that earn the same
    found = []
    for _ in range(3):
        rounded = gradients * (
            1 + 3e-8 * torch.randn(K, 40, generator=generator, dtype=torch.float64)
        )
        found.append(min_norm_weights(merge_equal(rounded @ rounded.T)))
    assert found[0][0] == pytest.approx(float(found[0][1]), abs=1e-9)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-5)
    apart = scale * torch.randn(K, 40, generator=generator, dtype=torch.float64)
    assert torch.equal(
        merge_equal(apart @ apart.T), apart @ apart.T
    )  # others are left as they are, to the last bit
