"""AIPO of LlamaRL, arXiv 2505.24034: asynchronous, importance-weighted, clipped on one side.

L = - sg(min(pi / mu, cap)) A log pi, with mu the policy that drew, however long ago

Where old log-probs were computed again (`train.update.rescore`, reduced precision) mu is the sampler's own, else they
are mu's; without a ratio to the old policy there is nothing else to clip. Its value means nothing, as CISPO's.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.algorithm import Stats, Surrogate
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Batch


@dataclass(frozen=True)
class AIPO(Surrogate):
    """REINFORCE, corrected for a policy that lags behind. The paper has caps from 2 to 10."""

    reads_sampler = True

    cap: float = 4.0

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise ValueError(f"AIPO.cap is {self.cap}: give 1 or more, 2 to 10 are usual")

    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        drawn_by = batch.old_logprobs if batch.behaviour_logprobs is None else batch.behaviour_logprobs
        ratio = log_ratio(logprobs, drawn_by, batch.mask).detach().exp()
        return -ratio.clamp(max=self.cap) * batch.advantages * logprobs, {"clip_frac_high": (ratio > self.cap).float()}
