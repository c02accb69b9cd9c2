"""Overlong filtering, DAPO, arXiv 2503.14476, section 3.4: a trajectory cut off by the length limit says
nothing about its quality, so it leaves the loss and the denominator; its reward still counts in the group."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.algorithm import Credit, Selector
from mmrl.types import Rollout


@dataclass(frozen=True)
class DropTruncated(Selector):
    """Weight 0 on every decision of a trajectory with `stats["truncated"]` True."""

    shrinks_denominator = True

    def plan(self, rollout: Rollout, credit: Credit) -> Tensor:
        if "truncated" not in rollout.stats:
            raise ValueError('DropTruncated reads Rollout.stats["truncated"], which this collector does not record')
        return 1.0 - rollout.stats["truncated"].float()
