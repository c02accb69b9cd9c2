"""A rubric: weighted criteria, each checked by a rule or a judge (RGR-GRPO, arXiv 2511.12344; its reward half).

R = sum of w_j c_j over the sum of the positive w_j, between 0 and 1, with c_j 1 where the criterion is met. A pitfall
has a negative weight: it counts above the line only. A gate that is not met makes R 0. What failed can be told to the
policy (`failed`, `refinement`): the guidance half draws one more answer with that in its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import Part, checked


@dataclass(frozen=True)
class Criterion:
    """Met where `use`, any reward, is at least `least`. `says` is how it is told to a policy that failed it."""

    use: RewardFunction | str
    weight: float = 1.0
    least: float = 0.5
    gate: bool = False
    says: str = ""

    def __post_init__(self) -> None:
        if self.weight == 0 and not self.gate:
            raise ValueError("a criterion's weight is 0: give another, or make it a gate")


@dataclass(frozen=True)
class Rubric(RewardFunction):
    """R of the module's docstring; criteria that do not apply to a sample leave both sums, and where no positive one
    does the rubric does not. Each c_j is a named part."""

    criteria: Mapping[str, Criterion]

    def __post_init__(self) -> None:
        if not any(criterion.weight > 0 for criterion in self.criteria.values()):
            raise ValueError("Rubric.criteria has no positive weight: give at least one criterion that earns something")

    def met(self, samples: Samples) -> dict[str, Scores]:
        """c_j of every criterion."""
        found = {}
        for name, criterion in self.criteria.items():
            scores = checked(name, Part(criterion.use).function, samples, "criteria")
            met = torch.where(scores.applicable, (scores.values >= criterion.least).float(), 0.0)
            found[name] = Scores(met, scores.applicable, scores.parts)
        return found

    def __call__(self, samples: Samples) -> Scores:
        parts = self.met(samples)
        earned, possible, passed = torch.zeros(len(samples)), torch.zeros(len(samples)), torch.ones(len(samples))
        for name, criterion in self.criteria.items():
            met, applies = parts[name].values, parts[name].applicable
            earned = earned + criterion.weight * met
            possible = possible + max(criterion.weight, 0.0) * applies
            if criterion.gate:
                passed = passed * torch.where(applies, met, 1.0)
        applicable = possible > 0
        values = passed * (earned / possible.clamp(min=1e-9)).clamp(0.0, 1.0)
        return Scores(torch.where(applicable, values, 0.0), applicable, parts)

    def failed(self, samples: Samples) -> list[list[str]]:
        """What each sample did not do: criteria with a positive weight that are not met, pitfalls that are."""
        parts = self.met(samples)
        return [
            [
                criterion.says or name
                for name, criterion in self.criteria.items()
                if parts[name].applicable[i] and bool(parts[name].values[i]) == (criterion.weight < 0)
            ]
            for i in range(len(samples))
        ]


def refinement(prompt: str, answer: str, failed: Sequence[str]) -> str:
    """The prompt for one more answer, once it is known what the best one failed."""
    missing = "\n".join(f"- {item}" for item in failed)
    return (
        f"{prompt}\n\nAn earlier answer:\n{answer}\n\nIt fails the following:\n{missing}\n\nAnswer again, and better."
    )
