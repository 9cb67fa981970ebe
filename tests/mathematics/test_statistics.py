"""The leaderboard's statistics against scipy, exact enumeration, Monte Carlo and an independent hypervolume, and the laws they obey."""

from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import mannwhitneyu, trim_mean

from tools.statistics import hypervolume, iqm, probability_of_improvement, stratified_bootstrap

NUMBERS = st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda x: round(x, 3))
# a coarse grid: ties, and points on the reference's own coordinates, come up often
POINTS = st.integers(1, 4).flatmap(lambda k: arrays(np.float64, st.tuples(st.integers(0, 6), st.just(k)), elements=st.integers(-1, 5)))


def quick(test):
    return settings(max_examples=60, deadline=None, derandomize=True)(test)


# --- interquartile mean ---


@quick
@given(st.lists(NUMBERS, min_size=1, max_size=25))
def test_iqm_is_scipys_trimmed_mean(values):
    assert iqm(values) == pytest.approx(trim_mean(values, 0.25), abs=1e-9)
    assert iqm(values[::-1]) == pytest.approx(float(iqm(values)), abs=1e-12)
    assert iqm(3 * np.array(values) + 2) == pytest.approx(3 * iqm(values) + 2, abs=1e-8)


def test_iqm_by_hand_over_the_last_axis_and_without_changing_its_argument():
    assert iqm([1, 2, 6]) == 3  # up to three values: the mean
    assert iqm([1, 2, 3, 1000]) == 2.5
    assert iqm([5, 1, 2, 1000, 3]) == pytest.approx(10 / 3)
    table = np.arange(24.0).reshape(2, 3, 4)[..., ::-1]
    before = table.copy()
    assert np.allclose(iqm(table), [[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]])
    assert (table == before).all()
    assert iqm(np.float32([0.1, 0.1])).dtype == np.float64


# --- bootstrap ---


def exact_interval(strata, statistic, level=0.95):
    """Every possible resample, once each."""
    every = [[np.array(drawn) for drawn in product(stratum, repeat=len(stratum))] for stratum in strata]
    values = [float(statistic(*choice)) for choice in product(*every)]
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
@pytest.mark.parametrize(
    ("strata", "statistic"),
    [
        ([[0.0, 1.0, 4.0, 9.0]], iqm),
        ([[0.0, 1.0, 5.0], [10.0, 30.0, 31.0]], lambda *s: iqm(np.concatenate(s, -1))),
        ([[0.0, 2.0, 5.0], [1.0, 3.0]], probability_of_improvement),
    ],
)
def test_bootstrap_has_the_quantiles_of_all_resamples(strata, statistic, level):
    assert stratified_bootstrap(strata, statistic, level, resamples=60_000) == pytest.approx(
        exact_interval(strata, statistic, level), abs=1e-12
    )


def test_bootstrap_keeps_strata_apart():
    """Two strata far apart: mixed, the mean would vary by what lies between them."""
    low, high = stratified_bootstrap([[0.0, 0.1, 0.2], [100.0, 100.1, 100.2]], lambda *s: np.concatenate(s, -1).mean(-1))
    assert 50 <= low <= high <= 50.2


def test_bootstrap_repeats_by_its_seed_and_ignores_order():
    values = [0.3, 0.1, 0.8, 0.4, 0.45]
    first = stratified_bootstrap([values], iqm, resamples=500)
    assert all(stratified_bootstrap([list(p)], iqm, resamples=500) == first for p in list(permutations(values))[::17])
    assert stratified_bootstrap([values], iqm, resamples=500, seed=1) != first
    assert all(isinstance(end, float) for end in first)


