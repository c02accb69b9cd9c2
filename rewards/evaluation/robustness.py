"""Whether a preference survives what changes nothing: crops, JPEG, noise, other spelling, done to both outputs alike,
and the prompt said in other words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mmrl.types import Estimate, RewardFunction
from rewards.evaluation.accuracy import credits_of
from rewards.evaluation.bias import FEWEST, edited_pairs
from rewards.evaluation.edits import Edit
from rewards.evaluation.intervals import mean_of
from rewards.evaluation.pairs import Pair
from rewards.evaluation.scoring import Scored, score

PARAPHRASES = ("there is {}", "a picture: {}", "{}.")
"""Ways to say a prompt again, of which each pair gets the next one."""


def robustness(
    name: str, reward: RewardFunction, scored: Scored, edits: Sequence[Edit], seed: int = 0
) -> dict[str, Estimate]:
    """`kept/<edit>`: the share of pairs whose preference stays; `accuracy_after/<edit>`."""
    found: dict[str, Estimate] = {}
    for edit in edits:
        changed = edited_pairs(scored, edit, lambda pair: (0, 1), seed)
        if changed is not None:
            found |= _compared(name, reward, scored, edit.name, *changed, seed)
    return found


def paraphrased(
    name: str, reward: RewardFunction, scored: Scored, ways: Sequence[str] = PARAPHRASES, seed: int = 0
) -> dict[str, Estimate]:
    """The same with the prompt in other words: those of the column `paraphrase` where a pair has it, else `ways`."""
    kept = [i for i, pair in enumerate(scored.pairs) if pair.better is not None and pair.prompt]
    if len(kept) < FEWEST:
        return {}
    said = [_said(scored.pairs[i], ways[number % len(ways)]) for number, i in enumerate(kept)]
    return _compared(name, reward, scored, "prompt in other words", np.array(kept), said, seed)


def _said(pair: Pair, way: str) -> Pair:
    return replace(pair, prompt=str(pair.columns.get("paraphrase") or way.format(pair.prompt)))


def _compared(
    name: str,
    reward: RewardFunction,
    scored: Scored,
    label: str,
    kept: NDArray[np.int64],
    changed: list[Pair],
    seed: int,
) -> dict[str, Estimate]:
    after, before = score(name, reward, changed), scored.margins[kept]
    both = np.flatnonzero(np.isfinite(after.margins) & np.isfinite(before))
    if len(both) < FEWEST:
        return {}
    clusters, now = after.clusters(both), after.margins[both]
    same = np.sign(now) == np.sign(before[both])
    return {
        f"kept/{label}": mean_of(same.astype(float), clusters, seed),
        f"accuracy_after/{label}": mean_of(credits_of(now), clusters, seed),
    }
