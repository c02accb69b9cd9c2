"""Gradient-preserving clipping: GPPO, arXiv 2508.07629, and its general form CE-GPPO, arXiv 2509.20712.

r > 1 + clip_high, A > 0:  L = -keep_high (1 + clip_high) r / sg(r) A
r < 1 - clip_low,  A < 0:  L = -keep_low (1 - clip_low) r / sg(r) A
otherwise:                 L = -r A;   then the dual clip of PPOClip

What PPO clips keeps a bounded gradient. With keep 1 the value is PPO's, with others it is not: look at the gradient.
AEPO, arXiv 2510.14545, clips so above alone: keep_low 0, whose gradient is PPO's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.algorithm import Stats, Surrogate
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Batch


@dataclass(frozen=True)
class GPPO(Surrogate):
    """PPO's band with gradients that go on outside it, `keep` of them."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    keep_low: float = 0.25
    keep_high: float = 1.0
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        if min(self.clip_low, self.clip_high, self.keep_low, self.keep_high) < 0:
            raise ValueError("GPPO has a negative bound or keep: give 0 or more, 0.2, 0.28, 0.25 and 1 are usual")

    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        ratio, advantages = log_ratio(logprobs, batch.old_logprobs, batch.mask).exp(), batch.advantages
        high = (ratio > 1.0 + self.clip_high) & (advantages > 0)
        low = (ratio < 1.0 - self.clip_low) & (advantages < 0)
        one = ratio / ratio.detach()
        kept = torch.where(high, self.keep_high * (1.0 + self.clip_high) * one, ratio)
        kept = torch.where(low, self.keep_low * (1.0 - self.clip_low) * one, kept)
        loss = -advantages * kept
        if self.dual_clip is not None:
            beyond = (advantages < 0) & (ratio > self.dual_clip)
            loss = torch.where(beyond, -advantages * self.dual_clip, loss)
        return loss, {"clip_frac_low": low.float(), "clip_frac_high": high.float()}
