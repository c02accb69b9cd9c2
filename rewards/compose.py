"""A weighted sum of rewards whose parts keep their names, and the checks every reward passes through."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mmrl.types import RewardFunction, Samples, Scores
from rewards.functions import Function, find_function
from rewards.patience import LateError, at_most


class RewardError(ValueError):
    """A reward function broke its contract; says which, on which sample, and how."""


class Compares(RewardFunction):
    """A reward that is shown several outputs of a group at once, and so may go by the place of an output. Its scores
    lie between 0 and 1."""

    @abc.abstractmethod
    def in_order(self, number: int | None) -> RewardFunction:
        """The same, showing outputs in the order they come. With a `number` it asks anew instead of remembering, and
        equal questions of another round have another one; with None it may remember."""


LONGEST_S = 3600.0
"""How long a reward or a metric may take for a batch where nothing else is said."""


@dataclass(frozen=True)
class Part:
    """One reward of a sum: a RewardFunction, or the dotted path of a plain Python function. It has `timeout_s` seconds
    for a batch, after which the run is saved and ends (null: it may hang for ever)."""

    use: RewardFunction | str
    weight: float = 1.0
    timeout_s: float | None = LONGEST_S

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"rewards.*.weight is {self.weight}: give a finite number")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ValueError(f"rewards.*.timeout_s is {self.timeout_s}: give more than 0 seconds, or null")
        if isinstance(self.use, str):
            find_function(self.use)  # a misspelt one is found out before anything runs

    @property
    def function(self) -> RewardFunction:
        """What scores samples."""
        return Function(self.use) if isinstance(self.use, str) else self.use


@dataclass(frozen=True)
class WeightedSum(RewardFunction):
    """sum_k weight_k r_k over the parts that apply to a sample; not applicable if none does."""

    parts: Mapping[str, Part]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("rewards is empty: give at least one, such as `accuracy: {use: rewards.text.AnswerMatch}`")

    def __call__(self, samples: Samples) -> Scores:
        found = {
            name: checked(name, part.function, samples, timeout_s=part.timeout_s) for name, part in self.parts.items()
        }
        values = torch.zeros(len(samples))
        applicable = torch.zeros(len(samples), dtype=torch.bool)
        for name, scores in found.items():
            values = values + self.parts[name].weight * torch.where(scores.applicable, scores.values, 0.0)
            applicable = applicable | scores.applicable
        return Scores(values, applicable, found)


def told(function: RewardFunction, error: Exception) -> str:
    """Whose error this is: the name of a plain function, and where its own code raised it the line, or a class."""
    return function.called(error) if isinstance(function, Function) else type(function).__name__


def checked(
    name: str,
    function: RewardFunction,
    samples: Samples,
    section: str = "rewards",
    timeout_s: float | None = LONGEST_S,
) -> Scores:
    """The scores of `function`, the part `name` of `section` of the config, if there is one finite number per sample.

    Raises:
        RewardError: it raised, took longer than `timeout_s`, or gave another number of scores, or one that is not
            finite.
    """
    try:
        with at_most(timeout_s):
            scores = function(samples)
    except RewardError:
        raise
    except LateError as error:
        raise RewardError(
            f"{section}.{name} ({told(function, error)}) {error} on a batch of {len(samples)} samples: mend it"
            + (f", or raise rewards.{name}.timeout_s, then --resume" if section == "rewards" else ", then --resume")
        ) from error
    except Exception as error:
        raise RewardError(
            f"{section}.{name} ({told(function, error)}) raised {type(error).__name__} on a batch of {len(samples)} "
            f"samples: {error}"
        ) from error
    if not isinstance(scores, Scores):
        raise RewardError(
            f"{section}.{name} gave {type(scores).__name__}, not Scores: return mmrl.types.Scores, or name a plain "
            "function by its dotted path"
        )
    if scores.values.shape != (len(samples),) or scores.applicable.shape != (len(samples),):
        raise RewardError(
            f"{section}.{name} gave {tuple(scores.values.shape)} scores for {len(samples)} samples: "
            "give one number per sample, in order"
        )
    bad = (~torch.isfinite(scores.values) & scores.applicable).nonzero()
    if len(bad):
        index = int(bad[0])
        where = f" (example {samples.ids[index]})" if samples.ids else ""
        raise RewardError(
            f"{section}.{name} is {float(scores.values[index])} for sample {index}{where}, output "
            f"{str(samples.outputs[index])[:80]!r}: give a finite number, or mark it as not applicable"
        )
    return scores
