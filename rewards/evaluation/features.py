"""What a reward should not go by: plain figures of texts and pictures, for probes and, on purpose, as a bad reward."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageStat

from mmrl.types import RewardFunction, Samples, Scores
from rewards.pictures.base import picture_of, scores_of
from rewards.pictures.jpeg import kilobytes

MARKUP = re.compile(r"^\s*(?:#{1,6} |[-*+] |\d+[.)] )|\*\*|`", re.MULTILINE)
Name = Literal["length", "markup", "size", "brightness", "saturation", "contrast", "detail"]


def _channel(picture: Image.Image, number: int) -> float:
    """Mean of hue, saturation or value, from 0 to 1."""
    return float(ImageStat.Stat(picture.convert("HSV")).mean[number]) / 255


TEXT: Mapping[str, Callable[[str], float]] = {
    "length": lambda text: float(len(text)),
    "markup": lambda text: float(len(MARKUP.findall(text))),
}
"""Characters; headings, list marks, bold and code marks."""
PICTURE: Mapping[str, Callable[[Image.Image], float]] = {
    "size": lambda picture: float(np.sqrt(picture.width * picture.height)),
    "brightness": lambda picture: _channel(picture, 2),
    "saturation": lambda picture: _channel(picture, 1),
    "contrast": lambda picture: float(ImageStat.Stat(picture.convert("L")).stddev[0]) / 255,
    "detail": lambda picture: 1000 * kilobytes(picture) / (picture.width * picture.height),
}
"""Pixels a side; mean value and saturation, deviation of grey, all from 0 to 1; bytes of JPEG a pixel."""


def features_of(output: object) -> dict[str, float]:
    """All figures that this output has."""
    if isinstance(output, str):
        return {name: of(output) for name, of in TEXT.items()}
    picture = picture_of(output)
    return {} if picture is None else {name: of(picture) for name, of in PICTURE.items()}


@dataclass(frozen=True)
class Feature(RewardFunction):
    """One of these figures as a reward: what a reward is that goes by nothing else."""

    name: Name

    def __call__(self, samples: Samples) -> Scores:
        return scores_of([features_of(output).get(self.name) for output in samples.outputs])
