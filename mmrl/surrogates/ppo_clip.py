"""PPO's clipped surrogate, arXiv 1707.06347, eq. 7, with two bounds (Clip-Higher, DAPO, arXiv 2503.14476)
and the dual clip for negative advantages (arXiv 1912.09729, eq. 5).

r = pi / pi_old
L = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high));   where A < 0 and dual_clip c:  L = min(L, -A c)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.algorithm import Stats, Surrogate
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Batch


@dataclass(frozen=True)
class PPOClip(Surrogate):
    """Stops the gradient of a decision once its ratio has left the band in the direction of its advantage."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        if self.clip_low < 0 or self.clip_high < 0:
            raise ValueError(f"PPOClip bounds are {self.clip_low}, {self.clip_high}: give 0 or more, 0.2 is usual")
        if self.dual_clip is not None and self.dual_clip <= 1.0 + self.clip_high:
            raise ValueError(f"PPOClip.dual_clip is {self.dual_clip}: give more than 1 + clip_high, 3 is usual")

    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        ratio = log_ratio(logprobs, batch.old_logprobs, batch.mask).exp()
        clipped = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        advantages = batch.advantages
        loss = torch.maximum(-advantages * ratio, -advantages * clipped)
        if self.dual_clip is not None:
            loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * self.dual_clip), loss)
        return loss, {
            "clip_frac_low": ((ratio < 1.0 - self.clip_low) & (advantages < 0)).float(),
            "clip_frac_high": ((ratio > 1.0 + self.clip_high) & (advantages > 0)).float(),
        }
