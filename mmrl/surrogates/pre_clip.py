"""Pre-CLIP of StableReinforce (R1-Reward), arXiv 2505.02835: log-ratios are bounded before they are exponentiated.

log r <- clip(log pi - log pi_old, -log band, log band);   then PPO's clipped surrogate

Outside the band there is no gradient, for A < 0 and a huge ratio neither: there it acts as an extreme dual clip. A
band of 1000 is for tokens; a log-prob that is a sum over many dimensions needs a wider one, or a mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.algorithm import Stats
from mmrl.surrogates.ppo_clip import PPOClip
from mmrl.types import Batch


@dataclass(frozen=True)
class PreClip(PPOClip):
    """PPO that one absurd ratio cannot blow up."""

    band: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.band <= 1 + self.clip_high:
            raise ValueError(f"PreClip.band is {self.band}: give more than 1 + clip_high, 1000 is usual")

    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        low, high = (batch.old_logprobs + side * math.log(self.band) for side in (-1, 1))
        return super().__call__(torch.minimum(torch.maximum(logprobs, low), high), batch)
