"""How well a picture compresses: DDPO's two tasks (arXiv 2305.13301, section 5.1)."""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
from PIL import Image

from mmrl.types import RewardFunction, Samples, Scores


@dataclass(frozen=True)
class Compressibility(RewardFunction):
    """Minus the size of the picture as JPEG, in kB of 1,000 bytes."""

    quality: int = 95
    sign = -1.0

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality is {self.quality}: give 1 to 95, as JPEG has it")

    def __call__(self, samples: Samples) -> Scores:
        sizes = [self._kilobytes(picture) for picture in samples.outputs]
        return Scores(self.sign * torch.tensor(sizes), torch.ones(len(sizes), dtype=torch.bool))

    def _kilobytes(self, picture: object) -> float:
        if not isinstance(picture, Image.Image):
            raise ValueError(f"{type(self).__name__} reads pictures, and was given {type(picture).__name__}")
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=self.quality)
        return buffer.tell() / 1000


@dataclass(frozen=True)
class Incompressibility(Compressibility):
    """Plus the size of the picture as JPEG, in kB."""

    sign = 1.0
