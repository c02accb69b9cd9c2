"""What is different between two pictures, in short sentences of a closed vocabulary, from their pixels alone.

Bars, lines and pies of plain colours are recognised and compared part by part; of anything else, regions are. A small
policy can read what it says, and no gold program is needed for it.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.render.alike import Picture, fitted
from rewards.render.shapes import Bar, Shape, Slice, colour_name, shape_of

SAME = "same."
SIDES = ("left", "middle", "right")
REGIONS = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in SIDES)
PLAIN = 0.25
"""Of a region: so much of one colour gives it its name."""


class Differ(abc.ABC):
    """Says how a picture differs from a reference."""

    @abc.abstractmethod
    def __call__(self, picture: Picture, reference: Picture) -> str:
        """What is to change in `picture` (Y, X, 3) for it to become `reference` (Y', X', 3)."""

    def of_all(self, pictures: Sequence[Picture], references: Sequence[Picture]) -> list[str]:
        """The same of several pictures."""
        return [self(picture, reference) for picture, reference in zip(pictures, references, strict=True)]


@dataclass(frozen=True)
class Differences(Differ):
    """At most `most` sentences, the largest first: "should be bars." "bar 2 too low." "bar 2 far too high."
    "color should be red." "bar 1 should be red." "should have 3 bars." "line too low left." "red slice too small."
    "no red." "bottom right too dark." "bottom right should be red." "same."

    Pictures are compared at the reference's shape, its longer side shrunk to `side` pixels. Lengths that differ by less
    than `tolerance` of the picture's side, but at least 1.5 pixels, are equal, and from `far` of it they are far apart.

    Raises:
        ValueError: a number is not positive.
    """

    most: int = 4
    side: int = 128
    tolerance: float = 0.03
    far: float = 0.3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"Differences.{name} is {value}: give a positive number")

    def __call__(self, picture: Picture, reference: Picture) -> str:
        picture, reference = fitted(picture, reference, self.side)
        ours, theirs = shape_of(picture), shape_of(reference)
        if theirs.kind and ours.kind != theirs.kind:
            found = [(2.0, f"should be {theirs.kind}."), *self._colours(ours, theirs)]
        elif theirs.kind == "bars":
            found = self._bars(ours.bars, theirs.bars, len(reference))
        elif theirs.kind == "a line":
            found = [*self._line(ours.line, theirs.line, len(reference)), *self._colours(ours, theirs)]
        elif theirs.kind == "a pie":
            found = self._pie(ours.slices, theirs.slices)
        else:
            found = self._regions(picture, reference)
        ordered = sorted(found, key=lambda one: -one[0])[: self.most]  # stable: equal ones stay as they are read
        return " ".join(sentence for _, sentence in ordered) or SAME

    def _low_or_high(self, difference: float, height: int) -> str:
        """What is said of a length that is `difference` pixels short of the reference's; "" if that is nothing."""
        if abs(difference) < max(1.5, self.tolerance * height):
            return ""
        return f"{'far ' if abs(difference) >= self.far * height else ''}too {'low' if difference > 0 else 'high'}"

    def _bars(self, ours: Sequence[Bar], theirs: Sequence[Bar], height: int) -> list[tuple[float, str]]:
        if len(ours) != len(theirs):
            return [(2.0, f"should have {len(theirs)} bars.")]
        found, wrong = [], []
        for number, (bar, wanted) in enumerate(zip(ours, theirs, strict=True), 1):
            if said := self._low_or_high(wanted.height - bar.height, height):
                found.append((abs(wanted.height - bar.height) / height, f"bar {number} {said}."))
            if bar.colour != wanted.colour:
                wrong.append((1.0, f"bar {number} should be {wanted.colour}."))
        if len({bar.colour for bar in ours}) == 1 and len({bar.colour for bar in theirs}) == 1:
            wrong = [(1.0, f"color should be {theirs[0].colour}.")] if wrong else []
        return [*wrong, *found]

    def _line(self, ours: Sequence[float], theirs: Sequence[float], height: int) -> list[tuple[float, str]]:
        found = []
        for side, line, wanted in zip(SIDES, ours, theirs, strict=True):
            if said := self._low_or_high(wanted - line, height):
                found.append((abs(wanted - line) / height, f"line {said} {side}."))
        return found

    def _pie(self, ours: Sequence[Slice], theirs: Sequence[Slice]) -> list[tuple[float, str]]:
        mine = {one.colour: one.share for one in ours}
        wanted = {one.colour: one.share for one in theirs}
        found = [(1.0, f"no {name}.") for name in mine if name not in wanted]
        for name, share in wanted.items():
            off = share - mine.get(name, 0.0)
            if name not in mine:
                found.append((1.0, f"needs {name}."))
            elif abs(off) > self.tolerance:
                found.append((abs(off), f"{name} slice too {'small' if off > 0 else 'large'}."))
        return found

    def _colours(self, ours: Shape, theirs: Shape) -> list[tuple[float, str]]:
        if not theirs.colours or ours.colours[:1] == theirs.colours[:1]:
            return []
        return [(1.0, f"color should be {theirs.colours[0]}.")]

    def _regions(self, picture: Picture, reference: Picture) -> list[tuple[float, str]]:
        found = []
        for name, mine, wanted in zip(REGIONS, _ninths(picture), _ninths(reference), strict=True):
            off = float(np.abs(mine.mean((0, 1)) - wanted.mean((0, 1))).mean()) / 255
            if off < self.tolerance:
                continue
            brighter = float(wanted.mean() - mine.mean()) / 255
            if colour_name(_main(mine)) != colour_name(_main(wanted)):
                found.append((off, f"{name} should be {colour_name(_main(wanted))}."))
            elif abs(brighter) >= self.tolerance / 2:
                found.append((off, f"{name} too {'dark' if brighter > 0 else 'light'}."))
        return found


def _ninths(picture: Picture) -> list[Picture]:
    """The nine regions, row by row."""
    rows = np.array_split(picture, 3, axis=0)
    return [part for row in rows for part in np.array_split(row, 3, axis=1)]


def _main(region: Picture) -> NDArray[np.float64]:
    """The colour (3,) that most of a region has, or the mean where it has no plain one."""
    values, counts = np.unique(region.reshape(-1, 3), axis=0, return_counts=True)
    most = int(counts.argmax())
    plain = counts[most] >= PLAIN * counts.sum()
    return np.asarray(values[most] if plain else region.mean((0, 1)), dtype=np.float64)
