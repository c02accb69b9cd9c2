"""A value as a classification: HL-Gauss, "Stop Regressing", arXiv 2403.03950, section 3.1.

target p_k = share of N(G, sigma^2), cut to [low, high], that lies in bin k;   V = sum_k softmax(logits)_k centre_k
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bins:
    """`count` bins of one width from `low` to `high`, which should hold every return."""

    low: float
    high: float
    count: int = 51

    def __post_init__(self) -> None:
        if self.low >= self.high or self.count < 2:
            raise ValueError(
                f"policy.critic.bins has low {self.low}, high {self.high} and count {self.count}: give low < high, the "
                "range of returns, and 2 or more"
            )

    @property
    def width(self) -> float:
        """Of one bin."""
        return (self.high - self.low) / self.count

    def edges(self, like: Tensor) -> Tensor:
        """(count + 1,), of the kind of `like`."""
        return torch.linspace(self.low, self.high, self.count + 1, device=like.device, dtype=like.dtype)

    def values(self, logits: Tensor) -> Tensor:
        """Expected value (...) of logits (..., count)."""
        edges = self.edges(logits)
        return (logits.softmax(-1) * (edges[1:] + edges[:-1]) / 2).sum(-1)

    def targets(self, returns: Tensor, sigma: float) -> Tensor:
        """Probabilities (..., count) of returns (...), smoothed by `sigma`; outside the range they count as its end."""
        distance = (self.edges(returns) - returns.clamp(self.low, self.high)[..., None]) / (sigma * math.sqrt(2))
        below = distance.erf()
        found: Tensor = (below[..., 1:] - below[..., :-1]) / (below[..., -1:] - below[..., :1])
        return found
