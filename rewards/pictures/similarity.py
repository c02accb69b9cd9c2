"""How near a picture is to a reference picture: SSIM (Wang et al. 2004) and LPIPS (arXiv 1801.03924)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import RewardError
from rewards.pictures.base import (
    PictureReward,
    column_of,
    fit,
    need_package,
    picture_of,
    pixels_of,
    said,
    scores_of,
)

SSIM_WINDOW = 7


def references_of(samples: Samples, column: str, reward: str) -> list[Image.Image | None]:
    """The reference picture of each sample in RGB: a picture, or the path of one; None where there is none.

    Raises:
        ValueError: the column is missing, or names a file that is no picture.
    """
    return [_reference(value, column, reward) for value in column_of(samples, column, reward)]


def _reference(value: object, column: str, reward: str) -> Image.Image | None:
    if not isinstance(value, str | Path) or not str(value):
        return picture_of(value)
    try:
        with Image.open(value) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise ValueError(f"{reward}: the column {column!r} names {str(value)!r}, which is no picture here") from error


@dataclass(frozen=True)
class SSIM(RewardFunction):
    """The structural similarity to the picture in `column`, 1 for the same; the reference is resized to the size of
    the picture. Not applicable without a reference, or below 7 pixels a side."""

    column: str = "reference"

    def __post_init__(self) -> None:
        need_package("SSIM", "skimage", "scikit-image")

    def __call__(self, samples: Samples) -> Scores:
        pictures = [picture_of(output) for output in samples.outputs]
        return scores_of(
            [_ssim(p, r) for p, r in zip(pictures, references_of(samples, self.column, "SSIM"), strict=True)]
        )


def _ssim(picture: Image.Image | None, reference: Image.Image | None) -> float | None:
    from skimage.metrics import structural_similarity

    if picture is None or reference is None or min(picture.size) < SSIM_WINDOW:
        return None
    if reference.size != picture.size:
        reference = reference.resize(picture.size, Image.Resampling.BICUBIC)
    both = [np.asarray(image) for image in (picture, reference)]
    similarity: Any = structural_similarity  # untyped
    return float(similarity(*both, channel_axis=-1, data_range=255, win_size=SSIM_WINDOW))


@dataclass(frozen=True)
class LPIPS(PictureReward):
    """Minus the LPIPS distance to the picture in `column`, 0 for the same; the reference is resized to the size of the
    picture. Needs the package lpips, which takes the weights of `net` from torchvision."""

    column: str = "reference"
    net: Literal["alex", "vgg", "squeeze"] = "alex"

    def __post_init__(self) -> None:
        super().__post_init__()
        need_package("LPIPS", "lpips", "lpips")

    def usable(self, samples: Samples) -> Sequence[bool]:
        return [reference is not None for reference in references_of(samples, self.column, "LPIPS")]

    def on_pixels(self, pixels: Tensor, samples: Samples) -> Tensor:
        distance = load_lpips(self.net, self.device)
        size = pixels.shape[-2], pixels.shape[-1]
        wanted = []
        for index, reference in enumerate(references_of(samples, self.column, "LPIPS")):
            if reference is None:
                raise ValueError(f"LPIPS: sample {index} has no picture in the column {self.column!r}")
            wanted.append(fit(pixels_of(reference)[None], size, "squash")[0])
        both = pixels.to(self.device), torch.stack(wanted).to(self.device)
        found: Tensor = distance(*both, normalize=True)  # from 0..1 to its -1..1
        return -found.flatten().to(pixels.device)


@functools.cache
def load_lpips(net: str, device: str) -> Any:
    """The distance of the package lpips.

    Raises:
        RewardError: its weights cannot be had.
    """
    try:
        import lpips

        return lpips.LPIPS(net=net, verbose=False).to(device).eval().requires_grad_(False)
    except Exception as error:  # of any kind: network, disk, torchvision
        raise RewardError(
            f"LPIPS cannot load {net!r} ({said(error)}): torchvision downloads its weights once, "
            "where there is a network"
        ) from error
