"""Backgrounds by their words: patterns in colours, and crops of real photographs. About a millisecond each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vision.photographs import PHOTOGRAPHS, crop, photograph

Picture = NDArray[np.uint8]
"""(Y, X, 3)."""

COLOURS = {
    "black": (0, 0, 0), "grey": (110, 110, 110), "white": (245, 245, 245), "red": (190, 40, 40),
    "green": (50, 140, 60), "blue": (40, 70, 180), "yellow": (210, 190, 60), "brown": (120, 80, 50),
}  # fmt: skip
CONTRAST = 70
"""Levels between the two tones of a pattern."""


def _plain(x: NDArray[np.float64], y: NDArray[np.float64], chance: np.random.Generator) -> NDArray[np.float64]:
    return np.zeros_like(x)


def _stripes(x: NDArray[np.float64], y: NDArray[np.float64], chance: np.random.Generator) -> NDArray[np.float64]:
    angle, period = chance.uniform(0, np.pi), chance.uniform(0.15, 0.4)
    return np.sign(np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period + chance.uniform(0, 6)))


def _checks(x: NDArray[np.float64], y: NDArray[np.float64], chance: np.random.Generator) -> NDArray[np.float64]:
    period, shift = chance.uniform(0.3, 0.6), chance.uniform(0, 6, 2)
    return np.sign(np.sin(2 * np.pi * x / period + shift[0]) * np.sin(2 * np.pi * y / period + shift[1]))


def _dots(x: NDArray[np.float64], y: NDArray[np.float64], chance: np.random.Generator) -> NDArray[np.float64]:
    period, shift = chance.uniform(0.2, 0.4), chance.uniform(0, 6, 2)
    near = np.cos(2 * np.pi * x / period + shift[0]) + np.cos(2 * np.pi * y / period + shift[1])
    return np.where(near > 0.9, 1.0, -1.0)


def _noise(x: NDArray[np.float64], y: NDArray[np.float64], chance: np.random.Generator) -> NDArray[np.float64]:
    return chance.uniform(-1, 1, x.shape)


def _gradient(x: NDArray[np.float64], y: NDArray[np.float64], chance: np.random.Generator) -> NDArray[np.float64]:
    angle = chance.uniform(0, 2 * np.pi)
    return 1.4 * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5))


Pattern = Callable[[NDArray[np.float64], NDArray[np.float64], np.random.Generator], NDArray[np.float64]]
PATTERNS: dict[str, Pattern] = {
    "plain": _plain, "stripes": _stripes, "checks": _checks, "dots": _dots, "noise": _noise, "gradient": _gradient,
}  # fmt: skip
HELD_OUT = ("astronaut", "rocket", "temple", "flower")
"""Photographs that no generator of ours draws from: for evaluation on what was never seen."""
SEEN = tuple(name for name in PHOTOGRAPHS if name not in HELD_OUT)


class NotUnderstood(ValueError):
    """A description names nothing that is known."""


def vocabulary(photographs: Sequence[str] = SEEN) -> list[str]:
    """Every description of one pattern in one colour, and of one photograph."""
    return [*(f"{colour} {pattern}" for pattern in PATTERNS for colour in COLOURS), *photographs]


def background(description: str, size: int, chance: np.random.Generator, photographs: Sequence[str] = SEEN) -> Picture:
    """A square background of `size` pixels: the first photograph, else the first pattern, that the description names,
    in the first colour that it names (grey without one).

    Raises:
        NotUnderstood: it names none of them.
    """
    words = re.findall(r"[a-z]+", description.lower())
    seen = next((word for word in words if word in photographs), None)
    if seen is not None:
        return np.array(crop(photograph(seen), size, chance))
    pattern = next((word for word in words if word in PATTERNS), None)
    colour = next((word for word in words if word in COLOURS), None)
    if pattern is None and colour is None:
        raise NotUnderstood("not understood")
    y, x = np.mgrid[0:size, 0:size] / size
    shade = np.asarray(COLOURS[colour or "grey"], float) + chance.uniform(-12, 12, 3)
    tone = PATTERNS[pattern or "plain"](x, y, chance)[..., None] * CONTRAST / 2
    return np.clip(np.rint(shade + tone), 0, 255).astype(np.uint8)
