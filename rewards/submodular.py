"""Diminishing rewards of a group: what an output adds to the others (SubPO, arXiv 2307.13372, for sets of outputs).

With F a function of a set, the credit of output i is F(all) - F(all but i). Since the second term does not depend on i,
this is an unbiased credit for E F of the group's outputs; it is 0 for what is there twice, so repetition earns nothing.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.types import RewardFunction, Samples, Scores
from rewards.pictures.base import groups_of, picture_of
from rewards.pictures.watchdogs import thumbnail
from rewards.text import tagged


class SetFunction(abc.ABC):
    """F of a set of outputs; F of nothing is 0."""

    @abc.abstractmethod
    def __call__(self, outputs: Sequence[object]) -> float:
        """F."""


@dataclass(frozen=True)
class Distinct(SetFunction):
    """The number of different texts inside <`tag`>; with an empty tag, of whole texts."""

    tag: str = "answer"

    def __call__(self, outputs: Sequence[object]) -> float:
        texts = [tagged(str(output), self.tag) if self.tag else str(output) for output in outputs]
        return float(len({text for text in texts if text}))


@dataclass(frozen=True)
class LogDet(SetFunction):
    """1/2 log det(I + K / noise^2), the information that a Gaussian process gains (Krause, 2008): K is
    exp(-d^2 / (2 width^2)), d the root mean square difference of pictures in 0..1 at 32 x 32."""

    width: float = 0.2
    noise: float = 0.3

    def __post_init__(self) -> None:
        if not (self.width > 0 and self.noise > 0):
            raise ValueError(f"LogDet.width is {self.width} and noise {self.noise}: give numbers above 0")

    def __call__(self, outputs: Sequence[object]) -> float:
        pictures = [found for output in outputs if (found := picture_of(output)) is not None]
        if not pictures:
            return 0.0
        flat = torch.stack([thumbnail(picture) for picture in pictures]).flatten(1).double()
        squares = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") ** 2 / flat.shape[1]
        kernel: Tensor = torch.exp(-squares / (2 * self.width**2))
        return 0.5 * float(torch.logdet(torch.eye(len(flat), dtype=torch.float64) + kernel / self.noise**2))


@dataclass(frozen=True)
class Marginal(RewardFunction):
    """What each output adds to the others of its group (the column "group", else the prompt)."""

    of: SetFunction

    def __call__(self, samples: Samples) -> Scores:
        values = torch.zeros(len(samples))
        for ids in groups_of(samples, "Marginal").values():
            outputs = [samples.outputs[i] for i in ids]
            whole = self.of(outputs)
            for place, i in enumerate(ids):
                values[i] = whole - self.of(outputs[:place] + outputs[place + 1 :])
        return Scores(values, torch.ones(len(samples), dtype=torch.bool))
