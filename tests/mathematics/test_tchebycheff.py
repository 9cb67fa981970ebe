"""Tchebycheff's score and weights against the vectors and finite differences; its three variants
trained."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.tchebycheff import MirrorDescent, mirror_descent_step, smooth_weights, tchebycheff
from common.seeds import derive
from support.running import OBJECTIVES, train
from support.tensors import close, finite_difference, tensor
from testbed.arithmetic import problems


def case(seed: int, K: int) -> tuple[torch.Tensor, ...]:
    """Mean rewards, preference on the simplex and an ideal point above the rewards."""
    generator = torch.Generator().manual_seed(seed)
    mean, preference, above = torch.rand(3, K, generator=generator, dtype=torch.float64)
    return mean, (preference + 0.1) / (preference + 0.1).sum(), mean + above


def test_vectors(vectors):
    entry = vectors["tchebycheff_sequence_level"]
    inputs = {key: tensor(value) for key, value in entry["inputs"].items()}
    close(
        tchebycheff(inputs["R"], inputs["lambda"], inputs["z"]),
        entry["expected"]["score"],
        entry["tol"],
    )
    for mu in ("1", "0.1", "0.01"):  # written for losses f = 1 - J
        entry = vectors[f"smooth_tchebycheff_mu_{mu}"]
        inputs = {key: tensor(value) for key, value in entry["inputs"].items()}
        weights = smooth_weights(1 - inputs["f"], inputs["lambda"], 1 - inputs["z"], float(mu))
        gradient = tensor(entry["expected"]["gradient_weights"])
        close(weights, (gradient / gradient.sum()).tolist(), entry["tol"])
    entry = vectors["omd_tchebycheff_three_steps"]
    preference = tensor(entry["inputs"]["lambda"])
    log_weights = preference.log()
    for J, best, step in zip(
        entry["inputs"]["J"], entry["inputs"]["batch_max"], entry["expected"]["steps"], strict=True
    ):
        close(log_weights.softmax(0), step["weights_used"], entry["tol"])
        log_weights = mirror_descent_step(
            log_weights, preference, tensor(J), tensor(best), entry["inputs"]["omd_lr"]
        )
        close(log_weights, step["log_weights_after"], entry["tol"])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), K=st.sampled_from([1, 2, 3, 5]), temperature=st.floats(0.02, 5))
def test_smooth_weights_are_the_slopes_of_the_smooth_maximum(seed, K, temperature):
    mean, preference, ideal = case(seed, K)

    def smooth(J):
        return float(temperature * torch.logsumexp(preference * (ideal - J) / temperature, 0))

    slopes = -finite_difference(smooth, mean)
    torch.testing.assert_close(
        smooth_weights(mean, preference, ideal, temperature),
        slopes / slopes.sum(),
        rtol=1e-4,
        atol=1e-7,
    )
    largest = float((preference * (ideal - mean)).max())
    assert largest <= smooth(mean) + 1e-12 <= largest + temperature * math.log(K) + 1e-9


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), K=st.integers(2, 5))
def test_mirror_descent_maximises_the_weighted_distance_near_the_old_weights(seed, K):
    """w = argmax <w, p (z - J)> - KL(w || old) / lr on the simplex."""
    mean, preference, ideal = case(seed, K)
    old = case(seed + 1, K)[1]
    new = mirror_descent_step(old.log(), preference, mean, ideal, 0.7).softmax(0)

    def value(w):
        return float(w @ (preference * (ideal - mean)) - (w * (w / old).log()).sum() / 0.7)

    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        other = (
            new.log() + 0.1 * torch.randn(K, generator=generator, dtype=torch.float64)
        ).softmax(0)
        assert value(other) <= value(new) + 1e-12


def test_weights_accumulate_the_distance_and_the_ideal_is_the_best_in_training(tmp_path):
    rows = train("tchebycheff", tmp_path / "run", prompts=8)[1:]
    raw = dict.fromkeys(OBJECTIVES, 1 / 3)
    for row in rows:
        total = sum(raw.values())
        for o in OBJECTIVES:
            assert row[f"weight/{o}"] == pytest.approx(raw[o] / total, rel=1e-4)
            assert row[f"tchebycheff/ideal/{o}"] == 1
            raw[o] *= math.exp((1 - row[f"reward/{o}"]) / 3)
    assert rows[2]["weight/accuracy"] != pytest.approx(1 / 3, abs=1e-3)


def test_the_ideal_point_is_that_of_training_completions_only(tmp_path):
    """A reward that only evaluation prompts can earn does not move it."""
    order = np.random.default_rng(derive(1, 0)).permutation(len(problems("train")["prompt"]))[:4]
    train_prompts = [problems("train")["prompt"][i] for i in order]  # of the first step of seed 1
    (tmp_path / "held.py").write_text(
        f"SEEN = {train_prompts!r}\n\n\n"
        "def unseen(prompts, **columns):\n    return [float(p not in SEEN) for p in prompts]\n"
    )
    rewards = (f"{tmp_path / 'held.py'}:unseen", "rewards.accuracy:accuracy")
    rows = train("tchebycheff", tmp_path / "run", rewards=rewards, steps=1)
    assert rows[0]["eval/unseen"] == 1
    assert rows[1]["tchebycheff/ideal/unseen"] == 0


def test_no_weight_is_more_than_the_ratio_below_the_largest(tmp_path):
    rows = train("tchebycheff", tmp_path / "run", weight_lr=100.0, max_ratio=5.0, prompts=8)[1:]
    for row in rows[1:]:
        weights = [row[f"weight/{o}"] for o in OBJECTIVES]
        assert max(weights) / min(weights) == pytest.approx(5, rel=1e-4)


def test_preferences_beyond_the_ratio_are_kept():
    preference = tensor([100.0, 1.0, 1.0]) / 102
    controller, rewards = MirrorDescent(preference, 1.0, 20.0), torch.full((4, 3), 0.5).double()
    for _ in range(3):  # nothing is further from its ideal than the others
        close(controller.weights(rewards), preference.tolist(), 1e-9)


def test_the_classical_score_rewards_only_what_is_good_in_every_objective(tmp_path):
    """With rewards of 0 or 1 it is 1 - 1/K where all succeed: linear on that single reward."""
    (tmp_path / "all.py").write_text(
        "from rewards.accuracy import accuracy\nfrom rewards.clarity import clarity\n\n\n"
        "def both(**columns):\n"
        "    return [a * b for a, b in zip(accuracy(**columns), clarity(**columns))]\n"
    )
    two = train(
        "tchebycheff",
        tmp_path / "two",
        variant="classical",
        rewards=("rewards.accuracy:accuracy", "rewards.clarity:clarity"),
    )
    alone = train("linear", tmp_path / "alone", rewards=(f"{tmp_path / 'all.py'}:both",))
    for row, other in zip(two[1:], alone[1:], strict=True):
        for key in ("loss/policy", "grad/norm", "length/mean"):
            assert row[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5)
    assert two[1]["weight/accuracy"] == pytest.approx(0.5)


def test_the_smooth_variant_weighs_by_the_average_rewards_and_forgets(tmp_path):
    rows = train(
        "tchebycheff", tmp_path / "run", variant="smooth", ema_tau=1.0, smoothing=0.1, prompts=8
    )[1:]
    for row in rows:
        mean = tensor([row[f"reward/{o}"] for o in OBJECTIVES])
        expected = smooth_weights(
            mean, torch.full((3,), 1 / 3).double(), torch.ones(3).double(), 0.1
        )
        assert [row[f"weight/{o}"] for o in OBJECTIVES] == pytest.approx(
            expected.tolist(), rel=1e-4
        )
