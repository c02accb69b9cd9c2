"""Group-relative advantage.

A_i = (R_i - mean_g R) / (std_g R + eps)     GRPO, DeepSeekMath, arXiv 2402.03300, section 4.1.2
A_i = R_i - mean_g R                         Dr.GRPO, arXiv 2503.20783 (normalise=False)

The standard deviation is the unbiased one, as in TRL and verl: rewards (1, 0, 0, 0) give (1.5, -.5, -.5,
-.5). A group of one, and a group without spread, give exactly 0 (rounding noise is not divided by eps).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmrl.algorithm import Advantage, Credit
from mmrl.masked import group_mean, group_std, group_varies
from mmrl.types import Rollout


@dataclass(frozen=True)
class GroupRelative(Advantage):
    """Rewards centred, and by default scaled, within each prompt's group."""

    normalise: bool = True
    eps: float = 1e-4

    def __post_init__(self) -> None:
        if self.eps < 0:
            raise ValueError(f"advantage.eps is {self.eps}: give 0 or more, 1e-4 is usual")

    def __call__(self, rollout: Rollout) -> Credit:
        rewards, valid, groups = rollout.returns(), rollout.alive.any(-1), rollout.group_ids
        centred = rewards - group_mean(rewards, valid, groups)
        if self.normalise:
            centred = centred / (group_std(rewards, valid, groups) + self.eps)
        advantages = torch.where(group_varies(rewards, valid, groups), centred, 0.0)
        return Credit(torch.where(rollout.mask, advantages[:, None], 0.0))
