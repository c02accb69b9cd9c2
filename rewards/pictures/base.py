"""What the rewards of pictures share: reading samples, batches of one size, fitting to a model's input."""

from __future__ import annotations

import abc
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

import mmrl.types
from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import Part

ResizeMode = Literal["shortest", "longest", "squash"]


def picture_of(output: object) -> Image.Image | None:
    """`output` in RGB; None if it is no picture, an empty one, or one that cannot be decoded."""
    if not isinstance(output, Image.Image) or 0 in output.size:
        return None
    try:
        return output.convert("RGB")
    except OSError:
        return None


def pixels_of(picture: Image.Image) -> Tensor:
    """Pixels (3, Y, X) in 0..1 of a picture in RGB."""
    return torch.from_numpy(np.array(picture, dtype=np.float32) / 255).permute(2, 0, 1)


def column_of(samples: Samples, name: str, reward: str) -> Sequence[object]:
    """A column of the data.

    Raises:
        ValueError: the data has it not.
    """
    if name not in samples.columns:
        raise ValueError(
            f"{reward} reads the column {name!r}, and the data has {sorted(samples.columns)}: add it, or name another"
        )
    return samples.columns[name]


def prompts_of(samples: Samples, reward: str) -> list[str]:
    """The prompt of each sample."""
    return [str(prompt) for prompt in column_of(samples, "prompt", reward)]


