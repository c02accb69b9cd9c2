"""Shares and means with 95 % intervals, where cases may come in clusters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from mmrl.types import Estimate

Numbers = NDArray[np.float64]
REPEATS = 1000
"""Resamples of a bootstrap."""
NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)


def mean_of(values: Sequence[float] | Numbers, clusters: Sequence[str], seed: int = 0) -> Estimate:
    """The mean of `values` (N,): Wilson's interval where all are 0 or 1 and no two are of one cluster, else the
    percentiles of a bootstrap over clusters."""
    found = np.asarray(values, dtype=np.float64)
    if len(found) == 0:
        return NOTHING
    if len(set(clusters)) == len(found) and bool(np.isin(found, (0.0, 1.0)).all()):
        exact = binomtest(int(found.sum()), len(found)).proportion_ci(method="wilson")
        return Estimate(float(found.mean()), float(exact.low), float(exact.high), len(found))
    return bootstrap(lambda index: float(found[index].mean()), clusters, seed)


def bootstrap(statistic: Callable[[NDArray[np.int64]], float], clusters: Sequence[str], seed: int = 0) -> Estimate:
    """`statistic` of the indices of all cases, with the 95 % percentiles over resampled clusters; resamples on which it
    is not a number are left out."""
    if len(clusters) == 0:
        return NOTHING
    places: dict[str, list[int]] = {}
    for index, cluster in enumerate(clusters):
        places.setdefault(cluster, []).append(index)
    groups = [np.array(members) for members in places.values()]
    alone, flat = len(groups) == len(clusters), np.concatenate(groups)
    chance, found = np.random.default_rng(seed), []
    for _ in range(REPEATS):
        drawn = chance.integers(0, len(groups), len(groups))
        index = flat[drawn] if alone else np.concatenate([groups[i] for i in drawn])
        found.append(statistic(index))
    kept = np.array(found)[~np.isnan(found)]
    value = statistic(np.arange(len(clusters)))
    if len(kept) == 0:
        return Estimate(value, float("nan"), float("nan"), len(clusters))
    low, high = np.percentile(kept, (2.5, 97.5))
    return Estimate(value, float(low), float(high), len(clusters))
