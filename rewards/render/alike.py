"""How alike two pictures are, by four measures of their pixels, each 1 for the same picture.

A measure alone pays for answers that ignore the picture: a white page is 95 % right about a chart on white. `Alike`
takes from each measure what the best picture of one colour, or another picture of the data, would get anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]  # (Y, X, 3), RGB
Measure = Callable[[Picture, Picture], float]

WINDOW = 7
CONTRAST = (0.03 * 255) ** 2
"""C2 of SSIM (Wang et al. 2004)."""
BINS = 8
"""Of each colour channel."""
DEGENERATE = 1e-6


def pixels_alike(picture: Picture, reference: Picture) -> float:
    """1 - the mean absolute difference of two pictures (Y, X, 3), of 255."""
    return 1.0 - float(np.abs(picture.astype(np.int16) - reference).mean()) / 255


def structure_alike(picture: Picture, reference: Picture) -> float:
    """SSIM of two pictures (Y, X, 3) of at least 7 pixels a side, in -1..1."""
    from skimage.metrics import structural_similarity

    similarity: Any = structural_similarity  # untyped
    return float(similarity(picture, reference, channel_axis=-1, data_range=255, win_size=WINDOW))


def edges_alike(picture: Picture, reference: Picture) -> float:
    """Overlap of the brightness gradients of two pictures (Y, X, 3): 1 - sum |g - h| / sum (|g| + |h|)."""
    ours, theirs = _gradients(picture), _gradients(reference)
    total = float(np.abs(ours).sum() + np.abs(theirs).sum())
    return 1.0 if total == 0 else 1.0 - float(np.abs(ours - theirs).sum()) / total


def colours_alike(picture: Picture, reference: Picture) -> float:
    """Overlap of the colour histograms of two pictures (Y, X, 3), 8 bins to a channel, wherever the colours are."""
    return float(np.minimum(_histogram(picture), _histogram(reference)).sum())


MEASURES: Mapping[str, Measure] = {
    "pixels": pixels_alike, "structure": structure_alike, "edges": edges_alike, "colours": colours_alike,
}  # fmt: skip


def of_one_colour(reference: Picture) -> dict[str, float]:
    """The most that any picture of one colour gets from each measure, against `reference` (Y, X, 3).

    Pixels: that of the median colour. Structure: SSIM has s(x, y) = C2 / (var(y) + C2) at most where x does not vary.
    Edges: none. Colours: the share of the fullest bin.
    """
    median = np.broadcast_to(np.median(reference, axis=(0, 1)).astype(np.uint8), reference.shape)
    return {
        "pixels": pixels_alike(median, reference),
        "structure": float((CONTRAST / (_variance(reference) + CONTRAST)).mean()),
        "edges": edges_alike(median, reference),
        "colours": float(_histogram(reference).max()),
    }


@dataclass(frozen=True)
class Baseline:
    """What each measure gives to two pictures of the data that have nothing to do with each other, on average."""

    means: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(MEASURES, 0.0))

    @classmethod
    def of(cls, pictures: Sequence[Picture], seed: int, pairs: int = 64, side: int = 128) -> Baseline:
        """The means over `pairs` random pairs of different `pictures` (each (Y, X, 3)), shrunk to `side` pixels.

        Raises:
            ValueError: fewer than two pictures.
        """
        if len(pictures) < 2:
            raise ValueError(f"Baseline.of got {len(pictures)} pictures: give at least 2, of which pairs can be made")
        chance = np.random.default_rng(seed)
        chosen = [chance.choice(len(pictures), 2, replace=False) for _ in range(pairs)]
        found = [measured(pictures[int(i)], pictures[int(j)], side) for i, j in chosen]
        return cls({name: float(np.mean([each[name] for each in found])) for name in MEASURES})


@dataclass(frozen=True)
class Alike:
    """How alike a picture is to a reference beyond chance, in 0..1: the mean over measures, by `weights`, of
    (s - b) / (1 - b), at least 0, where b is the larger of what the best picture of one colour gets (of_one_colour)
    and what unrelated pictures get (`baseline`). A picture of one colour gets 0, which is the least that any gets.

    Pictures are compared at the reference's shape, its longer side shrunk to `side` pixels.

    Raises:
        ValueError: a weight is negative, of no measure, or all are 0; or `side` is below SSIM's window.
    """

    baseline: Baseline = field(default_factory=Baseline)
    weights: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(MEASURES, 1.0))
    side: int = 128

    def __post_init__(self) -> None:
        wrong = {name: weight for name, weight in self.weights.items() if name not in MEASURES or not weight >= 0}
        if wrong or not sum(self.weights.values()) > 0:
            raise ValueError(
                f"Alike.weights is {dict(self.weights)}: give {', '.join(MEASURES)}, at least 0, not all 0"
            )
        if self.side < WINDOW:
            raise ValueError(f"Alike.side is {self.side}: give at least {WINDOW}, the window of SSIM")

    def __call__(self, picture: Picture, reference: Picture) -> float:
        """The score of `picture` (Y, X, 3) against `reference` (Y', X', 3). A reference of one colour scores 0."""
        picture, reference = fitted(picture, reference, self.side)
        found, blank = _measures(picture, reference), of_one_colour(reference)
        total = 0.0
        for name, weight in self.weights.items():
            floor = max(blank[name], self.baseline.means[name])
            if floor < 1 - DEGENERATE:
                total += weight * max(0.0, (found[name] - floor) / (1 - floor))
        return total / sum(self.weights.values())


def measured(picture: Picture, reference: Picture, side: int = 128) -> dict[str, float]:
    """All measures of `picture` (Y, X, 3) at the shape of `reference` (Y', X', 3), shrunk to `side` pixels."""
    return _measures(*fitted(picture, reference, side))


def _measures(picture: Picture, reference: Picture) -> dict[str, float]:
    return {name: measure(picture, reference) for name, measure in MEASURES.items()}


def fitted(picture: Picture, reference: Picture, side: int) -> tuple[Picture, Picture]:
    """Both at the reference's shape, shrunk; no side becomes shorter than SSIM's window."""
    height, width = reference.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(WINDOW, round(width * scale)), max(WINDOW, round(height * scale))
    return _resized(picture, size), _resized(reference, size)


def _resized(picture: Picture, size: tuple[int, int]) -> Picture:
    if (picture.shape[1], picture.shape[0]) == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _gradients(picture: Picture) -> NDArray[np.float32]:
    grey = picture.astype(np.float32).mean(axis=-1)
    across, down = np.diff(grey, axis=1)[:-1], np.diff(grey, axis=0)[:, :-1]
    return np.stack([across, down])


def _histogram(picture: Picture) -> NDArray[np.float64]:
    """Shares of the 8 x 8 x 8 bins."""
    levels = picture.astype(np.int64) * BINS // 256
    index = (levels[..., 0] * BINS + levels[..., 1]) * BINS + levels[..., 2]
    return np.bincount(index.ravel(), minlength=BINS**3) / index.size


def _variance(picture: Picture) -> NDArray[np.float64]:
    """The sample variance in each window that SSIM averages over, (Y - 6, X - 6, 3)."""
    values: NDArray[np.float64] = picture.astype(np.float64)
    rows, columns = values.shape[0] - WINDOW + 1, values.shape[1] - WINDOW + 1
    shape, (down, across, channel) = (rows, columns, 3, WINDOW, WINDOW), values.strides
    windows = np.lib.stride_tricks.as_strided(values, shape, (down, across, channel, down, across), writeable=False)
    return np.asarray(windows.var(axis=(-2, -1), ddof=1))
