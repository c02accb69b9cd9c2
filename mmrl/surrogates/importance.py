"""Importance-weighted policy gradient, without a clip.   L = - A pi / pi_old

What KL-Cov, arXiv 2505.22617, is defined with: there a penalty is the only thing that holds the policy.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.algorithm import Stats, Surrogate
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Batch


@dataclass(frozen=True)
class Importance(Surrogate):
    """The surrogate of which PPO's is the clipped form."""

    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        return -batch.advantages * log_ratio(logprobs, batch.old_logprobs, batch.mask).exp(), {}
