"""Soft overlong punishment, DAPO, arXiv 2503.14476, eq. 13, with L the number of decisions of a trajectory.

r += coef 0 if L <= limit - buffer;   coef ((limit - buffer) - L) / buffer up to limit;   -coef beyond it
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from mmrl.algorithm import Shaper
from mmrl.types import Rollout


@dataclass(frozen=True)
class Overlong(Shaper):
    """A cost on the last decision of a trajectory that comes near its limit. Filter groups before it, or by their
    correctness: with it hardly a group has rewards that are all the same."""

    limit: int = 20480
    buffer: int = 4096
    coef: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.limit:
            raise ValueError(f"Overlong has limit {self.limit} and buffer {self.buffer}: give 0 < buffer <= limit")

    def __call__(self, rollout: Rollout) -> Rollout:
        length = rollout.alive.sum(-1, keepdim=True)
        cost = ((self.limit - self.buffer - length) / self.buffer).clamp(-1.0, 0.0)
        last = rollout.alive & ~pad(rollout.alive[:, 1:], (0, 1))
        return rollout.with_(rewards=rollout.rewards + torch.where(last, self.coef * cost, 0.0))
