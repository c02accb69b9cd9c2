"""How far several rewards say the same on one set: agreement of preferences, of scores, and of mistakes. Rewards that
err together are one opinion, however many they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
from scipy.stats import spearmanr

from mmrl.types import Estimate
from rewards.evaluation.accuracy import credits_of
from rewards.evaluation.intervals import Numbers, mean_of
from rewards.evaluation.scoring import Scored


@dataclass(frozen=True)
class Agreement:
    """Of two rewards."""

    first: str
    second: str
    same: Estimate  # share of pairs with the same preference
    rank: float  # Spearman's correlation of all scores
    errors: float  # correlation of being wrong; NaN where one is never, or always, wrong

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


def agreements(scored: Mapping[str, Scored], seed: int = 0) -> list[Agreement]:
    """Of every two rewards, on the pairs that both score."""
    found = []
    for (first, one), (second, other) in combinations(scored.items(), 2):
        both = np.flatnonzero(np.isfinite(one.gaps) & np.isfinite(other.gaps))
        if len(both) < 2:
            continue
        same = np.sign(one.gaps[both]) == np.sign(other.gaps[both])
        decided = both[np.isfinite(one.margins[both])]
        errors = correlation(1 - credits_of(one.margins[decided]), 1 - credits_of(other.margins[decided]))
        flat = [each.scores[both].ravel() for each in (one, other)]
        rank = float(spearmanr(*flat).statistic) if all(np.ptp(each) > 0 for each in flat) else float("nan")
        told = mean_of(same.astype(float), one.clusters(both), seed)
        found.append(Agreement(first, second, told, rank, errors))
    return found


def correlation(one: Numbers, other: Numbers) -> float:
    """Pearson's, NaN where one of them never changes."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])
