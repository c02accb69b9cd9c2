"""Whether a margin says how sure the preference is: Bradley-Terry's P(better) = sigmoid(scale x margin).

A reward has no unit, so the scale is fitted, on the clusters of one half and used on those of the other, in turn: no
pair is judged by a scale that it helped to choose. The calibration error is that of Naeini et al. (2015) with bins of
equal size; on few pairs it is above 0 even for a perfect judge, so what such a judge would get stands beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from mmrl.types import Estimate
from rewards.evaluation.accuracy import credits_of
from rewards.evaluation.intervals import Numbers, bootstrap, mean_of
from rewards.evaluation.scoring import Scored

BINS, FEWEST, STEEPEST = 10, 40, 12.0
"""Bins at most; pairs that are needed; the largest logarithm of a scale, where nothing is ever wrong."""


@dataclass(frozen=True)
class Reliability:
    """Confidence (N,) from 1/2 to 1 and whether the preference was right (N,), 1/2 where both scored the same."""

    confidence: Numbers
    right: Numbers

    def bins(self) -> list[tuple[float, float, int]]:
        """Mean confidence, share of right ones and number of pairs of each bin, the least confident first."""
        return [
            (float(self.confidence[part].mean()), float(self.right[part].mean()), len(part))
            for part in _parts(self.confidence)
        ]


def calibration(scored: Scored, seed: int = 0) -> tuple[dict[str, Estimate], Reliability | None]:
    """`ece`, `ece_if_perfect` and `brier`; nothing with fewer than 40 pairs that have a better output."""
    margins = scored.margins
    decided = np.flatnonzero(np.isfinite(margins))
    if len(decided) < FEWEST:
        return {}, None
    clusters, known = scored.clusters(decided), margins[decided]
    confidence = cross_fitted(known, clusters)
    right = credits_of(known)
    error = bootstrap(lambda index: ece(confidence[index], right[index]), clusters, seed)
    chance = np.random.default_rng(seed)
    drawn = [(chance.random(len(known)) < confidence).astype(np.float64) for _ in range(200)]
    perfect = np.array([ece(confidence, one) for one in drawn])
    low, high = np.percentile(perfect, (2.5, 97.5))
    return {
        "ece": error,
        "ece_if_perfect": Estimate(float(perfect.mean()), float(low), float(high), len(known)),
        "brier": mean_of((confidence - right) ** 2, clusters, seed),
    }, Reliability(confidence, right)


def cross_fitted(margins: Numbers, clusters: Sequence[str]) -> Numbers:
    """sigmoid(scale x |margin|) of each of N margins, the scale from the other half of the clusters."""
    half = np.array([hashlib.sha256(cluster.encode()).digest()[0] % 2 for cluster in clusters])
    found = np.full(len(margins), 0.5)
    for one in (0, 1):
        found[half == one] = expit(fit_scale(margins[half != one]) * np.abs(margins[half == one]))
    return found


def fit_scale(margins: Numbers) -> float:
    """The scale >= 0 with the highest likelihood; 0 where no margin tells anything."""
    unit = float(np.std(margins)) if len(margins) else 0.0
    if unit == 0.0:
        return 0.0
    found = minimize_scalar(
        lambda log: float(np.logaddexp(0.0, -np.exp(log) * margins / unit).mean()),
        bounds=(-STEEPEST, STEEPEST),
        method="bounded",
    )
    return float(np.exp(found.x)) / unit


def ece(confidence: Numbers, right: Numbers) -> float:
    """The mean distance of confidence and share of right ones over bins of equal size."""
    gaps = [abs(confidence[part].mean() - right[part].mean()) * len(part) for part in _parts(confidence)]
    return float(sum(gaps) / len(confidence))


def _parts(confidence: Numbers) -> list[NDArray[np.int64]]:
    count = max(1, min(BINS, len(confidence) // 10))
    return np.array_split(np.argsort(confidence, kind="stable"), count)
