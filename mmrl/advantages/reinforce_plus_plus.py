"""REINFORCE++ and its baseline form, arXiv 2501.03262.

A_{i,t} = whiten( sum_{s >= t} gamma^{s-t} r_{i,s} ), over all decisions of the batch; the baseline form
first subtracts the group mean of R. Per-token KL belongs in the reward (`mmrl.shapers.KLInReward`).
Decisions outside the mask (tool or feedback tokens) pass the return on; they do not cut it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.algorithm import Advantage, Credit
from mmrl.masked import group_mean, group_varies, whiten
from mmrl.types import Rollout


def returns_to_go(rewards: Tensor, discounts: Tensor, alive: Tensor) -> Tensor:
    """G_t = r_t + d_t G_{t+1} over living decisions. All (B, T) -> (B, T)."""
    result = torch.zeros_like(rewards)
    carried = rewards.new_zeros(rewards.shape[0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        carried = torch.where(alive[:, t], rewards[:, t] + discounts[:, t] * carried, 0.0)
        result[:, t] = carried
    return result


@dataclass(frozen=True)
class ReinforcePlusPlus(Advantage):
    """Returns to go, whitened over the whole batch."""

    def __call__(self, rollout: Rollout) -> Credit:
        returns = returns_to_go(rollout.rewards, rollout.discounts, rollout.alive)
        return Credit(whiten(returns, rollout.mask))


@dataclass(frozen=True)
class ReinforcePlusPlusBaseline(Advantage):
    """Rewards minus their group's mean, then whitened over the whole batch."""

    def __call__(self, rollout: Rollout) -> Credit:
        rewards, valid = rollout.returns(), rollout.alive.any(-1)
        centred = rewards - group_mean(rewards, valid, rollout.group_ids)
        centred = torch.where(group_varies(rewards, valid, rollout.group_ids), centred, 0.0)
        return Credit(whiten(centred[:, None].expand_as(rollout.mask), rollout.mask))
