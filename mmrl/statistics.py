"""What a part may want to know of a decision beside its log-prob: numbers of its whole distribution.

A part names its statistics (`Part.plans_on`, `Part.reads`); a policy computes those that it was asked for
(`Policy.report`) where it has the distribution in hand, and nothing otherwise. A new one is a class beside the part
that needs it. Letters: V alternatives of a categorical decision, ... any leading dimensions.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

Noise = Literal["categorical", "learned", "scheduled"]
"""Where the spread of a decision comes from: a choice among alternatives, a Gaussian whose deviation is learned, or one
whose deviation a schedule sets, so that its entropy is the same in every state."""
EVERY_NOISE: tuple[Noise, ...] = ("categorical", "learned", "scheduled")
TOLD: dict[Noise, str] = {
    "categorical": "choices among alternatives, such as tokens",
    "learned": "Gaussians whose spread is learned",
    "scheduled": "Gaussians whose spread a schedule sets, the same in every state",
}


class Statistic(abc.ABC):
    """A number of a decision's distribution. A frozen dataclass, so that two parts that ask for the same get one."""

    noises: tuple[Noise, ...] = EVERY_NOISE
    """The decisions that it says something about."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Its key in `Rollout.stats` and `Evaluation.stats`, different for different hyper-parameters."""

    def of_categorical(self, log_softmax: Tensor, drawn: Tensor) -> Tensor:
        """From log-probs (..., V), -inf where an alternative is impossible, and the one that was drawn (...): (...)."""
        raise TypeError(f"{type(self).__name__} is not defined for choices among alternatives")

    def of_gaussian(self, standard: Tensor, log_std: Tensor) -> Tensor:
        """Of each dimension (...), from what was drawn in deviations from its mean (...) and log deviations (...); the
        policy reduces dimensions as it does those of its log-probs."""
        raise TypeError(f"{type(self).__name__} is not defined for Gaussians")


class Entropy(Statistic):
    """H(pi(. | s)) in nats. Of vision's answers it is recorded in any case, when they are drawn."""

    noises = ("categorical", "learned")
    name = "entropy"

    def of_categorical(self, log_softmax: Tensor, drawn: Tensor) -> Tensor:
        return -(log_softmax.exp() * log_softmax.clamp(min=-1e4)).sum(-1)  # p log p = 0 at p = 0

    def of_gaussian(self, standard: Tensor, log_std: Tensor) -> Tensor:
        return log_std + 0.5 * math.log(2 * math.pi * math.e)


def asked(statistics: Iterable[Statistic]) -> tuple[Statistic, ...]:
    """Each once, by name.

    Raises:
        ValueError: two that differ have one name.
    """
    found: dict[str, Statistic] = {}
    for statistic in statistics:
        other = found.setdefault(statistic.name, statistic)
        if type(other) is not type(statistic):
            raise ValueError(f"{type(statistic).__name__} and {type(other).__name__} are both called {other.name!r}")
    return tuple(found.values())


def of_categorical(statistics: Iterable[Statistic], log_softmax: Tensor, drawn: Tensor) -> dict[str, Tensor]:
    """All of `statistics` by name, of decisions with log-probs (..., V) of which `drawn` (...) were taken."""
    return {statistic.name: statistic.of_categorical(log_softmax, drawn) for statistic in statistics}


def of_gaussian(statistics: Iterable[Statistic], x: Tensor, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """All of `statistics` by name, each dimension by itself, of x (...) drawn from N(mean, std); 0 where std is."""
    noisy = std > 0
    safe = torch.where(noisy, std, 1.0)
    standard, log_std = (x - mean) / safe, safe.log().expand_as(x)
    return {s.name: torch.where(noisy, s.of_gaussian(standard, log_std), 0.0) for s in statistics}
