"""The likelihood ratio of the current to the acting policy."""

from __future__ import annotations

from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Beyond exp(20) the ratio is only there to be clipped; the bound keeps exp finite in float32."""


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log pi - log pi_old (b, t), 0 where the mask is False, bounded at +-20."""
    difference = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
