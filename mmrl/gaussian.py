"""The diagonal Gaussian: log-density, entropy and KL of decisions that are vectors.

log N(x; m, s) = sum_d [ -(x_d - m_d)^2 / (2 s_d^2) - log s_d - log(2 pi) / 2 ]

Whether dimensions are summed (the density) or averaged sets the scale of every ratio and clip range, so it is
an argument and has no default.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["sum", "mean"]


def log_density(x: Tensor, mean: Tensor, std: Tensor, reduction: Reduction) -> Tensor:
    """log N(x; mean, std) (b, t) of x (b, t, ...), over all dimensions after the second."""
    z = (x - mean) / std
    return _reduce(-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi), x, reduction)


def entropy(std: Tensor, reduction: Reduction) -> Tensor:
    """Entropy (b, t) of a Gaussian with standard deviations std (b, t, ...)."""
    return _reduce(std.log() + 0.5 * math.log(2 * math.pi * math.e), std, reduction)


def kl(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor, reduction: Reduction) -> Tensor:
    """KL (b, t) from N(mean, std) to N(other_mean, other_std), all (b, t, ...)."""
    ratio = std / other_std
    distance = (mean - other_mean) / other_std
    return _reduce(0.5 * (ratio.square() + distance.square() - 1.0) - ratio.log(), mean, reduction)


def reduced(per_dimension: Tensor, reduction: Reduction) -> Tensor:
    """A number of each dimension (b, t, ...) as one of the whole decision (b, t)."""
    return _reduce(per_dimension, per_dimension, reduction)


def _reduce(per_dimension: Tensor, like: Tensor, reduction: Reduction) -> Tensor:
    flat = torch.broadcast_to(per_dimension, like.shape).flatten(2)
    return flat.sum(-1) if reduction == "sum" else flat.mean(-1)
