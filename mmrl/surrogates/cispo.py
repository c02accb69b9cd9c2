"""Clipped importance-sampling policy optimisation, CISPO, MiniMax-M1, arXiv 2506.13585, eq. 4.

L = - sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi

Clipped decisions keep a gradient. `clip_high` is relative to 1 (verl), not an absolute cap (TRL). The
value of this loss means nothing; do not plot it or stop on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.algorithm import Stats, Surrogate
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Batch


@dataclass(frozen=True)
class CISPO(Surrogate):
    """REINFORCE weighted by a clipped, detached ratio. MiniMax clips above only: clip_low=1."""

    clip_low: float = 1.0
    clip_high: float = 0.28

    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        ratio = log_ratio(logprobs, batch.old_logprobs, batch.mask).detach().exp()
        weight = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        return -weight * batch.advantages * logprobs, {
            "clip_frac_low": (ratio < 1.0 - self.clip_low).float(),
            "clip_frac_high": (ratio > 1.0 + self.clip_high).float(),
        }
