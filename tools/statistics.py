"""The statistics of the leaderboard: pure functions of float64 arrays.

After Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical Precipice", and their library rliable, which needs
24 packages; here they are a few lines each. A stratum is what repetitions may be exchanged within: one task, or one objective of one task.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def iqm(values: ArrayLike) -> Array:
    """Interquartile mean: the mean without the lowest and the highest quarter, floor(N / 4) values on either side, so that up to three
    values it is the mean. values [..., N] -> [...].

    The IQM of Agarwal et al. (2021), section 4.3, over the last axis; equals `scipy.stats.trim_mean(values, 0.25)`.
    Raises ValueError when there is no value, or one that is not finite.
    """
    ordered = np.sort(_finite(values, "values"), axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def stratified_bootstrap(
    strata: Sequence[ArrayLike], statistic: Callable[..., Array], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic, each stratum resampled within itself, to its own size and independently of the others.

    strata: M arrays [N_m], which may differ in length. statistic: takes the M resampled arrays [resamples, N_m] and returns [resamples].
    Returns the (1 - level) / 2 and (1 + level) / 2 quantiles. The same arguments give the same interval, in whatever order a stratum's
    values stand. Values that belong together, such as the objectives of one run, must be combined before: it would tear them apart.

    Agarwal et al. (2021), section 4.1; percentile intervals: Efron (1979). With a handful of values they are too narrow: of five, a
    nominal 95% interval of the mean covers it in about 84% of cases. Raises ValueError for an empty stratum, a value that is not finite,
    or a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level} must lie between 0 and 1")
    if not strata or resamples < 1:
        raise ValueError("there must be at least one stratum and one resample")
    rng = np.random.default_rng(seed)
    drawn = []
    for stratum in strata:
        ordered = np.sort(_finite(stratum, "a stratum"))
        drawn.append(ordered[rng.integers(len(ordered), size=(resamples, len(ordered)))])
    low, high = np.quantile(statistic(*drawn), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume of what at least one point dominates, above the reference point; every coordinate is to be maximised.

    points [N,K], reference [K], K >= 1. A point that is not above the reference in every coordinate adds nothing; nor does one that
    another dominates. By slices along the last coordinate (Zitzler and Thiele, 1999; HSO of While et al., 2006): N^(K-1) steps, so for
    few objectives. Raises ValueError when shapes do not fit or a number is not finite; N may be 0.
    """
    reference = _finite(reference, "reference")
    points = np.asarray(points, dtype=np.float64).reshape(-1, len(reference)) if np.size(points) == 0 else _finite(points, "points")
    if points.ndim != 2 or points.shape[1] != len(reference):
        raise ValueError(f"points {points.shape} and reference {reference.shape} must be [N,K] and [K]")
    above = points[(points > reference).all(1)] - reference
    return _volume(above)


def _volume(points: Array) -> float:
    """Hypervolume above 0 of points [N,K] that are all positive."""
    if len(points) == 0:
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    points = points[np.argsort(-points[:, -1], kind="stable")]
    floors = [*points[1:, -1], 0.0]  # a slice reaches from a point's last coordinate down to the next one's
    slices = [(top - floor, n) for n, (top, floor) in enumerate(zip(points[:, -1], floors, strict=True), 1) if top > floor]
    return float(sum(thickness * _volume(points[:n, :-1]) for thickness, n in slices))


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> Array:
    """Probability that a value of x exceeds one of y, over all pairs; ties count half. x [..., N], y [..., M] -> [...].

    The Mann-Whitney U statistic divided by N * M (Agarwal et al., 2021, section 4.3, for one task; the mean over tasks is their value for
    several). Raises ValueError when there is no value, or one that is not finite.
    """
    x, y = _finite(x, "x")[..., :, None], _finite(y, "y")[..., None, :]
    return (x > y).mean((-2, -1)) + 0.5 * (x == y).mean((-2, -1))


def _finite(values: ArrayLike, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name} must hold at least one number, and finite ones only")
    return array
