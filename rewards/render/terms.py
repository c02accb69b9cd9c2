"""The terms of RRVF's reward (arXiv 2507.20766): vision, format and tools, over the columns of a conversation.

`records` holds what became of the programs of all turns, `turns` their texts, `pictures` the sources. No gold program
is read. The paper's weights are not in its repository, so each term is 1 at most and the config weighs them; what is
marked as unverified below was not in it either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from mmrl.types import RewardFunction, Samples, Scores
from rewards.render.alike import Alike, Picture
from rewards.render.base import Rendered
from rewards.text import TagFormat


def records_of(samples: Samples, name: str) -> list[list[Rendered | None]]:
    """What became of the program of each turn of each conversation; None where no tool was asked.

    Raises:
        ValueError: the data has no such column.
    """
    rows: list[list[Rendered | None]] = []
    for row in _column(samples, "records", name):
        assert isinstance(row, Sequence)
        rows.append([one if isinstance(one, Rendered) else None for one in row])
    return rows


def source_of(samples: Samples, index: int, name: str) -> Picture:
    """The first source picture of a sample, (Y, X, 3)."""
    row = _column(samples, "pictures", name)[index]
    assert isinstance(row, Sequence)
    picture = row[0]
    assert isinstance(picture, Image.Image)
    return np.asarray(picture.convert("RGB"))


def _column(samples: Samples, column: str, name: str) -> Sequence[object]:
    if column not in samples.columns:
        raise ValueError(
            f"{name} reads the column {column!r}, and the data has {sorted(samples.columns)}: a tool such as "
            "vision.rrvf.RenderAndCompare gives it"
        )
    return samples.columns[column]


def last_picture(records: Sequence[Rendered | None]) -> Picture | None:
    """What the last program drew."""
    return records[-1].picture if records and records[-1] is not None else None


def _scores(values: Sequence[float]) -> Scores:
    return Scores(torch.tensor(values, dtype=torch.float32), torch.ones(len(values), dtype=torch.bool))


@dataclass(frozen=True)
class Vision(RewardFunction):
    """How alike the last rendering is to the source beyond chance, 0..1; 0 for a program that draws nothing.

    `alike.baseline` holds what unrelated pictures of the data get: `Baseline.of(pictures)` measures it.
    """

    alike: Alike = field(default_factory=Alike)

    def __call__(self, samples: Samples) -> Scores:
        found = []
        for index, records in enumerate(records_of(samples, "Vision")):
            picture = last_picture(records)
            found.append(0.0 if picture is None else self.alike(picture, source_of(samples, index, "Vision")))
        return _scores(found)


@dataclass(frozen=True)
class Format(RewardFunction):
    """0 for a conversation as it was asked for: its last program draws something, and each turn is these tags in this
    order. `failing` where it draws nothing, else `untidy` where a turn has other tags (both unverified).

    Raises:
        ValueError: a penalty is positive.
    """

    tags: tuple[str, ...] = ("think", "answer")
    optional: tuple[str, ...] = ("think",)
    failing: float = -1.0
    untidy: float = -0.5

    def __post_init__(self) -> None:
        for name in ("failing", "untidy"):
            if vars(self)[name] > 0:
                raise ValueError(f"Format.{name} is {vars(self)[name]}: a penalty is 0 or below")

    def __call__(self, samples: Samples) -> Scores:
        tidy, found = TagFormat(self.tags, self.optional), []
        turns = samples.columns.get("turns", [[output] for output in samples.outputs])
        for said, records in zip(turns, records_of(samples, "Format"), strict=True):
            assert isinstance(said, Sequence)
            if last_picture(records) is None:
                found.append(self.failing)
            else:
                found.append(0.0 if bool(tidy(Samples(list(said))).values.all()) else self.untidy)
        return _scores(found)


@dataclass(frozen=True)
class Tools(RewardFunction):
    """The share of `cap` turns whose programs drew something, 1 at most, so that the policy goes on trying; 1 as well
    from `full_at` of `vision` on, so that a good first try is not punished. Cap and threshold are unverified.

    Raises:
        ValueError: `cap` is below 1.
    """

    vision: RewardFunction = field(default_factory=Vision)
    cap: int = 2
    full_at: float = 0.95

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise ValueError(f"Tools.cap is {self.cap}: give 1 or more")

    def __call__(self, samples: Samples) -> Scores:
        alike = self.vision(samples).values.tolist()
        drawn = [
            sum(one is not None and one.picture is not None for one in row) for row in records_of(samples, "Tools")
        ]
        return _scores(
            [1.0 if a >= self.full_at else min(n, self.cap) / self.cap for a, n in zip(alike, drawn, strict=True)]
        )


@dataclass(frozen=True)
class Drawn(RewardFunction):
    """1 if the last program drew something: a metric."""

    def __call__(self, samples: Samples) -> Scores:
        return _scores([float(last_picture(row) is not None) for row in records_of(samples, "Drawn")])
