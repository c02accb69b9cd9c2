"""Plain figures of pictures that move when a reward is being hacked: to be watched, not trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from mmrl.types import RewardFunction, Samples, Scores
from rewards.pictures.base import each, fit, groups_of, picture_of, pixels_of, scores_of

LUMA = (0.299, 0.587, 0.114)
COMPARED_AT = (32, 32)


@dataclass(frozen=True)
class DarkShare(RewardFunction):
    """The share of pixels whose brightness (0 to 1) is below `below`."""

    below: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.below <= 1:
            raise ValueError(f"DarkShare.below is {self.below}: give a brightness above 0, at most 1")

    def __call__(self, samples: Samples) -> Scores:
        return each(samples, lambda picture: dark_share(pixels_of(picture), self.below))


def dark_share(pixels: Tensor, below: float) -> float:
    """Share of pixels (3, Y, X) in 0..1 that are darker than `below`."""
    brightness = torch.tensordot(torch.tensor(LUMA), pixels, dims=1)
    return float((brightness < below).float().mean())


@dataclass(frozen=True)
class ColourEntropy(RewardFunction):
    """The entropy of the colours in bits, each channel cut into `levels`: 0 for a flat picture, at most
    3 log2(levels)."""

    levels: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256:
            raise ValueError(f"ColourEntropy.levels is {self.levels}: give 2 to 256")

    def __call__(self, samples: Samples) -> Scores:
        return each(samples, lambda picture: colour_entropy(pixels_of(picture), self.levels))


def colour_entropy(pixels: Tensor, levels: int) -> float:
    """Bits of the distribution of the colours of pixels (3, Y, X) in 0..1."""
    bins = (pixels * levels).long().clamp(max=levels - 1).flatten(1)
    _, counts = torch.unique((bins[0] * levels + bins[1]) * levels + bins[2], return_counts=True)
    shares = counts.double() / counts.sum()
    return abs(float(-(shares * shares.log2()).sum()))  # not -0.0


@dataclass(frozen=True)
class Diversity(RewardFunction):
    """The mean distance of a picture to the others of its prompt: the root mean square difference of pixels in 0..1,
    seen at 32 x 32. 0 when all are the same. A prompt is the column "group" if there is one, else "prompt"; not
    applicable to a picture that is alone. Depends on the other samples of the batch, on purpose."""

    def __call__(self, samples: Samples) -> Scores:
        pictures = [picture_of(output) for output in samples.outputs]
        found: list[float | None] = [None] * len(samples)
        for indices in groups_of(samples, "Diversity").values():
            there = [(index, picture) for index in indices if (picture := pictures[index]) is not None]
            if len(there) > 1:
                distances = mean_distances(torch.stack([thumbnail(picture) for _, picture in there]))
                for (index, _), distance in zip(there, distances.tolist(), strict=True):
                    found[index] = distance
        return scores_of(found)


def thumbnail(picture: Image.Image) -> Tensor:
    """Pixels (3, 32, 32) in 0..1."""
    return fit(pixels_of(picture)[None], COMPARED_AT, "squash")[0]


def mean_distances(pixels: Tensor) -> Tensor:
    """Root mean square difference of each of N pictures (N, 3, Y, X) from the others, averaged (N,)."""
    flat = pixels.flatten(1).double()
    apart: Tensor = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")  # exactly 0 between equal ones
    return apart.sum(-1) / ((len(flat) - 1) * math.sqrt(flat.shape[1]))


def default_watchdogs() -> dict[str, RewardFunction]:
    """What every run on pictures watches, by name."""
    return {"dark_share": DarkShare(), "colour_entropy": ColourEntropy(), "diversity": Diversity()}
