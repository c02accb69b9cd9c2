"""Selectors whose weights come from what all decisions are like.

By default they are planned once, on the whole rollout of all ranks and the policy that acted: the same for any
micro-batch and any number of processes. With `per_micro_batch` they are found again in every micro-batch from the
policy as it is and from that micro-batch alone, as the code of most of these papers has it; what is chosen then hangs
on `micro_rows`.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.algorithm import Credit, Selector
from mmrl.ranking import Decisions
from mmrl.statistics import Statistic
from mmrl.types import Batch, Rollout


@dataclass(frozen=True)
class Ranking(Selector, abc.ABC):
    """Weights by rank or range among the decisions that are seen together."""

    per_micro_batch: bool = False

    def __post_init__(self) -> None:
        if self.per_micro_batch and self.shrinks_denominator:
            raise ValueError(
                f"{type(self).__name__} has per_micro_batch and shrinks_denominator: the denominator is counted before "
                "the first micro-batch, so set one to false"
            )

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """What `weights` reads in `Decisions.stats`."""
        return ()

    @property
    def plans_on(self) -> tuple[Statistic, ...]:
        return () if self.per_micro_batch else self.statistics

    @property
    def reads(self) -> tuple[Statistic, ...]:
        return self.statistics if self.per_micro_batch else ()

    @abc.abstractmethod
    def weights(self, seen: Decisions) -> Tensor:
        """Weights (r, t), 0 or more."""

    def plan(self, rollout: Rollout, credit: Credit) -> Tensor:
        if self.per_micro_batch:
            return torch.ones_like(rollout.logprobs)
        return self.weights(Decisions.of_rollout(rollout, credit)).to(rollout.logprobs.dtype)

    def again(self, logprobs: Tensor, batch: Batch) -> Tensor | None:
        return self.weights(Decisions.of_batch(logprobs, batch)).to(logprobs.dtype) if self.per_micro_batch else None
