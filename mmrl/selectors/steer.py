"""STEER, arXiv 2510.10150: decisions that would change the entropy most weigh least.

Omega = A r s;   tokens: s = (1 - p) (log p + H);   Gaussians of learned spread: s = sum_d (z_d^2 - 1), exact
w = high - (|Omega| - min) (high - low) / (max - min)

The paper's name for s suggests p (1 - p)^2; its code computes A / pi_old p (1 - p) (log p + H), which is this. Weights
of about `high` on most decisions raise the learning rate a little. The denominator keeps everything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.masked import masked_max
from mmrl.ranking import Decisions
from mmrl.selectors.entropy_slope import EntropySlope
from mmrl.selectors.ranking import Ranking
from mmrl.statistics import Statistic


@dataclass(frozen=True)
class Steer(Ranking):
    """Weights from `high` where entropy would not change to `low` where it would most, in a line."""

    low: float = 0.8
    high: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low <= self.high:
            raise ValueError(f"{type(self).__name__} has low {self.low} and high {self.high}: give 0 < low <= high")

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return (EntropySlope(),)

    def weights(self, seen: Decisions) -> Tensor:
        ratio = (seen.logprobs - seen.old_logprobs).exp()
        change = (seen.advantages * ratio * seen.stats[EntropySlope.name]).abs().nan_to_num(0.0, 0.0, 0.0)
        return self.of_change(change, seen.mask)

    def of_change(self, change: Tensor, mask: Tensor) -> Tensor:
        """Weights (r, t) of |Omega| (r, t)."""
        most, least = masked_max(change, mask), -masked_max(-change, mask)
        spread = (most - least).clamp(min=1e-12)
        return torch.where(mask, self.high - (change - least) * (self.high - self.low) / spread, 1.0)
