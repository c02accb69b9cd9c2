"""Bars, a line or a pie, found in the pixels of a picture by their plain colours."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.render.alike import Picture

NAMES: Mapping[str, tuple[int, int, int]] = {
    "red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "orange": (255, 165, 0), "purple": (128, 0, 128),
    "cyan": (0, 255, 255), "magenta": (255, 0, 255), "yellow": (255, 255, 0), "brown": (165, 42, 42),
    "pink": (255, 192, 203), "black": (0, 0, 0), "grey": (128, 128, 128), "white": (255, 255, 255),
}  # fmt: skip
NEAR = 40
"""Of 255 in the sum over channels: colours this near are one colour."""
PALE = 60
"""The largest less the smallest channel: axes and text are below, what is drawn in colour above."""
SHARE = 0.04
"""Of all that is not background: a colour with less is the edge of another one."""
COVERED = 0.5
CANDIDATES = 32
"""So many of the most frequent colours are looked at."""
SOLID = 0.9
"""How much of its box a bar fills."""
THIN = 0.25
"""How much of the height of a picture a line takes in a column, at most, on average."""
ROUND = (0.72, 0.83)
"""How much of its box a disc fills: pi / 4, about."""


@dataclass(frozen=True)
class Bar:
    """A block of one colour that stands on the same line as the others; `height` in pixels."""

    height: int
    colour: str


@dataclass(frozen=True)
class Slice:
    """A part of a disc, by its share of the pixels."""

    share: float
    colour: str


@dataclass(frozen=True)
class Shape:
    """What is in a picture: `kind` is "bars", "a line", "a pie" or ""; colours are the largest first."""

    kind: str = ""
    colours: tuple[str, ...] = ()
    bars: tuple[Bar, ...] = ()
    line: tuple[float, ...] = ()
    """How high above the bottom of the picture it is at its left end, in its middle and at its right end, in pixels."""
    slices: tuple[Slice, ...] = ()


def colour_name(colour: NDArray[np.float64] | NDArray[np.uint8]) -> str:
    """The nearest of the named colours to one (3,)."""
    return min(NAMES, key=lambda name: float(np.square(np.asarray(NAMES[name]) - colour.astype(np.float64)).sum()))


def shape_of(picture: Picture) -> Shape:
    """What is in `picture` (Y, X, 3): its largest plain colours tell."""
    labels, colours = plain_colours(picture)
    if not colours:
        return Shape()
    names = tuple(dict.fromkeys(colour_name(colour) for colour in colours))
    found = labels >= 0
    if bars := _bars(labels, colours):
        return Shape("bars", names, bars)
    down, across = np.nonzero(found)
    height, width = int(down.max() - down.min()) + 1, int(across.max() - across.min()) + 1
    filled = float(found.sum()) / (height * width)
    if ROUND[0] <= filled <= ROUND[1] and 0.85 <= height / width <= 1.18:
        return Shape("a pie", names, slices=_slices(labels, colours))
    columns = found[:, across.min() : across.max() + 1]
    if len(names) == 1 and columns.any(0).all() and columns.sum(0).mean() <= THIN * len(picture) and width > 4:
        middles = [float(np.nonzero(column)[0].mean()) for column in columns.T]
        at = (0, (width - 1) // 2, width - 1)
        return Shape("a line", names, line=tuple(len(picture) - 1 - middles[i] for i in at))
    return Shape("", names)


def plain_colours(picture: Picture) -> tuple[NDArray[np.int64], list[NDArray[np.uint8]]]:
    """Which of the plain colours each pixel has (Y, X), -1 for none, and these colours, the largest first.

    The background is the colour of three corners, where there is one, and else the most frequent: tall bars have more
    pixels than what is behind them. Greys count only where there is no other colour. At the edge to the
    background a pixel has a colour that covers half of it; between two others it has none.
    """
    flat = picture.reshape(-1, 3)
    coded = picture.astype(np.int64) @ (1 << 16, 1 << 8, 1)
    codes, counts = np.unique(coded, return_counts=True)
    corner, times = np.unique(coded[[0, 0, -1, -1], [0, -1, 0, -1]], return_counts=True)
    ground_first = (codes == corner[times.argmax()]) & (times.max() >= 3)
    order = np.lexsort((-counts, ~ground_first))
    codes, counts = codes[order], counts[order]
    values = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    drawn = np.abs(values - values[0]).sum(1) > NEAR
    vivid = drawn & (values.max(1) - values.min(1) > PALE)
    chosen = vivid if bool((counts * vivid).sum() >= SHARE * (counts * drawn).sum() > 0) else drawn
    total, ground = int((counts * chosen).sum()), values[0]
    kept: list[NDArray[np.int64]] = []
    for value in values[chosen][:CANDIDATES]:
        near = np.abs(values - value).sum(1) <= NEAR
        edge = any(_cover(value[None], other, ground)[0] > 0 for other in kept)
        if not edge and int((counts * near).sum()) >= SHARE * total:
            kept.append(value)
    pixels, labels = flat.astype(np.int64), np.full(len(flat), -1)
    for number, value in reversed(list(enumerate(kept))):
        labels[_cover(pixels, value, ground) >= COVERED] = number
    return labels.reshape(picture.shape[:2]), [value.astype(np.uint8) for value in kept]


def _cover(values: NDArray[np.int64], colour: NDArray[np.int64], ground: NDArray[np.int64]) -> NDArray[np.float64]:
    """How much of `colour` over `ground` (3,) each of the values (n, 3) is, 0 for those that are no mixture of both."""
    way = (colour - ground).astype(np.float64)
    off = (values - ground).astype(np.float64)
    share = off @ way / (way @ way)
    apart = np.abs(off - share[:, None] * way).sum(1) > NEAR
    return np.where(apart | (share > 1.2), 0.0, np.maximum(share, 0.0))


def _bars(labels: NDArray[np.int64], colours: list[NDArray[np.uint8]]) -> tuple[Bar, ...]:
    """The bars, from left to right; () if there is anything else."""
    there = labels >= 0
    mine = [_most(column[column >= 0]) if (column >= 0).any() else -1 for column in labels.T]
    edges = [0, *(i for i in range(1, len(mine)) if mine[i] != mine[i - 1]), len(mine)]
    found, floors, pixels = [], [], 0
    for left, right in itertools.pairwise(edges):
        if mine[left] < 0:
            continue
        block = labels[:, left:right] == mine[left]
        rows = np.nonzero(block.any(1))[0]
        height = int(rows.max() - rows.min()) + 1
        if block.sum() < SOLID * height * (right - left) or right - left < 2:
            return ()
        pixels += int(block.sum())
        found.append(Bar(height, colour_name(colours[mine[left]])))
        floors.append(int(rows.max()))
    standing = found and max(floors) - min(floors) <= 1 and pixels >= SOLID * there.sum()
    return tuple(found) if standing else ()


def _slices(labels: NDArray[np.int64], colours: list[NDArray[np.uint8]]) -> tuple[Slice, ...]:
    total = int((labels >= 0).sum())
    return tuple(Slice(float((labels == n).sum()) / total, colour_name(c)) for n, c in enumerate(colours))


def _most(values: NDArray[np.int64]) -> int:
    return int(np.bincount(values).argmax())
