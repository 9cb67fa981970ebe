"""Nash-MTL's bargaining solution against the vectors, its defining equation and a second
solver; its script on the testbed."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from algos.nash_mtl import nash_weights
from common.errors import UserError
from support.running import OBJECTIVES, train
from support.tensors import close, tensor


def gradients_of(seed: int, K: int, spread: float = 0.0) -> torch.Tensor:
    """K random gradients [K, K + 2] whose norms differ by up to 10^spread."""
    generator = torch.Generator().manual_seed(seed)
    G = torch.randn(K, K + 2, generator=generator, dtype=torch.float64)
    return G * 10 ** (spread * torch.rand(K, 1, generator=generator, dtype=torch.float64))


def gram_of(seed: int, K: int, spread: float = 0.0) -> torch.Tensor:
    """Their inner products [K, K]."""
    G = gradients_of(seed, K, spread)
    return G @ G.T


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    K=st.sampled_from([1, 2, 3, 5, 8]),
    spread=st.sampled_from([0.0, 3.0, 6.0]),
    exponent=st.integers(-12, 8),
)
def test_the_solution_is_stationary_and_every_objective_gains(seed, K, spread, exponent):
    gram = 10.0**exponent * gram_of(seed, K, spread)
    alpha = nash_weights(gram)
    assert (alpha > 0).all()
    assert (alpha * (gram @ alpha) - 1).abs().max() <= 1e-8
    assert float((alpha @ gram @ alpha).sqrt()) == pytest.approx(
        K**0.5, rel=1e-8
    )  # the direction's length
    assert ((gram @ alpha) > 0).all()


def test_vectors(vectors):
    used = [entry for entry in vectors.values() if entry["kind"] == "nash_mtl"]
    assert len(used) >= 3
    for entry in used:
        gram = tensor(entry["inputs"]["gram"])
        gram = gram + entry["inputs"].get(
            "ridge_rel_mean_trace", 0
        ) * gram.diagonal().mean() * torch.eye(len(gram))
        close(nash_weights(gram), entry["expected"]["alpha"], entry["tol"])


@pytest.mark.parametrize("K", [2, 3, 5])
def test_the_direction_maximises_the_product_of_the_gains(K):
    """The bargaining problem itself, max_d sum_k log <g_k, d> in a ball, by SciPy, from a direction
    in which everyone gains."""
    for seed in range(5):
        G = gradients_of(seed, K, 1.0).numpy()
        start = np.linalg.pinv(G) @ np.ones(K)
        start = start * K**0.5 / np.linalg.norm(start)
        found = minimize(
            lambda d, G=G: -np.log(np.maximum(G @ d, 1e-12)).sum(),
            start,
            jac=lambda d, G=G: -(1 / (G @ d)) @ G,
            method="SLSQP",
            constraints={"type": "ineq", "fun": lambda d: K - d @ d, "jac": lambda d: -2 * d},
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        direction = nash_weights(torch.from_numpy(G @ G.T)).numpy() @ G
        np.testing.assert_allclose(direction, found.x, atol=1e-5)


def test_equal_gradients_share_alike():
    for K in (1, 2, 3, 5):
        gram = torch.full((K, K), 4.0, dtype=torch.float64)
        close(nash_weights(gram), [1 / (4 * K) ** 0.5] * K, 1e-8)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
@example(seed=2465)  # parallel but for 1e-4: rounding alone is more than 1e-9
def test_nearly_opposed_gradients_are_solved(seed):
    generator = torch.Generator().manual_seed(seed)
    g, noise = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    G = torch.stack([g, -0.5 * g + 1e-3 * noise])
    gram = G @ G.T
    assume(torch.linalg.det(gram) > 0)
    alpha = nash_weights(gram)
    rounding = (
        1e-14 * float((alpha * gram.diagonal().sqrt()).max()) ** 2
    )  # of H alpha, whose terms cancel
    assert (alpha * (gram @ alpha) - 1).abs().max() <= 1e-8 + rounding


@pytest.mark.parametrize(
    "gram", [[[1.0, -1.0], [-1.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]], [[1.0, -2.0], [-2.0, 4.0]]]
)
def test_where_there_is_no_solution_the_flag_is_named_and_a_ridge_helps(gram):
    with pytest.raises(UserError, match="--ridge"):
        nash_weights(tensor(gram))
    alpha = nash_weights(tensor(gram) + 1e-4 * torch.eye(2))
    assert (alpha * ((tensor(gram) + 1e-4 * torch.eye(2)) @ alpha) - 1).abs().max() <= 1e-8


def test_the_step_has_the_mean_length_of_the_gradients(tmp_path):
    row = train(
        "nash_mtl",
        tmp_path / "run",
        steps=1,
        prompts=8,
        kl_coef=0.0,
        mini_batches=1,
        ridge=0.0,
        completions=8,
    )[1]
    norms = [row[f"nash_mtl/grad_norm/{o}"] for o in OBJECTIVES]
    assert row["grad/norm"] == pytest.approx(sum(norms) / 3, rel=1e-4)
    assert min(row[f"weight/{o}"] for o in OBJECTIVES) > 0