def test_bootstrap_scales_and_holds_the_point_estimate():
    values = np.array([0.3, 0.1, 0.8, 0.4, 0.45])
    low, high = stratified_bootstrap([values], iqm)
    assert low < iqm(values) < high
    assert stratified_bootstrap([2 * values + 1], iqm) == pytest.approx((2 * low + 1, 2 * high + 1))
    assert stratified_bootstrap([[0.7] * 5], iqm) == pytest.approx((0.7, 0.7))
    narrow = stratified_bootstrap([values], iqm, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_of_five_covers_less_than_it_promises_as_documented():
    rng = np.random.default_rng(0)
    intervals = [stratified_bootstrap([rng.normal(size=5)], lambda s: s.mean(-1), resamples=400, seed=n) for n in range(1500)]
    assert np.mean([low <= 0 <= high for low, high in intervals]) == pytest.approx(0.84, abs=0.03)


# --- hypervolume ---


def inclusion_exclusion(points, reference) -> float:
    """The volume of a union of boxes, from those of all intersections."""
    boxes = np.maximum(np.asarray(points, float) - reference, 0)
    sets = (subset for n in range(1, len(boxes) + 1) for subset in combinations(boxes, n))
    return sum((-1) ** (len(subset) + 1) * np.prod(np.min(subset, axis=0)) for subset in sets)


@quick
@given(POINTS)
def test_hypervolume_is_the_inclusion_exclusion_sum(points):
    assert hypervolume(points, np.zeros(points.shape[1])) == pytest.approx(inclusion_exclusion(points, np.zeros(points.shape[1])), abs=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_hypervolume_of_many_points_is_the_monte_carlo_share(k):
    rng = np.random.default_rng(k)
    points, reference = rng.random((12, k)) * 2 - 0.5, np.full(k, -0.5)
    samples = rng.uniform(-0.5, 1.5, size=(100_000, k))
    share = (samples[:, None] <= points).all(-1).any(1).mean()
    error = np.sqrt(share * (1 - share) / 100_000)
    assert hypervolume(points, reference) / 2**k == pytest.approx(share, abs=4.5 * error)


@quick
@given(POINTS, st.randoms(use_true_random=False))
def test_laws_of_hypervolume(points, random):
    k = points.shape[1]
    reference = np.zeros(k)
    volume = hypervolume(points, reference)
    assert hypervolume(points[random.sample(range(len(points)), len(points))], reference) == pytest.approx(volume)
    order = random.sample(range(k), k)
    assert hypervolume(points[:, order], reference[order]) == pytest.approx(volume)
    scale = np.arange(2.0, 2 + k)
    assert hypervolume(points * scale + 7, reference + 7) == pytest.approx(volume * scale.prod())
    new = np.array([[random.randint(-1, 5) for _ in range(k)]], float)
    more = hypervolume(np.concatenate([points, new]), reference)
    dominated = (points >= new).all(1).any() or not (new > 0).all()
    assert more == pytest.approx(volume) if dominated else more > volume + 1e-9
    assert hypervolume(points, reference - 1) >= volume


def test_hypervolume_by_hand():
    assert hypervolume([[0.5, 0.4, 0.2]], [0, 0, 0]) == pytest.approx(0.04)  # one point: the product
    assert hypervolume([[1, 3], [2, 2], [3, 1]], [0, 0]) == 6
    assert hypervolume([[1, 3], [2, 2], [3, 1]], [1, 1]) == 1
    assert hypervolume([[2], [5], [-1]], [1]) == 4
    assert hypervolume([], [0, 0]) == hypervolume(np.zeros((0, 2)), [0, 0]) == 0
    assert hypervolume([[5, 0]], [0, 0]) == 0


# --- probability of improvement ---


@quick
@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.lists(st.integers(0, 6), min_size=1, max_size=8))
def test_probability_of_improvement_counts_pairs_and_is_mann_whitneys_u(x, y):
    p = probability_of_improvement(x, y)
    assert p == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a in x for b in y]))
    assert p == pytest.approx(mannwhitneyu(x, y, method="asymptotic").statistic / (len(x) * len(y)))
    assert p + probability_of_improvement(y, x) == pytest.approx(1)
    assert probability_of_improvement(x[::-1], y[::-1]) == pytest.approx(float(p))
    assert probability_of_improvement(np.exp(x), np.exp(y)) == pytest.approx(float(p))  # any increasing map
    assert probability_of_improvement(np.array(x) + 1, y) >= p
    assert probability_of_improvement(x, x) == 0.5


def test_probability_of_improvement_over_leading_axes():
    x, y = np.random.default_rng(0).integers(0, 4, size=(2, 7, 3)), np.random.default_rng(1).integers(0, 4, size=(2, 7, 5))
    assert np.allclose(
        probability_of_improvement(x, y),
        [[probability_of_improvement(a, b) for a, b in zip(*r, strict=True)] for r in zip(x, y, strict=True)],
    )


# --- refusals ---


@pytest.mark.parametrize(
    "call",
    [
        lambda: iqm([]),
        lambda: iqm(3.0),
        lambda: iqm([1.0, np.nan]),
        lambda: stratified_bootstrap([], iqm),
        lambda: stratified_bootstrap([[1.0], []], lambda *s: s[0].mean(-1)),
        lambda: stratified_bootstrap([[1.0, np.inf]], iqm),
        lambda: stratified_bootstrap([[1.0]], iqm, level=95),
        lambda: stratified_bootstrap([[1.0]], iqm, resamples=0),
        lambda: hypervolume([[1.0, 2.0]], [0.0]),
        lambda: hypervolume([1.0, 2.0], [0.0, 0.0]),
        lambda: hypervolume([[1.0, np.nan]], [0.0, 0.0]),
        lambda: hypervolume([], []),
        lambda: probability_of_improvement([1.0], []),
        lambda: probability_of_improvement([np.nan], [1.0]),
    ],
)
def test_what_is_no_number_or_does_not_fit_is_refused(call):
    with pytest.raises(ValueError, match="."):
        call()
