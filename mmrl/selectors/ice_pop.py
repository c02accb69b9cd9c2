"""IcePop (Ling team, 2025, with Ring-1T, arXiv 2510.18855): decisions on which trainer and sampler differ too much
teach nothing.

w = k 1[low <= k <= high], k = pi_old / mu. The denominator keeps everything; mu as in
`mmrl.selectors.TruncatedImportance`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.algorithm import Credit, Selector
from mmrl.selectors.truncated_importance import sampler_ratio
from mmrl.types import Rollout


@dataclass(frozen=True)
class IcePop(Selector):
    """Importance weights inside a band, 0 outside."""

    reads_sampler = True
    low: float = 0.5
    high: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 <= self.high:
            raise ValueError(f"IcePop has low {self.low} and high {self.high}: give 0 <= low <= 1 <= high")

    def plan(self, rollout: Rollout, credit: Credit) -> Tensor:
        ratio = sampler_ratio(self, rollout)
        return torch.where((ratio >= self.low) & (ratio <= self.high), ratio, 0.0)
