"""Leave-one-out baseline, RLOO, arXiv 2402.14740, eq. 7.

A_i = R_i - mean_{j != i} R_j = n / (n - 1) (R_i - mean_g R);  0 in a group of one or without spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmrl.algorithm import Advantage, Credit
from mmrl.masked import group_mean, group_sizes, group_varies
from mmrl.types import Rollout


@dataclass(frozen=True)
class LeaveOneOut(Advantage):
    """Each reward minus the mean reward of the others in its group."""

    def __call__(self, rollout: Rollout) -> Credit:
        rewards, valid, groups = rollout.returns(), rollout.alive.any(-1), rollout.group_ids
        size = group_sizes(valid, groups)
        centred = rewards - group_mean(rewards, valid, groups)
        scaled = centred * size / (size - 1).clamp(min=1)
        advantages = torch.where(group_varies(rewards, valid, groups), scaled, 0.0)
        return Credit(torch.where(rollout.mask, advantages[:, None], 0.0))
