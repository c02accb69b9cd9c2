"""Verdicts on pairs that are asked in both orders: do they name the same one, and is it the right one?

Pairwise-RL (arXiv 2504.04950; its formulas are reconstructed) trains a judge on both orders of a pair with
a penalty (q(u, v) + q(v, u) - 1)^2, where q is the probability that the one shown first is better. Here verdicts are
drawn instead: an answer is paid by the share of the answers in the other order that name the same one, whose mean over
drawn answers is 1 - q(u, v) - q(v, u) + 2 q(u, v) q'(v, u) with q' = 1 - q(v, u).

All of them read the columns `pair`, equal in both orders, and `shown`, the two in the order asked; a verdict is what
one of them says, or the number of its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmrl.types import RewardFunction, Samples, Scores
from rewards.functions import as_scores
from rewards.text import AnswerMatch


def preferred(text: str, shown: Sequence[object], tag: str = "answer") -> int | None:
    """Which of the two `shown` an answer prefers, 0 or 1; None where it says neither."""
    said = AnswerMatch(tag).extract(text).casefold()
    for place, one in enumerate(shown):
        if said in (str(one).casefold(), str(place + 1)):
            return place
    return None


def verdicts(samples: Samples, tag: str) -> list[tuple[object, object, object]]:
    """Of each answer its pair, what was shown first, and what it prefers (None: neither).

    Raises:
        ValueError: the data has no such columns.
    """
    if not {"pair", "shown"} <= samples.columns.keys():
        raise ValueError(
            f"verdicts in both orders need the columns pair and shown: there are {sorted(samples.columns)}"
        )
    found: list[tuple[object, object, object]] = []
    columns = zip(samples.outputs, samples.columns["pair"], samples.columns["shown"], strict=True)
    for output, pair, shown in columns:
        assert isinstance(shown, Sequence)
        place = preferred(str(output), shown, tag)
        found.append((pair, shown[0], None if place is None else shown[place]))
    return found


@dataclass(frozen=True)
class SwapAgreement(RewardFunction):
    """The share of the answers to the same pair in the other order that prefer the same one; 0 for an answer that
    prefers neither, not applicable where the other order was not asked. With one answer to each order, as in an
    evaluation, it is consistency."""

    tag: str = "answer"

    def __call__(self, samples: Samples) -> Scores:
        found = verdicts(samples, self.tag)
        by_pair: dict[object, list[tuple[object, object]]] = {}
        for pair, first, liked in found:
            by_pair.setdefault(pair, []).append((first, liked))
        scores: list[float | None] = []
        for pair, first, liked in found:
            others = [theirs for theirs_first, theirs in by_pair[pair] if theirs_first != first]
            same = sum(liked is not None and theirs == liked for theirs in others)
            scores.append(same / len(others) if others else None)
        return as_scores(scores)


@dataclass(frozen=True)
class ShownFirst(RewardFunction):
    """1 for a verdict that prefers what was shown first, 0 for the other; its mean over both orders is 1/2 for a judge
    that does not go by the place. Not applicable where neither is preferred."""

    tag: str = "answer"

    def __call__(self, samples: Samples) -> Scores:
        found = verdicts(samples, self.tag)
        return as_scores([None if liked is None else float(liked == first) for _, first, liked in found])
