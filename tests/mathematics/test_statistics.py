"""The statistics of the tables against exact enumeration, and the laws they obey."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from tools.leaderboard import better, interval, iqm

SCORES = strategies.lists(strategies.integers(0, 6), min_size=1, max_size=8)


def test_iqm_by_hand_in_whatever_order_and_over_the_last_axis():
    assert iqm([[1, 2, 6], [0, 6, 0]]).tolist() == [3, 2]  # up to three values: the mean
    values = [0.03, 0.27, 0.86, 0.71, 0.27, 0.55, 0.4, 0.7, 0.44]
    assert iqm(values) == pytest.approx(0.472)  # of the middle five
    assert len({float(iqm(values[k:] + values[:k])) for k in range(9)}) == 1  # to the last bit


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SCORES, SCORES)
def test_better_counts_pairs(x, y):
    chance = better(x, y)
    assert chance == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a in x for b in y]))
    assert chance + better(y, x) == pytest.approx(1)
    assert np.allclose(better(np.array([x, x]), np.array([y, y[::-1]])), chance)  # over an axis


@pytest.mark.parametrize(
    ("strata", "statistic"),
    [
        ([[0.0, 1.0, 4.0, 9.0]], iqm),
        ([[0.0, 2.0, 5.0], [1.0]], better),
    ],
)
def test_an_interval_has_the_quantiles_of_all_resamples(strata, statistic):
    each = [list(product(stratum, repeat=len(stratum))) for stratum in strata]
    every = [float(statistic(*choice)) for choice in product(*each)]
    exact = np.quantile(every, (0.025, 0.975), method="inverted_cdf")
    backwards = (stratum[::-1] for stratum in strata)
    assert interval(statistic, *backwards) == pytest.approx(exact, abs=1e-12)
