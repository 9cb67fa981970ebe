"""Dynamic weighting: the weight step against vectors and mirror ascent; trained."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.dynamic_weighting import update_weights
from common.grads import Gradients
from support.own_rewards import OWN
from support.running import OBJECTIVES, train
from support.tensors import close, tensor


def test_vectors(vectors):
    entry = vectors["dynamic_two_steps_upstream"]
    weights = tensor(entry["inputs"]["w0"])
    for gram, step in zip(entry["inputs"]["grams"], entry["expected"]["steps"], strict=True):
        influence = tensor(gram).sum(1)
        weights = update_weights(weights, influence, entry["inputs"]["lr"], entry["inputs"]["mu"])
        close(weights, step["w"], entry["tol"])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), K=st.sampled_from([1, 2, 3, 5]))
def test_the_weight_step_is_mirror_ascent(seed, K):
    """It maximises <influence, w> - (mu / lr) KL(w || old w) on the simplex: no other weights do
    better."""
    generator = torch.Generator().manual_seed(seed)
    old = torch.rand(K, generator=generator, dtype=torch.float64).softmax(0)
    influence = torch.randn(K, generator=generator, dtype=torch.float64)
    new = update_weights(old, influence, 0.2, 0.5)

    def value(w):
        return float(influence @ w - 0.5 / 0.2 * (w * (w / old).log()).sum())

    assert float(new.sum()) == pytest.approx(1)
    for _ in range(20):
        other = (
            new.log() + 0.1 * torch.randn(K, generator=generator, dtype=torch.float64)
        ).softmax(0)
        assert value(other) <= value(new) + 1e-12


def test_influence_is_the_row_sum_of_the_inner_products_of_the_first_update(tmp_path):
    """One mini-batch without KL: the combined gradient of MGDA's kind of run at equal weights is
    (1/K) sum_j g_j."""
    row = train(
        "dynamic_weighting", tmp_path / "run", steps=1, prompts=8, mini_batches=1, kl_coef=0.0
    )[1]
    other = train("gradnorm", tmp_path / "other", steps=1, prompts=8, mini_batches=1, kl_coef=0.0)[
        1
    ]
    total = sum(row[f"dynamic_weighting/influence/{o}"] for o in OBJECTIVES)  # = ||sum_j g_j||^2
    assert total == pytest.approx((3 * other["grad/norm"]) ** 2, rel=1e-3)


def test_weights_follow_the_influence(tmp_path):
    rows = train("dynamic_weighting", tmp_path / "run", prompts=8, mu=1e-3)[1:]
    before = dict.fromkeys(OBJECTIVES, 1 / 3)
    for row in rows:
        raw = {
            o: before[o] * math.exp(1e-4 / 1e-3 * row[f"dynamic_weighting/influence/{o}"])
            for o in OBJECTIVES
        }
        for o in OBJECTIVES:
            assert row[f"weight/{o}"] == pytest.approx(raw[o] / sum(raw.values()), rel=1e-4)
        before = {o: row[f"weight/{o}"] for o in OBJECTIVES}
    assert before["accuracy"] != pytest.approx(1 / 3, abs=1e-3)
    state = torch.load(tmp_path / "run/checkpoints/step_000003/state.pt", weights_only=True)[
        "algorithm"
    ]
    assert float(state["weights"][0]) == pytest.approx(before["accuracy"])


def test_no_weight_falls_under_the_floor(tmp_path):
    rows = train("dynamic_weighting", tmp_path / "run", prompts=8, mu=1e-6, weight_floor=0.05)[1:]
    shares = [[row[f"weight/{o}"] for o in OBJECTIVES] for row in rows]
    assert min(min(share) for share in shares) == pytest.approx(0.05 / 1.1, rel=0.05)
    assert all(sum(share) == pytest.approx(1) for share in shares)


def test_an_objective_without_a_gradient_has_no_influence(tmp_path):
    rewards = (f"{OWN}:flat", "rewards.accuracy:accuracy", "rewards.clarity:clarity")
    row = train("dynamic_weighting", tmp_path / "run", rewards=rewards, steps=1, prompts=8)[1]
    assert row["dynamic_weighting/influence/flat"] == pytest.approx(0, abs=1e-9)
    assert row["dynamic_weighting/influence/accuracy"] != 0


def test_weights_outlive_gradients_that_are_not_finite(tmp_path, monkeypatch):
    original, made = Gradients.gram, []

    def gram(self, count):
        made.append(original(self, count))
        return made[-1] * torch.inf if len(made) == 2 else made[-1]

    monkeypatch.setattr(Gradients, "gram", gram)
    rows = train("dynamic_weighting", tmp_path / "run", mu=1e-5, prompts=8)
    weights = [[row[f"weight/{name}"] for name in OBJECTIVES] for row in rows[1:]]
    assert weights[0] == weights[1] != weights[2]
    assert all(sum(own) == pytest.approx(1) for own in weights)
