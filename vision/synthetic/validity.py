"""Labels that stay valid by construction: the object's own pixels, and refusals of what could make its label wrong."""

from __future__ import annotations

import abc
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vision.synthetic.records import Generator, Request, Result, Unmade


class Check(abc.ABC):
    """Looks at a made picture."""

    @abc.abstractmethod
    def __call__(self, picture: NDArray[np.uint8], request: Request) -> str:
        """Why the picture (Y, X, 3) is refused; "" if it is not."""


def names_a_label(description: str, labels: Sequence[str]) -> str:
    """The label that a description says, as a word or its plural; "" for none."""
    text = f" {' '.join(re.findall(r'[^\W_]+', description.lower()))} "
    for label in labels:
        word = " ".join(re.findall(r"[^\W_]+", label.lower()))
        if any(f" {word}{ending} " in text for ending in ("", "s", "es")):
            return label
    return ""


def pasted(picture: NDArray[np.uint8], request: Request) -> NDArray[np.uint8]:
    """The picture with the object's own pixels (uint8, after all arithmetic), bit for bit."""
    return np.where(request.mask[..., None], request.foreground, picture)


def grey(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Luma (Y, X) of a picture (Y, X, 3), 0 to 255."""
    return picture @ np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Legible(Check):
    """Refuses a background that hides the object: less than `levels` (of 255) between the mean luma of its rim and of
    what is just outside. A diversity reward pays for pictures that nobody can read."""

    levels: float = 30.0

    def __call__(self, picture: NDArray[np.uint8], request: Request) -> str:
        from scipy.ndimage import binary_dilation, binary_erosion

        luma = grey(picture)
        rim = request.mask & ~binary_erosion(request.mask)
        outside = binary_dilation(request.mask, iterations=2) & ~request.mask
        if not outside.any() or abs(luma[rim].mean() - luma[outside].mean()) >= self.levels:
            return ""
        return "the object is not legible"


@dataclass(frozen=True)
class NoSecondInstance(Check):
    """Refuses a background in which the object can be seen again: its box, shifted over the picture, correlates by more
    than `most` (1: a copy) somewhere outside the object's own place (normalised cross-correlation of scikit-image)."""

    most: float = 0.8

    def __call__(self, picture: NDArray[np.uint8], request: Request) -> str:
        from skimage.feature import match_template

        rows, columns = np.nonzero(request.mask)
        if not len(rows):
            return ""
        box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        luma = grey(picture)
        rest = np.where(request.mask, np.median(luma[~request.mask]) if (~request.mask).any() else 0.0, luma)
        template = np.where(request.mask[box], luma[box], rest[box].mean())
        if template.std() < 1.0:
            return ""
        found = match_template(rest, template)
        return "a second instance" if float(np.nan_to_num(found).max()) > self.most else ""


def made(generator: Generator, checks: Sequence[Check], requests: Sequence[Request]) -> list[Result]:
    """Every request answered, in order: refused before anything is drawn, unmade, refused by a check, or a picture."""
    named = [names_a_label(request.description, request.labels) for request in requests]
    wanted = [request for request, label in zip(requests, named, strict=True) if not label]
    pictures = iter(generator.fill(wanted) if wanted else [])
    results = []
    for request, label in zip(requests, named, strict=True):
        picture = Unmade(f"it names {label!r}") if label else next(pictures)
        results.append(_checked(picture, request, checks))
    return results


def _checked(picture: NDArray[np.uint8] | Unmade, request: Request, checks: Sequence[Check]) -> Result:
    if isinstance(picture, Unmade):
        return Result(request, None, reason=str(picture))
    if picture.shape != request.foreground.shape or picture.dtype != np.uint8:
        return Result(
            request,
            None,
            broken=True,
            reason=(f"it gave {picture.dtype} {picture.shape} where uint8 {request.foreground.shape} was wanted"),
        )
    whole, passed = pasted(picture, request), []
    for check in checks:
        reason = check(whole, request)
        if reason:
            return Result(request, None, tuple(passed), reason)
        passed.append(type(check).__name__)
    kept = bool((whole[request.mask] == request.foreground[request.mask]).all())
    return Result(request, whole, (*passed, "foreground")) if kept else Result(request, None, reason="foreground lost")
