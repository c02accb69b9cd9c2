"""SPEAR's recalibrated advantage, arXiv 2509.22601: an old success is worth what it is above what is usual by now.

A_i = R_i - P50(means of past groups), 0 where that is not positive;   the median is over the last `buffer` groups

It is meant for trajectories that are replayed, whose own groups were of another policy. The first rollout is compared
with itself. Published code has a threshold on scores beside it and does not read it; there is none here.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from mmrl.algorithm import Advantage, Credit
from mmrl.masked import group_mean
from mmrl.types import Rollout


@dataclass(frozen=True)
class HistoryMedian(Advantage):
    """Rewards above the median of past groups' means. A checkpoint remembers those."""

    buffer: int = 10240
    positive_only: bool = True
    _means: deque[float] = field(default_factory=deque, init=False, repr=False, compare=False)

    @property
    def usual(self) -> float | None:
        """P50 of the means of past groups; None before there are any."""
        return statistics.median(self._means) if self._means else None

    def __call__(self, rollout: Rollout) -> Credit:
        rewards, valid, groups = rollout.returns(), rollout.alive.any(-1), rollout.group_ids
        by_group = dict(zip(groups[valid].tolist(), group_mean(rewards, valid, groups)[valid].tolist(), strict=True))
        usual = statistics.median(by_group.values() or [0.0]) if self.usual is None else self.usual
        self._means.extend(by_group[group] for group in sorted(by_group))
        while len(self._means) > self.buffer:
            self._means.popleft()
        advantages = torch.where(valid, rewards - usual, 0.0)
        if self.positive_only:
            advantages = advantages.clamp(min=0.0)
        return Credit(torch.where(rollout.mask, advantages[:, None], 0.0))

    def state_dict(self) -> dict[str, object]:
        return {"means": list(self._means)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self._means.clear()
        found = state.get("means", [])
        assert isinstance(found, list)
        self._means.extend(found)
