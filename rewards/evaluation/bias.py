"""What a reward goes by that it should not: lengths, colours, sizes, formats.

Two kinds of evidence. *As it falls*: on pairs that differ in a feature, how much more often the reward prefers the
output that has more of it than the gold does, and how much better it is where the gold prefers that one too (RM-Bench's
easy and hard, arXiv 2410.16184). *By intervention*: an output is edited without getting better, and its score may not
rise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mmrl.types import Estimate, RewardFunction
from rewards.evaluation.accuracy import credits_of
from rewards.evaluation.edits import Edit
from rewards.evaluation.features import features_of
from rewards.evaluation.intervals import Numbers, bootstrap, mean_of
from rewards.evaluation.pairs import Pair
from rewards.evaluation.scoring import Scored, score

FEWEST = 20
"""Pairs below which nothing is said of a feature."""


def leanings(scored: Scored, seed: int = 0) -> dict[str, Estimate]:
    """`lean/<feature>`, from -1 to 1: the share of pairs in which the reward prefers more of it less that in which the
    gold does; `gap/<feature>`: the accuracy where the gold prefers more of it less that where it prefers less of it."""
    margins = scored.margins
    decided = np.flatnonzero(np.isfinite(margins))
    features = [tuple(features_of(output) for output in scored.pairs[i].outputs) for i in decided]
    names = sorted({name for both in features for one in both for name in one})
    found: dict[str, Estimate] = {}
    for name in names:
        kept, more = [], []
        for place, (i, both) in enumerate(zip(decided, features, strict=True)):
            better = scored.pairs[i].better
            assert better is not None
            values = [one.get(name, np.nan) for one in both]
            difference = values[better] - values[1 - better]
            if np.isfinite(difference) and difference != 0:
                kept.append(place)
                more.append(difference > 0)
        if len(kept) >= FEWEST:
            right, wanted = credits_of(margins[decided[kept]]), np.array(more)
            clusters = scored.clusters(decided[kept])
            for kind, of in (("lean", lean), ("gap", gap)):
                found[f"{kind}/{name}"] = bootstrap(partial(_on, of, right, wanted), clusters, seed)
    return found


def _on(
    of: Callable[[Numbers, NDArray[np.bool_]], float],
    right: Numbers,
    wanted: NDArray[np.bool_],
    index: NDArray[np.int64],
) -> float:
    return of(right[index], wanted[index])


def lean(right: Numbers, wanted: NDArray[np.bool_]) -> float:
    """`right` (N,): 1 where the reward prefers what the gold does; `wanted` (N,) bool: the gold prefers more."""
    prefers_more = np.where(wanted, right, 1 - right)
    return float(prefers_more.mean() - wanted.mean())


def gap(right: Numbers, wanted: NDArray[np.bool_]) -> float:
    """Accuracy where more is wanted less that where less is; NaN where one of them never is."""
    if wanted.all() or not wanted.any():
        return float("nan")
    return float(right[wanted].mean() - right[~wanted].mean())


def interventions(
    name: str, reward: RewardFunction, scored: Scored, edits: Sequence[Edit], seed: int = 0
) -> dict[str, Estimate]:
    """Of each neutral edit, `lift/<edit>`: how far the score of an output rises by it, in units of a typical decision
    (the median distance of two outputs of a pair); `bought/<edit>`: of the pairs that were decided rightly, the share
    that turns when the worse output alone is edited."""
    found: dict[str, Estimate] = {}
    for edit in edits:
        changed = edited_pairs(scored, edit, lambda pair: (1 - (pair.better or 0),), seed)
        if changed is None:
            continue
        after, before = score(name, reward, changed[1]), scored.margins[changed[0]]
        worse = np.array([1 - (pair.better or 0) for pair in changed[1]])
        rows = np.arange(len(worse))
        raised = after.scores[rows, worse] - scored.scores[changed[0], worse]
        kept = np.flatnonzero(np.isfinite(raised) & np.isfinite(before))
        if len(kept) < FEWEST or not np.isfinite(scored.scale):
            continue
        found[f"lift/{edit.name}"] = mean_of(raised[kept] / scored.scale, after.clusters(kept), seed)
        won = kept[before[kept] > 0]
        found[f"bought/{edit.name}"] = mean_of((after.margins[won] <= 0).astype(float), after.clusters(won), seed)
    return found


def damages(
    name: str, reward: RewardFunction, scored: Scored, edits: Sequence[Edit], seed: int = 0
) -> dict[str, Estimate]:
    """`fooled/<edit>`: the share of better outputs whose score does not fall when they are spoilt."""
    found: dict[str, Estimate] = {}
    for edit in edits:
        changed = edited_pairs(scored, edit, lambda pair: (pair.better or 0,), seed)
        if changed is None:
            continue
        after = score(name, reward, changed[1])
        place = np.array([pair.better or 0 for pair in changed[1]])
        rows = np.arange(len(place))
        fell = scored.scores[changed[0], place] - after.scores[rows, place]
        kept = np.flatnonzero(np.isfinite(fell))
        if len(kept) >= FEWEST:
            found[f"fooled/{edit.name}"] = mean_of((fell[kept] <= 0).astype(float), after.clusters(kept), seed)
    return found


def edited_pairs(
    scored: Scored, edit: Edit, places: Callable[[Pair], Sequence[int]], seed: int
) -> tuple[NDArray[np.int64], list[Pair]] | None:
    """Which pairs with a better output can be edited at the `places` of each, and what they are then; None if fewer
    than 20 can."""
    kept, found = [], []
    for index, pair in enumerate(scored.pairs):
        changed = None if pair.better is None else edit.pair(pair, places(pair), seed)
        if changed is not None:
            kept.append(index)
            found.append(changed)
    return (np.array(kept), found) if len(kept) >= FEWEST else None
