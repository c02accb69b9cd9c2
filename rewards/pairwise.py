"""Outputs that are compared instead of scored: with an anchor of their prompt, or with each other.

Pairwise-RL (arXiv 2504.04950; read in its abstract, its formulas are reconstructed). A judge says q(x; u, v), how
likely u is better than v for the prompt x where u is shown first. Asked in both orders,

    p(u > v) = 1/2 [q(x; u, v) + 1 - q(x; v, u)],   so that p(u > v) + p(v > u) = 1 and p(u > u) = 1/2;
    R(y) = p(y > anchor of x)                       `AgainstAnchor`
    R_i = mean over j != i of p(y_i > y_j)          `PairJudge`, over the outputs of a group

A lean b to the first place, q = sigmoid(d + b), is gone from p to first order: p = sigmoid(d) + b^2 sigmoid''(d) / 2 +
O(b^4). Whatever is added to the worth of all outputs of a prompt changes no comparison, and so no reward.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import Compares, checked
from rewards.evaluation.pairs import picture
from rewards.functions import as_scores
from rewards.pictures.base import column_of, find_path, groups_of

Meeting = tuple[int, int]
"""Two samples by their numbers; the first one is shown first."""


@dataclass(frozen=True, kw_only=True)
class PairJudge(Compares):
    """A judge that is shown two outputs at a time: of a group, each output is paid by how often it is preferred to the
    others, on average over those that it met; not applicable where no verdict on it can be read.

    By default every two meet, which are G (G - 1) questions of a group of G, since each is asked in both orders (with
    `both_orders` false only as they come). With `rounds` everybody meets one other in each round of a tournament whose
    order is drawn from `seed`, and nobody the same one twice: 2 `rounds` questions for every two outputs. In an odd
    group one sits out each round, which counts as a meeting with itself, 1/2. So the rewards of a group sum to G / 2.
    """

    both_orders: bool = True
    rounds: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(
                f"{type(self).__name__}.rounds is {self.rounds}: give 1 or more, or null for everyone against everyone"
            )

    @abc.abstractmethod
    def first_better(self, samples: Samples, asked: Sequence[Meeting]) -> list[float | None]:
        """q of each of `asked`: how likely the one that is shown first is better; None where it cannot be read."""

    def in_order(self, number: int | None) -> RewardFunction:
        return _InOrder(self)  # and no copy, which would read its model again

    def __call__(self, samples: Samples) -> Scores:
        return self.scored(samples, self.both_orders, self.rounds)

    def scored(self, samples: Samples, both_orders: bool, rounds: int | None) -> Scores:
        """The same with other settings."""
        generator = torch.Generator().manual_seed(self.seed)
        won: list[list[float]] = [[] for _ in samples.outputs]
        read = [False] * len(samples)
        met: list[Meeting] = []
        for group in groups_of(samples, type(self).__name__).values():
            for i, j in tournament(len(group), rounds, generator):
                if i == j:
                    won[group[i]].append(0.5)
                    read[group[i]] = rounds == 1  # else there are verdicts to be read
                else:
                    met.append((group[i], group[j]))
        asked = met + [(j, i) for i, j in met] if both_orders else met
        q = self.first_better(samples, asked) if asked else []
        there = q[: len(met)]
        back = [None if lost is None else 1 - lost for lost in q[len(met) :]] if both_orders else there
        for (i, j), orders in zip(met, zip(there, back, strict=True), strict=True):
            p = sum(0.5 if one is None else one for one in orders) / 2
            won[i].append(p)
            won[j].append(1 - p)
            if any(one is not None for one in orders):
                read[i] = read[j] = True
        return as_scores([sum(mine) / len(mine) if known else None for mine, known in zip(won, read, strict=True)])


@dataclass(frozen=True)
class _InOrder(RewardFunction):
    judge: PairJudge

    def __call__(self, samples: Samples) -> Scores:
        return self.judge.scored(samples, both_orders=False, rounds=None)


def tournament(size: int, rounds: int | None, generator: torch.Generator) -> list[Meeting]:
    """Who meets whom of `size`: all, the earlier one shown first; or `rounds` rounds in which everybody meets one
    other, never the same one twice; (i, i) for one who sits out. By the circle method: one stays, the others move on by
    a place between rounds, and those opposite each other meet."""
    if rounds is None or rounds >= size - 1:
        return list(combinations(range(size), 2))
    drawn: list[int] = torch.randperm(size, generator=generator).tolist()
    circle: list[int | None] = [*drawn, *([None] if size % 2 else [])]
    found: list[Meeting] = []
    for _ in range(rounds):
        for one, other in zip(circle[: len(circle) // 2], reversed(circle), strict=False):
            here = [who for who in (one, other) if who is not None]
            found.append((here[0], here[-1]))
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return found


@dataclass(frozen=True)
class AgainstAnchor(RewardFunction):
    """How likely `judge` prefers an output to the anchor of its prompt, which stands in the column `column`: a
    reference answer of the data, the path of a picture, or what the policy drew before training (`anchors: true` of a
    diffusion config). Between 0 and 1, 1/2 for the anchor itself; not applicable without an anchor or a verdict.

    `scale` log_odds pays log p / (1 - p), cut at `bound` on either side: what is surely better is then worth more than
    what is probably better. Each output costs two questions.
    """

    judge: Compares
    column: str = "anchor"
    scale: Literal["probability", "log_odds"] = "probability"
    bound: float = 5.0

    def __post_init__(self) -> None:
        if self.scale not in ("probability", "log_odds"):
            raise ValueError(f"AgainstAnchor.scale is {self.scale!r}: give probability or log_odds")
        if not self.bound > 0:
            raise ValueError(f"AgainstAnchor.bound is {self.bound}: give log-odds above 0, such as 5")

    def __call__(self, samples: Samples) -> Scores:
        anchors = column_of(samples, self.column, "AgainstAnchor")
        there = [i for i, anchor in enumerate(anchors) if anchor is not None]
        found: list[float | None] = [None] * len(samples)
        once = functools.cache(_picture)  # an anchor is of a whole group
        drawn = [isinstance(samples.outputs[i], Image.Image) for i in there]
        against = [once(a) if isinstance(a := anchors[i], str) and d else a for i, d in zip(there, drawn, strict=True)]
        for i, p in zip(there, win_probabilities(self.judge, samples, there, against), strict=True):
            found[i] = p
        scores = as_scores(found)
        if self.scale == "probability":
            return scores
        return Scores(
            torch.where(scores.applicable, scores.values.logit().clamp(-self.bound, self.bound), 0.0), scores.applicable
        )


def _picture(path: str) -> Image.Image:
    return picture(str(find_path(path)), Path())


def win_probabilities(
    judge: Compares, samples: Samples, chosen: Sequence[int], others: Sequence[object]
) -> list[float | None]:
    """p of each of the samples `chosen` against one of `others`, asked in both orders. A judge's scores of two, s and
    t, are read as q = (1 + s - t) / 2, which is s where they sum to 1. An order that cannot be read counts 1/2, and
    None is where neither can."""
    if not chosen:
        return []
    pairs = [(samples.outputs[i], other) for i, other in zip(chosen, others, strict=True)]
    shown = [one for pair in pairs for one in (*pair, *reversed(pair))]
    columns = {name: [column[i] for i in chosen for _ in range(4)] for name, column in samples.columns.items()} | {
        "group": [number // 2 for number in range(len(shown))]
    }
    scores = checked("judge", judge.in_order(None), Samples(shown, columns))
    values, read = scores.values.double().view(-1, 2, 2), scores.applicable.view(-1, 2, 2).all(-1)
    wide = values[read].flatten()
    if bool(((wide < 0) | (wide > 1)).any()):
        raise ValueError(
            f"{type(judge).__name__} scores from {float(wide.min()):g} to {float(wide.max()):g}, which are no "
            "probabilities: give a judge whose scores lie between 0 and 1"
        )
    lead = torch.where(read, (values[..., 0] - values[..., 1]) / 2, 0.0)  # q - 1/2 of either order
    p = 0.5 + (lead[:, 0] - lead[:, 1]) / 2
    return [float(one) if known else None for one, known in zip(p, read.any(1).tolist(), strict=True)]