def groups_of(samples: Samples, reward: str) -> dict[object, list[int]]:
    """Samples of one prompt: those with the same "group" column if there is one, else with the same prompt."""
    keys = samples.columns["group"] if "group" in samples.columns else prompts_of(samples, reward)
    groups: dict[object, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return groups


def rows(samples: Samples, indices: Sequence[int]) -> Samples:
    """Only the samples at `indices`, in that order."""
    columns = {name: [column[i] for i in indices] for name, column in samples.columns.items()}
    return Samples([samples.outputs[i] for i in indices], columns, [samples.ids[i] for i in indices if samples.ids])


def scores_of(numbers: Sequence[float | None]) -> Scores:
    """Scores from numbers; None is "not applicable"."""
    values = torch.tensor([0.0 if number is None else number for number in numbers], dtype=torch.float32)
    return Scores(values, torch.tensor([number is not None for number in numbers], dtype=torch.bool))


def each(samples: Samples, score: Callable[[Image.Image], float | None]) -> Scores:
    """`score` of every picture on its own; not applicable where there is no picture."""
    found = [picture_of(output) for output in samples.outputs]
    return scores_of([None if picture is None else score(picture) for picture in found])


def batched(
    samples: Samples, score: Callable[[Tensor, Samples], Tensor], batch_size: int, usable: Sequence[bool] | None = None
) -> Scores:
    """`score` of the pixels (n, 3, Y, X) of at most `batch_size` pictures of one size at a time, without gradient;
    not applicable where there is no picture or `usable` is False."""
    values, applicable = torch.zeros(len(samples)), torch.zeros(len(samples), dtype=torch.bool)
    pictures = [picture_of(output) for output in samples.outputs]
    sizes: dict[tuple[int, int], list[int]] = {}
    for index, picture in enumerate(pictures):
        if picture is not None and (usable is None or usable[index]):
            sizes.setdefault(picture.size, []).append(index)
    for indices in sizes.values():
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            pixels = torch.stack([pixels_of(picture) for i in chosen if (picture := pictures[i]) is not None])
            with torch.no_grad():
                values[chosen] = score(pixels, rows(samples, chosen)).float().cpu()
            applicable[chosen] = True
    return Scores(values, applicable)


@dataclass(frozen=True, kw_only=True)
class PictureReward(RewardFunction):
    """A reward that can be differentiated by the pixels. `batch_size` pictures go through the model at a time."""

    device: str = "cpu"
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_device(type(self).__name__, self.device, self.batch_size)

    @abc.abstractmethod
    def on_pixels(self, pixels: Tensor, samples: Samples) -> Tensor:
        """Scores (N,) of pixels (N, 3, Y, X) in 0..1, with gradient; `samples` gives the columns."""

    def __call__(self, samples: Samples) -> Scores:
        return batched(samples, self.on_pixels, self.batch_size, self.usable(samples))

    def usable(self, samples: Samples) -> Sequence[bool] | None:
        """To which samples this applies if they are pictures; None for all."""


def differentiable(parts: Mapping[str, Part]) -> Callable[[Tensor, Samples], Tensor]:
    """The weighted sum of `parts` as a function of pixels (N, 3, Y, X) in 0..1 and samples, with gradient.

    Raises:
        ValueError: a part has no gradient.
    """
    known: list[tuple[float, PictureReward]] = []
    for name, part in parts.items():
        if not isinstance(part.use, PictureReward):
            raise ValueError(
                f"rewards.{name} cannot be differentiated, which mmrl.regularisers.Pathwise needs: give a "
                "PictureReward such as ClipScore, or train by log-probs (mmrl.surrogates.PPOClip without Pathwise)"
            )
        known.append((part.weight, part.use))

    def total(pixels: Tensor, samples: Samples) -> Tensor:
        return sum(
            (weight * reward.on_pixels(pixels, samples) for weight, reward in known), pixels.new_zeros(len(pixels))
        )

    return total


def check_device(reward: str, device: str, batch_size: int) -> None:
    """That these fields mean something.

    Raises:
        ValueError: they do not.
    """
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{reward}.device is {device!r}: give a device of torch, such as cpu") from error
    if batch_size < 1:
        raise ValueError(f"{reward}.batch_size is {batch_size}: give 1 or more pictures")


def need_package(reward: str, module: str, package: str) -> None:
    """That `module` can be imported.

    Raises:
        ValueError: it cannot, and how to get it.
    """
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{reward} needs the package {package!r}, which is not installed: `pip install {package}`")


def said(error: BaseException) -> str:
    """The kind of an error and the first sentence of its message, which can go on for pages."""
    sentences = re.split(r"(?<=[.!])\s|\n", str(error).strip())
    return f"{type(error).__name__}: {sentences[0].rstrip('.')[:200]}"


def find_path(name: str) -> Path:
    """`name` as a path: as given if it is there, else one of the small things that mmrl ships ("assets/...")."""
    path = Path(name).expanduser()
    if path.exists() or not name.startswith("assets/"):
        return path
    shipped = Path(mmrl.types.__file__).resolve().parent / name  # where a wheel puts them
    return shipped if shipped.exists() else Path(__file__).resolve().parents[2] / name


def fit(pixels: Tensor, size: tuple[int, int], mode: ResizeMode = "shortest") -> Tensor:
    """Pixels (N, 3, Y, X) at `size` (Y, X), as open_clip's preprocessing has them: resized by bicubic interpolation,
    then cut to the middle ("shortest"), filled with black ("longest"), or neither ("squash"). Differentiable."""
    height, width = pixels.shape[-2:]
    ratios = size[0] / height, size[1] / width
    target = size
    if mode == "shortest":
        target = _at_least(size[0], height * max(ratios)), _at_least(size[1], width * max(ratios))
    elif mode == "longest":
        target = max(1, round(height * min(ratios))), max(1, round(width * min(ratios)))
    if target != (height, width):
        resized = interpolate(pixels, target, mode="bicubic", align_corners=False, antialias=True)
        pixels = resized.clamp(0.0, 1.0)  # as 8-bit pictures have it; bicubic interpolation overshoots
    top, bottom = _margins(size[0] - target[0])
    left, right = _margins(size[1] - target[1])
    return pad(pixels, (left, right, top, bottom))


def _at_least(size: int, wanted: float) -> int:
    return max(size, int(wanted + 1e-6))  # torchvision's Resize cuts fractions off


def _margins(missing: int) -> tuple[int, int]:
    """What to add before and after; negative where something is cut off, there rounded as torchvision's CenterCrop."""
    before = missing // 2 if missing >= 0 else round(missing / 2)
    return before, missing - before
