"""Rewards around a reward: gates, bounds and normalisers. What is inside keeps its name among the parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import Part, checked
from rewards.pictures.base import groups_of


@dataclass(frozen=True)
class Gate(RewardFunction):
    """`use` where `condition` is at least `least`, else `otherwise`: nothing else can pay for a condition that fails.
    Not applicable where the condition is not."""

    condition: RewardFunction | str
    use: RewardFunction | str
    least: float = 0.5
    otherwise: float = 0.0

    def __call__(self, samples: Samples) -> Scores:
        gate = checked("condition", Part(self.condition).function, samples)
        inner = checked("use", Part(self.use).function, samples)
        is_open = gate.values >= self.least
        values = torch.where(is_open, inner.values, self.otherwise)
        applicable = gate.applicable & (inner.applicable | ~is_open)
        return Scores(torch.where(applicable, values, 0.0), applicable, {"condition": gate, "use": inner})


@dataclass(frozen=True)
class Bounded(RewardFunction):
    """(r - shift) / scale, then held between `low` and `high`; null is no bound. A reward that has run away pays no
    more than its bound."""

    use: RewardFunction | str
    low: float | None = None
    high: float | None = None
    shift: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"Bounded.scale is {self.scale}: give a number above 0")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"Bounded.low is {self.low} and high {self.high}: give a lower low")

    def __call__(self, samples: Samples) -> Scores:
        inner = checked("use", Part(self.use).function, samples)
        values = (inner.values - self.shift) / self.scale
        if self.low is not None or self.high is not None:
            values = values.clamp(self.low, self.high)
        return Scores(torch.where(inner.applicable, values, 0.0), inner.applicable, {"use": inner})


@dataclass(frozen=True)
class Normalised(RewardFunction):
    """(r - mean) / deviation within each group (the column "group", else the prompt): rewards of different units can be
    added as what they say of one group. 0 where a group has no spread. Not below `least` deviation, so that rounding is
    not blown up."""

    use: RewardFunction | str
    least: float = 1e-6

    def __call__(self, samples: Samples) -> Scores:
        inner = checked("use", Part(self.use).function, samples)
        values = torch.zeros(len(samples))
        for ids in groups_of(samples, "Normalised").values():
            kept = [i for i in ids if inner.applicable[i]]
            if len(kept) > 1:
                found = inner.values[kept].double()
                deviation = found.std(correction=0)
                if deviation > self.least:
                    values[kept] = ((found - found.mean()) / deviation).float()
        return Scores(values, inner.applicable, {"use": inner})
