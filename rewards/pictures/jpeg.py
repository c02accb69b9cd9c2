"""The size of a picture as JPEG: a reward that needs no model (DDPO, arXiv 2305.13301, section 5.1)."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from mmrl.types import RewardFunction, Samples, Scores
from rewards.pictures.base import each


def kilobytes(picture: Image.Image, quality: int = 95) -> float:
    """The size of `picture` as JPEG, in units of 1000 bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return len(buffer.getvalue()) / 1000


def check_quality(reward: str, quality: int) -> None:
    """That JPEG has this quality.

    Raises:
        ValueError: it has not.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"{reward}.quality is {quality}: JPEG has 1 to 100, papers take 95")


@dataclass(frozen=True)
class Compressibility(RewardFunction):
    """Minus the kilobytes as JPEG."""

    quality: int = 95

    def __post_init__(self) -> None:
        check_quality("Compressibility", self.quality)

    def __call__(self, samples: Samples) -> Scores:
        return each(samples, lambda picture: -kilobytes(picture, self.quality))


@dataclass(frozen=True)
class Incompressibility(RewardFunction):
    """The kilobytes as JPEG."""

    quality: int = 95

    def __post_init__(self) -> None:
        check_quality("Incompressibility", self.quality)

    def __call__(self, samples: Samples) -> Scores:
        return each(samples, lambda picture: kilobytes(picture, self.quality))
