"""Generalised advantage estimation, arXiv 1506.02438, eq. 16.

delta_t = r_t + d_t V_{t+1} - V_t;   A_t = delta_t + d_t l_t A_{t+1};   return_t = A_t + V_t

d_t is the discount of the rollout: gamma between environment steps, 1 inside a chain of denoise steps, 0
at termination. l_t is `lam` at the end of an environment step and 1 inside a chain, where V is V(s)
repeated; the chain's estimate then equals that of the environment step. A truncated trajectory
bootstraps from `last_value` because its last discount is not 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmrl.algorithm import Advantage, Credit
from mmrl.masked import whiten
from mmrl.types import Rollout


@dataclass(frozen=True)
class GAE(Advantage):
    """Lambda-weighted sum of temporal differences; needs a critic's values in the rollout."""

    lam: float = 0.95
    whiten: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam <= 1.0:
            raise ValueError(f"GAE.lam is {self.lam}: give a number from 0 to 1")

    def __call__(self, rollout: Rollout) -> Credit:
        if rollout.values is None or rollout.last_value is None:
            raise ValueError(
                "GAE needs Rollout.values and last_value, and this policy has no critic: choose a group-relative "
                "advantage (mmrl.advantages.GroupRelative), or a policy with a value head"
            )
        values = torch.where(rollout.alive, rollout.values, 0.0)
        rewards = torch.where(rollout.alive, rollout.rewards, 0.0)
        advantages = torch.zeros_like(values)
        ends = torch.ones_like(rollout.mask) if rollout.chain_ends is None else rollout.chain_ends
        next_value, carried = rollout.last_value, torch.zeros_like(rollout.last_value)
        for t in range(values.shape[1] - 1, -1, -1):
            alive, discount = rollout.alive[:, t], rollout.discounts[:, t]
            lam = torch.where(ends[:, t], self.lam, 1.0)
            delta = rewards[:, t] + discount * next_value - values[:, t]
            carried = torch.where(alive, delta + discount * lam * carried, carried)
            next_value = torch.where(alive, values[:, t], next_value)
            advantages[:, t] = carried
        returns = torch.where(rollout.alive, advantages + values, 0.0)
        credit = whiten(advantages, rollout.mask) if self.whiten else advantages
        return Credit(torch.where(rollout.mask, credit, 0.0), returns)
