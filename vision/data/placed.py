"""Objects on backgrounds, with the pixels of each object known: what a new background can be put behind.

Digits are those of the UCI Optical Recognition set (scikit-learn, CC BY 4.0), emoji those of OpenMoji 17 (CC BY-SA
4.0).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vision.backdrops import background, vocabulary
from vision.data.base import Example, Source
from vision.data.digits import NAMES
from vision.data.openmoji import CODES, render_emoji
from vision.photographs import PHOTOGRAPHS

THRESHOLD = 100
"""Levels of a scanned digit, or of an emoji's alpha, from which a pixel is the object's."""


ANY = "any"
"""Among the backgrounds: one of the vocabulary that generators know."""


@dataclass(frozen=True, eq=False)
class Cutout:
    """One object without a background."""

    label: str
    pixels: NDArray[np.uint8]  # (Y, X, 3)
    mask: NDArray[np.bool_]  # (Y, X)


@dataclass(frozen=True)
class Placed(Source):
    """`objects`, each scaled to a share `scale` of the picture's side and put somewhere on one of the `backgrounds`,
    which are described in words (`vision.backdrops`; "any" draws the words). The `task` decides what is asked:

    - name: which object it is. The answer is a class.
    - box: where the object of a class is. The answer is "left top right bottom" in pixels. `objects_each` of other
      classes stand beside it.
    - count: how many objects there are, up to `objects_each`.
    - detect: every object with its box, as "class left top right bottom; ...".

    Columns: `mask` (Y, X), True on the objects' pixels, which may not change; `labels`, their classes; `boxes`, those
    asked for; `background`. `first` and `count` choose among the objects, so that two sources can share none of them. A
    picture depends on the seed and its number alone.

    Raises:
        ValueError: a size, share or number is out of range.
    """

    objects: Literal["digits", "emoji"] = "digits"
    task: Literal["name", "box", "count", "detect"] = "name"
    backgrounds: tuple[str, ...] = ("black plain",)
    first: int = 0
    count: int = 1200
    objects_each: int = 1
    classes: int = 10
    size: int = 32
    scale: tuple[float, float] = (0.65, 0.9)
    seed: int = 0

    def __post_init__(self) -> None:
        most = 10 if self.objects == "digits" else len(CODES)
        if not 2 <= self.classes <= most:
            raise ValueError(f"Placed.classes is {self.classes}: {self.objects} have 2 to {most}")
        if self.count < 1 or self.first < 0 or self.objects_each < 1 or not self.backgrounds:
            raise ValueError(
                f"Placed has first {self.first}, count {self.count}, objects_each {self.objects_each} and "
                f"{len(self.backgrounds)} backgrounds: give 0 or more, and at least 1 of the others"
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"Placed.scale is {self.scale}: give two shares of the side, the smaller first")

    def examples(self) -> Sequence[Example]:
        cutouts = _digits(self.classes) if self.objects == "digits" else _emoji(self.classes, 3 * self.size)
        found = []
        for number in range(self.first, self.first + self.count):
            chance = np.random.default_rng((self.seed, number))
            if self.objects == "digits" and number >= len(cutouts):
                raise ValueError(
                    f"Placed has first {self.first} and count {self.count}: there are {len(cutouts)} digits of "
                    f"{self.classes} classes"
                )
            found.append(self._example(cutouts, number, chance))
        return found

    def _example(self, cutouts: Sequence[Cutout], number: int, chance: np.random.Generator) -> Example:
        one = cutouts[number % len(cutouts)]
        own = cutouts[self.first : self.first + self.count] if self.objects == "digits" else cutouts
        others = [cutout for cutout in own if cutout.label != one.label] or list(own)
        beside = int(chance.integers(self.objects_each)) if self.task in ("count", "detect") else self.objects_each - 1
        chosen = [
            one,
            *(others[int(chance.integers(len(others)))] for _ in range(beside if self.task != "name" else 0)),
        ]
        words = self.backgrounds[int(chance.integers(len(self.backgrounds)))]
        words = vocabulary()[int(chance.integers(len(vocabulary())))] if words == ANY else words
        behind = background(words, self.size, chance, tuple(PHOTOGRAPHS))
        mask = np.zeros((self.size, self.size), bool)
        boxes = [self._place(cutout, behind, mask, chance) for cutout in chosen]
        labels = [cutout.label for cutout in chosen]
        question, answer, asked = self._asked(labels, boxes)
        columns = {"mask": mask, "labels": tuple(labels), "boxes": asked, "background": words}
        picture = Image.fromarray(behind)
        return Example(f"placed-{self.objects}-{self.task}-{number:05d}", (picture,), question, answer, columns)

    def _place(
        self, cutout: Cutout, picture: NDArray[np.uint8], mask: NDArray[np.bool_], chance: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Draw an object on the picture, where it covers none that is there if that can be had; returns its box."""
        side = chance.uniform(*self.scale) * self.size
        factor = side / max(cutout.mask.shape)
        height, width = (max(1, round(factor * length)) for length in cutout.mask.shape)
        pixels = np.asarray(Image.fromarray(cutout.pixels).resize((width, height), Image.Resampling.BILINEAR))
        own = np.asarray(Image.fromarray(cutout.mask).resize((width, height), Image.Resampling.NEAREST))
        for _ in range(50):
            top, left = int(chance.integers(self.size - height + 1)), int(chance.integers(self.size - width + 1))
            place = (slice(top, top + height), slice(left, left + width))
            if not (mask[place] & own).any():
                break
        picture[place] = np.where(own[..., None], pixels, picture[place])
        mask[place] |= own
        rows, columns = np.nonzero(own)
        return (
            left + int(columns.min()), top + int(rows.min()), left + int(columns.max()) + 1, top + int(rows.max()) + 1
        )  # fmt: skip

    def _asked(
        self, labels: Sequence[str], boxes: Sequence[tuple[int, int, int, int]]
    ) -> tuple[str, str, tuple[tuple[int, int, int, int], ...]]:
        """Question, answer, and the boxes of the answer."""
        kind = "digit" if self.objects == "digits" else "object"
        if self.task == "name":
            return f"Which {kind} is it?", labels[0], (boxes[0],)
        if self.task == "box":
            return f"Where is the {labels[0]}?", " ".join(map(str, boxes[0])), (boxes[0],)
        if self.task == "count":
            return f"How many {kind}s are there?", str(len(labels)), tuple(boxes)
        told = sorted(f"{label} {' '.join(map(str, box))}" for label, box in zip(labels, boxes, strict=True))
        return f"Which {kind}s are where?", "; ".join(told), tuple(boxes)

    def description(self, example: Example, chance: random.Random) -> str:
        return chance.choice(vocabulary())


def _digits(classes: int) -> list[Cutout]:
    """Every scanned digit of the first classes, without its empty border."""
    from sklearn.datasets import load_digits

    data, found = load_digits(), []
    for levels, label in zip(data.images, data.target, strict=True):
        if label >= classes:
            continue
        large = Image.fromarray((levels * (255 / 16)).astype(np.uint8)).resize((32, 32), Image.Resampling.BILINEAR)
        grey = np.asarray(large)
        mask = grey >= THRESHOLD
        rows, columns = np.nonzero(mask)
        box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        found.append(Cutout(NAMES[int(label)], np.repeat(grey[box][..., None], 3, -1), mask[box]))
    return found


def _emoji(classes: int, size: int) -> list[Cutout]:
    """Every emoji of the first classes and its mirror image."""
    found = []
    for name, code in CODES[:classes]:
        drawn = render_emoji(code, size)
        for picture in (drawn, ImageOps.mirror(drawn)):
            rgba = np.asarray(picture)
            found.append(Cutout(name, np.ascontiguousarray(rgba[..., :3]), rgba[..., 3] >= THRESHOLD))
    return found
