"""Lite PPO, arXiv 2508.08221: centred within each group, scaled by the spread of the whole rollout.

A_i = (R_i - mean_g R) / (std R + eps), with std over all trajectories of all ranks, of the rewards before they are
centred

Of centred rewards the deviation would be another: groups (1, 0), (1, 1) give 0.5 and advantages (1, -1, 0, 0), not
0.41.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmrl.algorithm import Advantage, Credit
from mmrl.masked import group_mean, group_varies, masked_var
from mmrl.types import Rollout


@dataclass(frozen=True)
class BatchScaled(Advantage):
    """A group in which little differs is not blown up, as it is by its own deviation."""

    eps: float = 1e-6

    def __call__(self, rollout: Rollout) -> Credit:
        rewards, valid, groups = rollout.returns(), rollout.alive.any(-1), rollout.group_ids
        centred = rewards - group_mean(rewards, valid, groups)
        scaled = (centred.double() / (masked_var(rewards.double(), valid).sqrt() + self.eps)).to(rewards.dtype)
        advantages = torch.where(group_varies(rewards, valid, groups), scaled, 0.0)
        return Credit(torch.where(rollout.mask, advantages[:, None], 0.0))
