"""The advantage filter of StableReinforce (R1-Reward), arXiv 2505.02835.

z = (A - mean A) / std A over all decisions of the rollout;   w = 1[|z| <= limit]

The authors' code compares z with mean A +- 3, which keeps a z of 3.3 where the mean is 2.6; the paper's bound is on z
itself, and so is this one. The denominator keeps what is filtered, as there.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.algorithm import Credit, Selector
from mmrl.masked import whiten
from mmrl.types import Rollout


@dataclass(frozen=True)
class DropOutliers(Selector):
    """Weight 0 on decisions whose advantage is more than `limit` standard deviations from the mean."""

    limit: float = 3.0

    def __post_init__(self) -> None:
        if self.limit <= 0:
            raise ValueError(f"DropOutliers.limit is {self.limit}: give more than 0, 3 is usual")

    def plan(self, rollout: Rollout, credit: Credit) -> Tensor:
        return (whiten(credit.advantages, rollout.mask).abs() <= self.limit).float()
