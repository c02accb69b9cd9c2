"""SPEAR, arXiv 2509.22601: what once went well is learned from again, while it is better than what is usual by now.

kept      answers with R_i > mean of their group, of the last `tolerance` steps, and of those the newest 4 `size`
due       once more than 1.5 `size` of them have A'_i = R_i - P50(means of past groups) > 0 (`HistoryMedian`);
          then `size` of these at random are replayed once, with their log-probs of then, and nothing stays kept
credit    gamma(t) A'_i,   gamma(t) = coef (1 - cos(pi t / ramp)) / 2, and coef from step t = ramp on

Published code takes separate optimiser steps on them; here they are rows of the step's rollout (`Rollout.replayed`), so
that the aggregate counts them too. The paper's bonus for tool calls has nothing to pay here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mmrl.advantages.history_median import HistoryMedian
from mmrl.masked import NOISE, group_mean
from mmrl.types import Rollout
from vision.kept import Kept, of_rollout, with_replayed
from vision.plans.base import Plan, Rows, Wanted, whole
from vision.policy import VisionPolicy

if TYPE_CHECKING:
    from vision.collector import AnswerCollector


@dataclass
class _Memory:
    kept: list[Kept] = field(default_factory=list)
    step: int = 0
    usual: HistoryMedian = field(default_factory=HistoryMedian)


@dataclass(frozen=True)
class SPEAR(Plan):
    """Groups as ever, and below them now and then `size` successes of the last `tolerance` steps."""

    size: int = 2048
    tolerance: int = 10
    coef: float = 1.0
    ramp: int = 200
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False, compare=False)
    remembers = replays = True

    def __post_init__(self) -> None:
        if self.size < 1 or self.tolerance < 1 or self.coef < 0 or self.ramp < 0:
            raise ValueError(
                f"rollout.plan has size {self.size}, tolerance {self.tolerance}, coef {self.coef} and ramp "
                f"{self.ramp}: give 1 or more, 1 or more, 0 or more, and 0 or more"
            )

    def draw(self, policy: VisionPolicy, wanted: Wanted) -> Rows:
        return whole(policy, wanted)

    def gamma(self, step: int) -> float:
        """Weight of what is replayed in step 0, 1, ..."""
        return self.coef if step >= self.ramp else self.coef * (1 - math.cos(math.pi * step / self.ramp)) / 2

    def then(
        self, policy: VisionPolicy, rollout: Rollout, answers: AnswerCollector, generator: torch.Generator
    ) -> Rollout:
        found = with_replayed(policy, rollout, self._due(generator), answers)
        self._keep(rollout)
        return found

    def _due(self, generator: torch.Generator) -> list[tuple[Kept, float]]:
        """What is replayed in this step, with its credit."""
        memory, gamma, usual = self._memory, self.gamma(self._memory.step), self._memory.usual.usual
        memory.kept = [kept for kept in memory.kept if memory.step - kept.step <= self.tolerance]
        if gamma == 0 or usual is None:
            return []
        good = [kept for kept in memory.kept if kept.reward - usual > NOISE]
        if len(good) <= 1.5 * self.size:
            return []
        memory.kept = []
        chosen = torch.randperm(len(good), generator=generator, device=generator.device)[: self.size]
        return [(good[place], gamma * (good[place].reward - usual)) for place in chosen.tolist()]

    def _keep(self, rollout: Rollout) -> None:
        memory, rewards, there = self._memory, rollout.returns(), rollout.alive.any(-1)
        better = there & (rewards - group_mean(rewards, there, rollout.group_ids) > NOISE)
        memory.kept += [of_rollout(rollout, row, memory.step) for row in better.nonzero()[:, 0].tolist()]
        memory.kept = memory.kept[-4 * self.size :]
        memory.usual(rollout)
        memory.step += 1

    def state_dict(self) -> dict[str, object]:
        kept = [one.as_json() for one in self._memory.kept]
        return {"step": self._memory.step, "kept": kept, "usual": self._memory.usual.state_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        found: Mapping[str, Any] = state
        self._memory.step = int(found["step"])
        self._memory.kept = [Kept.from_json(one) for one in found["kept"]]
        self._memory.usual.load_state_dict(found["usual"])
