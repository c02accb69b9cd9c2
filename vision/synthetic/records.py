"""What passes between a trainer and its data server: plain records, so that another transport can carry them."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Request:
    """A new background wanted for the object of a training picture. The object stays, and its label with it."""

    number: int
    """Of this request, in the order in which they were posted."""
    parent: str
    """Id of the example whose object it is."""
    labels: tuple[str, ...]
    """Names of what is on it; a description that says one is refused, since it could ask for a second instance."""
    foreground: NDArray[np.uint8]  # (Y, X, 3)
    mask: NDArray[np.bool_]  # (Y, X): the object's pixels
    description: str
    step: int
    """Of the policy that wrote the description."""
    seed: int


class Unmade(Exception):
    """No picture was made; says why."""


@dataclass(frozen=True, eq=False)
class Result:
    """What became of a request: a picture with the object's pixels as they were, or the reason why there is none."""

    request: Request
    picture: NDArray[np.uint8] | None  # (Y, X, 3)
    checks: tuple[str, ...] = ()
    """That the picture passed."""
    reason: str = ""
    broken: bool = False
    """The generator is at fault and no description: it raised, was lost, or gave no picture of this size."""


class Generator(abc.ABC):
    """Makes pictures around objects. It lives in the data server; what is heavy is loaded by `prepare`."""

    def prepare(self) -> None:  # noqa: B027  most have nothing to load
        """Load what is needed, before the first request."""

    @abc.abstractmethod
    def fill(self, requests: Sequence[Request]) -> list[NDArray[np.uint8] | Unmade]:
        """A picture (Y, X, 3) of each request's size, or why there is none; the same for the same seed. Where the
        object stands it may hold anything."""
