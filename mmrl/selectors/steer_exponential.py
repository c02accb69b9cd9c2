"""STEER's other weights, arXiv 2510.10150: w = exp(-k |Omega|), k = -log(low) / max(max |Omega|, 0.02), at least low.

None is above 1, so that the learning rate stays what it is. |Omega|, scope and denominator: `mmrl.selectors.Steer`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.masked import masked_max
from mmrl.selectors.steer import Steer


@dataclass(frozen=True)
class SteerExponential(Steer):
    """Weights from 1 where entropy would not change to `low` where it would most, along an exponential."""

    high: float = 1.0

    def of_change(self, change: Tensor, mask: Tensor) -> Tensor:
        steepness = -math.log(self.low) / masked_max(change, mask).clamp(min=0.02)
        return torch.where(mask, (-steepness * change).exp().clamp(self.low, self.high), 1.0)
