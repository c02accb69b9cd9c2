"""Pairs of answers to be judged: two things said of a real picture, of which one is true by the picture's label.

Digits are those of the UCI Optical Recognition set (scikit-learn, CC BY 4.0). So the gold is the label's and no
judge's, and none of it is in the words: each of two words is the better one about as often as the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from vision.data.base import Example, Source, Split
from vision.data.digits import HOLED, NAMES, Digits
from vision.data.protocols import Protocol, shuffled

WORDS = {"parity": ("even", "odd"), "hole": ("holed", "solid"), "size": ("small", "large")}
"""What may be said of a digit, by kind of pair: of two words one is true."""
ASKED = "Which is right?"


@dataclass(frozen=True)
class JudgedDigits(Source):
    """Which of two words is true of the digit in the picture? One pair for each of the `kinds`: even or odd, with a
    hole or solid, smaller than five or not. Each pair is asked in both orders: examples 2k and 2k + 1 show the same two
    the other way round, and which comes first is drawn, from the seed and the picture alone. A `verdict` is the word
    that is preferred, or the number of its place, 1 or 2.

    Columns: `kind`; `pair`, its id; `cluster`, that of the picture, which all its pairs share; `shown`, both words in
    the order asked; `implied`, which verdict follows from each digit that a thought may name, for
    `rewards.consistency.ThoughtImplies`. `size` in pixels.

    Raises:
        ValueError: a kind is not known, or there is none.
    """

    kinds: tuple[str, ...] = tuple(WORDS)
    verdict: Literal["word", "number"] = "word"
    size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.kinds or not set(self.kinds) <= set(WORDS):
            raise ValueError(f"JudgedDigits.kinds is {self.kinds}: give one or more of {', '.join(WORDS)}")

    def examples(self) -> Sequence[Example]:
        found = []
        for number, digit in enumerate(Digits(self.size).examples()):
            chance = np.random.default_rng((self.seed, number))
            for kind in self.kinds:
                words = WORDS[kind] if chance.integers(2) else WORDS[kind][::-1]
                found += [self._asked(digit, kind, words), self._asked(digit, kind, words[::-1])]
        return found

    def thought(self, example: Example) -> str:
        return f"It is {example.columns['label']}."

    def _asked(self, digit: Example, kind: str, shown: tuple[str, str]) -> Example:
        """The pair of a picture in one order."""

        def verdict(label: str) -> str:
            true = truth(kind, label)
            return true if self.verdict == "word" else str(1 + shown.index(true))

        columns = {
            "kind": kind, "pair": f"{digit.id}-{kind}", "cluster": digit.id, "shown": shown, "label": digit.answer,
            "implied": {name: verdict(name) for name in NAMES},
        }  # fmt: skip
        key = f"judged-{digit.id}-{kind}-{shown[0]}"
        return Example(key, digit.images, question(ASKED, shown), verdict(digit.answer), columns)


def question(prompt: str, shown: Sequence[object]) -> str:
    """What a judge is asked about two answers to a prompt."""
    return f"{prompt} 1: {shown[0]} 2: {shown[1]}"


def truth(kind: str, label: str) -> str:
    """Which of the two words of a kind is true of a digit."""
    number = NAMES.index(label)
    first = {"parity": number % 2 == 0, "hole": label in HOLED, "size": number < 5}[kind]
    return WORDS[kind][0 if first else 1]


@dataclass(frozen=True)
class BothOrders(Protocol):
    """For sources that ask each pair in both orders under one `pair`: no `cluster`, and so no picture, stands in two
    parts. `evaluation`, `dev` and `pool` count clusters, and so do the `clusters` of demonstrations. In the pool 2k and
    2k + 1 are one pair, as `vision.plans.Swapped` needs it; what is held out has every pair in one order, then every
    pair in the other, and no picture twice in a row, so that the control with the next one's picture shows another."""

    shots: int = 0
    clusters: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clusters < 0 or self.shots:
            raise ValueError(
                f"data.protocol has clusters {self.clusters} and shots {self.shots}: give 0 or more, and no shots"
            )

    def split(self, source: Source) -> Split:
        examples = source.examples()
        found: dict[object, list[Example]] = {}
        for one, other in zip(examples[::2], examples[1::2], strict=True):
            if "cluster" not in one.columns or one.columns.get("pair") != other.columns.get("pair"):
                raise ValueError(
                    f"data.source {type(source).__name__} does not ask each pair twice in a row, with columns `pair` "
                    "and `cluster`: use vision.data.JudgedDigits, or another protocol"
                )
            found.setdefault(one.columns["cluster"], []).extend((one, other))
        firsts = shuffled([members[0] for members in found.values()], self.seed)
        order = [found[first.columns["cluster"]] for first in firsts]
        cuts = np.cumsum([0, self.evaluation, self.dev, self.clusters]).tolist()
        evaluation, dev, shown = (order[a:b] for a, b in pairwise(cuts))
        pool = [example for members in order[cuts[-1] :][: self.pool] for example in members]
        if not pool:
            raise ValueError(
                f"data.protocol leaves nothing for RL of {len(order)} clusters: lower evaluation, dev or clusters"
            )
        labels = tuple(sorted({example.answer for example in examples}))
        demonstrations = [example for members in shown for example in members]
        return Split(demonstrations, pool, _apart(dev), _apart(evaluation), labels)


def _apart(clusters: Sequence[Sequence[Example]]) -> list[Example]:
    """The examples of some clusters, the first orders of all pairs before the second ones, and of each order the first
    pair of every cluster before the next: who takes the picture of the next one takes another picture."""
    most = max((len(members) for members in clusters), default=0)
    places = [place for order in (0, 1) for place in range(order, most, 2)]
    return [members[place] for place in places for members in clusters if place < len(members)]
