"""What a source of labelled pictures gives, and how it is divided."""

from __future__ import annotations

import abc
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError


@dataclass(frozen=True)
class Example:
    """One question about one or several pictures. A picture that is given as a file is read when it is needed."""

    id: str
    images: tuple[Image.Image | Path, ...]
    question: str
    answer: str
    columns: Mapping[str, object] = field(default_factory=dict)
    """Any further column: it reaches rewards and metrics as a keyword argument."""

    def pictures(self) -> list[Image.Image]:
        """The pictures, decoded.

        Raises:
            ValueError: a file is missing or cannot be decoded; names it.
        """
        return [read_picture(image) if isinstance(image, Path) else image for image in self.images]


def read_picture(file: Path) -> Image.Image:
    """A picture, wholly decoded.

    Raises:
        ValueError: it is missing or cannot be decoded; names the file.
    """
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing") from error
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{file} cannot be decoded ({error})") from error


@dataclass(frozen=True)
class Split:
    """A protocol applied to a source. No example stands in two of these."""

    demonstrations: Sequence[Example]
    """Seen with their answers (supervised start, SFT control)."""
    pool: Sequence[Example]
    """Seen by RL only through the reward."""
    dev: Sequence[Example]
    """For choosing hyper-parameters."""
    evaluation: Sequence[Example]
    """Held out: read by evaluation alone."""
    labels: tuple[str, ...]
    """All answers that exist, for closed label lists."""
    transfer: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """Further held-out sets, by name: new classes, another data set."""


class Source(abc.ABC):
    """A set of labelled pictures."""

    @abc.abstractmethod
    def examples(self) -> Sequence[Example]:
        """All examples, always in the same order."""

    def task_weights(self) -> Mapping[str, float] | None:
        """How often each task, a value of the column `task`, is asked of in training; None: every example as often as
        any other."""
        return None

    def thought(self, example: Example) -> str:
        """A true short thought about the example for demonstrations ("" if the source has none)."""
        return ""

    def draft(self, example: Example, chance: random.Random) -> str:
        """An answer to the example that is nearly right, for demonstrations of how one is corrected in a second turn.

        Raises:
            ValueError: the source has none.
        """
        raise ValueError(f"{type(self).__name__} has no drafts: set warmup.corrections to null")

    def description(self, example: Example, chance: random.Random) -> str:
        """Another background for the object of the example, for demonstrations of how one is described.

        Raises:
            ValueError: the source has none.
        """
        raise ValueError(f"{type(self).__name__} describes no backgrounds: use a source with objects, such as Placed")

    def thought_agrees(self, thought: str, answer: str) -> bool | None:
        """Whether what a thought claims fits the answer given; None if it claims nothing that can be
        parsed."""
        return None
