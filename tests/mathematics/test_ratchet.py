"""The ratchet's levels, what it holds, its multipliers, and what a run makes of its own move."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algos.pama import pareto_scalar
from algos.ratchet import Args, Ratchet, follow, good_for_all, what_moved
from support.decoupled import batches, normalised, whitened
from support.running import OBJECTIVES, read_lines, train
from support.tensors import tensor

AHEAD, TRUST, COMMON = Args().ahead, Args().trust, Args().common
CHANGES = st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=30)


def followed(seen, changes, trust: float = TRUST) -> tuple[np.ndarray, np.ndarray]:
    """Levels and what is held after every step, both [steps, K], of two sequences [steps, K]."""
    level = held = torch.zeros(len(changes[0]), dtype=torch.float64)
    found = []
    for i, (mean, change) in enumerate(zip(seen, changes, strict=True)):
        count = torch.full_like(level, i + 1)
        level, held = follow(level, held, tensor(mean), tensor(change), count, trust)
        found.append((level.numpy(), held.numpy()))
    return tuple(np.array(part) for part in zip(*found, strict=True))


@given(CHANGES)
def test_without_noise_it_knows_the_levels_and_holds_what_one_policy_had(changes):
    """By a loop: from the start on, held is the last level that was nowhere below the one held."""
    truth = 0.5 + np.cumsum([(0.0, 0.0), *changes], axis=0)
    level, held = followed(truth[:-1].tolist(), changes)
    np.testing.assert_allclose(level, truth[1:], atol=1e-9)
    expected = truth[0]
    for now, found in zip(level, held, strict=True):
        expected = now if (now >= found).all() else expected
        np.testing.assert_allclose(found, expected, atol=1e-9)
        assert (now >= found).all() or (now < found).any()


def test_the_first_batches_say_where_it_began_and_later_ones_what_was_lost():
    means = np.random.default_rng(0).normal(size=(40, 3))
    level, held = followed(means.tolist(), np.zeros((40, 3)).tolist())
    averages = np.cumsum(means, axis=0) / np.arange(1, 41)[:, None]
    np.testing.assert_allclose(level[:10], averages[:10], atol=1e-12)
    np.testing.assert_allclose(held[:10], averages[:10], atol=1e-12)
    level, held = followed([[0.5]] * 10 + [[0.3]] * 90, [[0.0]] * 100)  # a loss that no step saw
    assert held[-1] == pytest.approx(0.5)
    assert level[-1] == pytest.approx(0.3, abs=1e-3)


def test_what_is_held_stays_where_a_batch_says_nothing_of_one_that_is_behind():
    """The first fell to .5 of .6 held, and no completion of the batch has it."""
    level, held = tensor([0.5, 0.5]), tensor([0.6, 0.4])
    seen, count = tensor([torch.nan, 0.5]), tensor([20.0, 20.0])
    level, held = follow(level, held, seen, torch.zeros(2), count, TRUST)
    assert (level.tolist(), held.tolist()) == ([0.5, 0.5], [0.6, 0.4])


def test_the_noise_of_changes_does_not_add_up():
    """Nothing happens, in steps of .1 nats with 2 x 128 completions: in standard deviations, the
    level stays within .04 of the truth, and the sum of what is measured ends .2 off or more."""
    random = np.random.default_rng(1)
    change = random.normal(0, 0.1 * 2 / 256**0.5, (1000, 50))
    seen = random.normal(0, 1 / 256**0.5, (1000, 50))
    level, _ = followed(seen.tolist(), change.tolist())
    assert np.std(level[100:]) < 0.04 < 0.2 < np.std(np.cumsum(change, axis=0)[-1])


@pytest.mark.parametrize("estimator", ["reinforce", "grpo"])
def test_a_run_follows_its_own_move(estimator, tmp_path):
    """Weights, levels and advantages by loops over what statistics.jsonl has: rewards, and how
    far log pi had moved."""
    preference = np.array([2.0, 0.5, 0.5])
    rows = train(
        "ratchet",
        tmp_path / "run",
        steps=4,
        prompts=8,
        completions=8,
        estimator=estimator,
        weights=(4.0, 1.0, 1.0),
        desired_kl=0,
    )[1:]
    kept = read_lines(tmp_path / "run/statistics.jsonl")
    level = held = extra = np.zeros(3)
    variance = None
    for step, (row, line, (rewards, lengths, advantages)) in enumerate(
        zip(rows, kept, batches(tmp_path / "run"), strict=True), 1
    ):
        weights = preference + extra
        np.testing.assert_allclose(
            [row[f"weight/{name}"] for name in OBJECTIVES], weights, rtol=1e-3, atol=1e-3
        )
        one = (
            (lambda r, n=lengths: whitened(r, n))
            if estimator == "reinforce"
            else (lambda r: normalised(r[:, None], 8)[:, 0])
        )
        each = np.stack([one(rewards[:, k]) for k in range(3)], 1)
        common = each.min(1) * (each > 0).all(1)
        assert row["ratchet/common"] == pytest.approx((common > 0).mean())
        scores = each @ weights + COMMON * one(common)
        np.testing.assert_allclose(advantages, one(scores), atol=2e-3)
        every = [slice(s, s + 8) for s in range(0, 64, 8)]
        fresh = [s for s in every if line["age"][s.start] == 1]  # of two updates
        ratio = 2 * np.exp(np.array(line["drift"]))
        table = np.mean([np.cov(ratio[s], rewards[s].T) for s in fresh], axis=0)
        now = np.mean([rewards[s].var(0, ddof=1) for s in every], axis=0)
        variance = now if variance is None else 0.9 * variance + 0.1 * now
        change = table[0, 1:] / np.sqrt(variance)
        np.testing.assert_allclose(
            [row[f"ratchet/change/{name}"] for name in OBJECTIVES], change, rtol=1e-3, atol=1e-5
        )
        correction = (rewards.mean(0) - level) / step
        level, held = level + correction + table[0, 1:], held + correction
        held = level if (level >= held).all() else held
        for name, numbers in (("level", level), ("held", held)):
            found = [row[f"ratchet/{name}/{objective}"] for objective in OBJECTIVES]
            np.testing.assert_allclose(found, numbers, rtol=1e-3, atol=1e-5)
        alignment = table[0, 1:] / np.sqrt(table[0, 0] * now)
        behind = AHEAD + (held - level) / np.sqrt(variance)
        extra = np.maximum(70 * behind - 8 * alignment, 0)
    assert len(fresh) == 4
    assert extra.max() > 70 * AHEAD + 8  # something had fallen


def test_what_is_good_for_all_is_what_pama_credits():
    advantages = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    found = good_for_all(advantages)
    torch.testing.assert_close(found, pareto_scalar(advantages.clamp(min=0)))
    assert ((found > 0) == (advantages > 0).all(1)).all()
    assert (found > 0).any()
    partly = torch.tensor([[torch.nan, 2.0, 1.0], [torch.nan, -2.0, 1.0], [torch.nan] * 3])
    np.testing.assert_equal(good_for_all(partly).numpy(), [1.0, 0.0, np.nan])


def test_the_rarer_what_is_good_for_all_the_more_one_such_completion_counts():
    """Of 256 completions 60% are right, 30% short, and a few of them both. Their sum pays one that
    is both about the same, however many there are."""

    def credit(both: int, common: float) -> float:
        rewards = tensor([[1.0, 0.0]] * 154 + [[0.0, 1.0]] * 77 + [[0.0, 0.0]] * 25)
        rewards[:both] = 1.0
        ratchet = Ratchet(torch.ones(2), common, 70, 8, 0, 0.1)
        return ratchet.advantages(rewards, torch.ones(256), 8, "reinforce")[0][0].item()

    assert credit(1, 0) < 1.5 * credit(16, 0)
    assert credit(1, COMMON) > 3 * credit(16, COMMON)
    assert all(credit(both, COMMON) > credit(both, 0) for both in (1, 4, 16))


def test_the_change_is_exact_where_the_first_order_is_not():
    """Every completion of one prompt, as often as the old policy samples it: J_new - J_old by hand,
    whatever the size of the step."""
    old, new = tensor([0.5, 0.25, 0.125, 0.125]), tensor([0.1, 0.6, 0.1, 0.2])
    reward = tensor([1.0, 0.0, 1.0, 0.5])
    rows = torch.tensor(
        [0] * 4 + [1] * 2 + [2] + [3]
    )  # eight completions, in the old policy's shares
    drift, rewards = (new / old).log()[rows], reward[rows][:, None]
    found, correlation, variance = what_moved(drift, torch.ones(8), rewards, 8, 1)
    assert variance.item() == pytest.approx(rewards.var().item())
    unbiased = 8 / 7  # covariances divide by one completion less
    assert found.item() == pytest.approx(((new - old) @ reward).item() * unbiased, abs=1e-12)
    assert correlation.item() == pytest.approx(np.corrcoef((new / old)[rows], reward[rows])[0, 1])
    first_order = torch.cov(torch.stack([drift, rewards[:, 0]]))[0, 1].item()
    assert abs(first_order - found.item()) > 0.02
    trained = torch.cat(
        [torch.zeros(8), torch.full((8,), 1.0)]
    )  # completions that were trained on first tell nothing
    both = what_moved(torch.cat([drift * 9, drift]), trained, rewards.repeat(2, 1), 8, 1)
    torch.testing.assert_close(both[0], found)


def test_a_variance_is_that_of_the_completions_that_have_the_reward():
    """Pooled over prompts by degrees of freedom; a completion alone in its prompt has none."""
    rewards = torch.rand(12, 2, generator=torch.Generator().manual_seed(0)).double()
    rewards[[1, 2, 5, 8, 9, 10], 0] = torch.nan
    *_, variance = what_moved(torch.zeros(12), torch.ones(12), rewards, 4, 1)
    known = [rewards[[0, 3], 0], rewards[[4, 6, 7], 0]]  # of the third prompt the last alone
    total = sum(own.var() * (len(own) - 1) for own in known)
    assert variance[0].item() == pytest.approx(float(total / 3))
    assert variance[1].item() == pytest.approx(float(rewards[:, 1].view(3, 4).var(1).mean()))


def test_what_does_not_move_or_does_not_vary_is_not_aligned_with_the_move():
    """Whichever rows are fresh, and after however many updates each was seen."""
    generator = torch.Generator().manual_seed(0)
    age, drift = torch.randint(0, 4, (48,), generator=generator), torch.randn(48) / 10
    rewards = torch.rand(48, 2)
    rewards[:, 1] = torch.arange(6).repeat_interleave(8) * 0.1  # prompts differ, completions do not
    change, alignment, _ = what_moved(drift, age, rewards, 8, 4)
    assert abs(change[1]) < 1e-6
    assert abs(alignment[1]) < 1e-2
    assert abs(alignment[0]) <= 1
    still, aligned, _ = what_moved(torch.zeros(48), age, rewards, 8, 4)
    assert still.tolist() == aligned.tolist() == [0, 0]


def test_what_few_completions_have_is_held_where_it_is():
    """A reward of one prompt of sixteen, which is not always among the fresh ones."""
    generator = torch.Generator().manual_seed(0)
    ratchet = Ratchet(torch.ones(2), 0.0, 70.0, 8.0, 0.1, 0.1)
    for step in range(30):
        rewards = torch.rand(256, 2, generator=generator)
        rewards[:, 1] = torch.nan
        prompt = 16 * int(torch.randint(16, (1,), generator=generator)) if step > 2 else 0
        rewards[prompt : prompt + 16, 1] = 0.8 + 0.1 * torch.randn(16, generator=generator)
        ratchet.learn(rewards, torch.zeros(256), torch.arange(256) // 128, 2, 16)
    assert ratchet.state["held"][1] == pytest.approx(0.8, abs=0.05)
    assert ratchet.state["level"][1] == pytest.approx(0.8, abs=0.05)


def test_rewards_units_do_not_count_and_a_constant_reward_is_never_lost(tmp_path):
    (tmp_path / "units_of_rewards.py").write_text(
        "from rewards.accuracy import accuracy\n"
        "def percent(**columns):\n    return [100.0 * r for r in accuracy(**columns)]\n"
        "def constant(completions, **columns):\n    return [0.1] * len(completions)\n"
    )
    plain, scaled = (
        ("rewards.accuracy:accuracy", "rewards.clarity:clarity"),
        f"{tmp_path}/units_of_rewards.py",
    )
    runs = (
        train(
            "ratchet",
            tmp_path / name,
            steps=3,
            prompts=8,
            completions=8,
            rewards=(first, plain[1], f"{scaled}:constant"),
        )[1:]
        for name, first in (("plain", plain[0]), ("scaled", f"{scaled}:percent"))
    )
    first = 1
    for one, other in zip(*runs, strict=True):
        assert one["weight/accuracy"] == pytest.approx(other["weight/percent"], rel=1e-3, abs=1e-3)
        assert one["weight/constant"] == pytest.approx(first, abs=1e-2)
        first = 8  # with the multiplier of one that is as far behind as all are at the start


def test_an_objective_of_weight_0_is_pulled_up_once_it_falls_and_else_left_alone(tmp_path):
    _, first, *others = train(
        "ratchet",
        tmp_path / "run",
        steps=4,
        prompts=8,
        completions=8,
        weights=(0.0, 1.0, 1.0),
        desired_kl=0,
    )
    assert first["weight/accuracy"] == 0
    for before, row in zip([first, *others], others, strict=False):
        lost = before["ratchet/held/accuracy"] - before["ratchet/level/accuracy"]
        aligned = before["ratchet/alignment/accuracy"]
        assert row["weight/accuracy"] == 0 or lost > 0 or aligned < 0
        assert row["weight/accuracy"] > 0 or lost <= 0 or aligned > 0
    assert any(row["weight/accuracy"] > 0 for row in others)
