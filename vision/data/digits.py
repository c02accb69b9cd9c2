"""Handwritten digits of the UCI Optical Recognition set, as scikit-learn ships them: 1,797 real pictures
of 8 x 8 grey levels (CC BY 4.0), enlarged to RGB."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vision.data.base import Example, Source

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HOLED = {"zero", "four", "six", "eight", "nine"}
_CLAIM = re.compile(r"\bis (even|odd) and has (a|no) hole\b")


@dataclass(frozen=True)
class Digits(Source):
    """Which digit is it? `size` in pixels."""

    size: int = 32

    def examples(self) -> Sequence[Example]:
        from sklearn.datasets import load_digits

        data = load_digits()
        found = []
        for number, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
            grey = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
            picture = grey.resize((self.size, self.size), Image.Resampling.BILINEAR).convert("RGB")
            found.append(Example(f"digits-{number:04d}", (picture,), "Which digit is it?", NAMES[int(label)]))
        return found

    def thought(self, example: Example) -> str:
        return f"The digit is {_parity(example.answer)} and has {_hole(example.answer)} hole."

    def thought_agrees(self, thought: str, answer: str) -> bool | None:
        claim = _CLAIM.search(thought)
        if claim is None or answer not in NAMES:
            return None
        return claim.group(1) == _parity(answer) and claim.group(2) == _hole(answer)


def _parity(name: str) -> str:
    return "even" if NAMES.index(name) % 2 == 0 else "odd"


def _hole(name: str) -> str:
    return "a" if name in HOLED else "no"
