"""Groups that are all but decided leave the loss: the filter of DAPO's dynamic sampling, arXiv 2503.14476, section 3.2,
without drawing others in their place; with bounds on the mean as pi_RL's code has them (filter_rewards, 0.1 to 0.9).

A group-relative advantage of a group without spread is 0 already; here it leaves the denominator too, and so does a
group in which one member of many differs, whose advantage would be large by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.algorithm import Credit, Selector
from mmrl.masked import group_mean, group_varies
from mmrl.types import Rollout


@dataclass(frozen=True)
class DropDecidedGroups(Selector):
    """Weight 0 on every trajectory of a group whose returns do not differ, or whose mean return is below `low` or above
    `high` (null: no bound)."""

    low: float | None = None
    high: float | None = None

    shrinks_denominator = True

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"DropDecidedGroups has low {self.low} above high {self.high}: swap them")

    def plan(self, rollout: Rollout, credit: Credit) -> Tensor:
        returns, valid = rollout.returns(), rollout.alive.any(-1)
        kept = group_varies(returns, valid, rollout.group_ids)
        mean = group_mean(returns, valid, rollout.group_ids)
        if self.low is not None:
            kept = kept & (mean >= self.low)
        if self.high is not None:
            kept = kept & (mean <= self.high)
        return kept[:, None].expand_as(rollout.mask).float()
