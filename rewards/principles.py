"""Binary principles as a reward (RLBFF, arXiv 2509.21319): does this output satisfy this principle, yes or no?

A principle is any text, so it is entailment: the output is the premise, the principle the hypothesis. The answer is
r = logit(Yes) - logit(No): 0 means that either is as likely, of whichever prompt, so that margins of different prompts
can be compared, which those of a Bradley-Terry model cannot. The reward is R = sum of w_k sigmoid(r_k) over the
principles, which are chosen when it is used: nothing is trained again. (The paper was read in summaries; the weights
are ours.)"""

from __future__ import annotations

import abc
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mmrl.types import RewardFunction, Samples, Scores
from rewards.pictures.base import column_of

FIELD = re.compile(r"\{(\w+)\}")


class YesNo(abc.ABC):
    """Answers for any output and any principle whether it holds."""

    @abc.abstractmethod
    def margins(self, samples: Samples, principles: Sequence[str]) -> Scores:
        """logit(Yes) - logit(No) of each sample and its own principle (N,), in nats; not applicable to what cannot be
        read."""


@dataclass(frozen=True)
class Principle:
    """What an output has to satisfy, as a sentence; `{column}` in it is the row's own. A negative weight pays for the
    opposite, and does so exactly: sigmoid(-r) = 1 - sigmoid(r)."""

    text: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("a principle's text is empty: give a sentence that an output satisfies or not")
        if not math.isfinite(self.weight) or self.weight == 0:
            raise ValueError(f"the weight of the principle {self.text!r} is {self.weight}: give a finite one but 0")


@dataclass(frozen=True)
class Principles(RewardFunction):
    """R of the module's docstring, or with `scale: margin` the weighted sum of the r_k. Each principle is a named part,
    without its weight; the order in which they are given changes nothing."""

    model: YesNo
    principles: Mapping[str, Principle]
    scale: Literal["probability", "margin"] = "probability"

    def __post_init__(self) -> None:
        if not self.principles:
            raise ValueError("Principles.principles is empty: give at least one, such as `dark: {text: dark}`")

    def __call__(self, samples: Samples) -> Scores:
        names = sorted(self.principles)
        asked = [fill_all(self.principles[name].text, samples, "Principles") for name in names]
        # all principles of an output follow each other, so that a model may read it once
        many = Samples(
            [output for output in samples.outputs for _ in names],
            {name: [value for value in column for _ in names] for name, column in samples.columns.items()},
        )
        found = self.model.margins(many, [asked[k][i] for i in range(len(samples)) for k in range(len(names))])
        margins = found.values.view(len(samples), len(names))
        values = torch.sigmoid(margins) if self.scale == "probability" else margins
        applies = found.applicable.view(len(samples), len(names)).all(1)
        values = torch.where(applies[:, None], values, 0.0)
        parts = {name: Scores(values[:, k], applies) for k, name in enumerate(names)}
        weights = torch.tensor([self.principles[name].weight for name in names])
        return Scores((weights * values).sum(1), applies, parts)


def fill(template: str, values: Mapping[str, object]) -> str:
    """`template` with the value in the place of each `{name}` that is known; other braces are text."""
    return FIELD.sub(lambda found: str(values.get(found.group(1), found.group(0))), template)


def fill_all(template: str, samples: Samples, reward: str) -> list[str]:
    """`template` with the columns of each sample.

    Raises:
        ValueError: it names a column that the data has not.
    """
    columns = {name: column_of(samples, name, reward) for name in FIELD.findall(template)}
    return [fill(template, {name: column[i] for name, column in columns.items()}) for i in range(len(samples))]
