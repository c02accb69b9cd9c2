"""The only reductions of the core: whatever stands where the mask is False, NaN included, has no say."""

from __future__ import annotations

import torch
from torch import Tensor

NOISE = 1e-6
"""Differences below this share of 1 + |x| are rounding noise, not spread."""


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of x over mask."""
    kept = torch.where(mask, x, 0.0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of x over mask; 0 where nothing is masked in."""
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance of x over mask; 0 with fewer than two entries."""
    centred = x - masked_mean(x, mask)
    return masked_sum(centred.square(), mask) / (mask.sum() - 1).clamp(min=1)


def masked_max(x: Tensor, mask: Tensor) -> Tensor:
    """Largest x over mask; -inf where nothing is masked in."""
    return torch.where(mask, x, float("-inf")).amax() if x.numel() else x.new_tensor(float("-inf"))


def whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """x with mean 0 and unit variance over mask, 0 elsewhere and where x does not vary: added up in float64,
    because rounding noise divided by a standard deviation near 0 would look like a signal."""
    exact = x.double()
    mean, var = masked_mean(exact, mask), masked_var(exact, mask)
    still = var.sqrt() <= NOISE * (1.0 + mean.abs())  # False for NaN, which must not be hidden
    return torch.where(mask & ~still, (exact - mean) * torch.rsqrt(var + eps), 0.0).to(x.dtype)


def grouped(group_ids: Tensor) -> bool:
    """Whether a row has others of its group beside it; where there is a critic rows may be alone. group_ids (B,)."""
    return len(torch.unique(group_ids)) < len(group_ids)


def group_sizes(valid: Tensor, group_ids: Tensor) -> Tensor:
    """Number of valid members of each row's group. valid (B,) bool, group_ids (B,) -> (B,)."""
    _, index = torch.unique(group_ids, return_inverse=True)
    totals = torch.zeros(int(index.max()) + 1 if len(index) else 0, device=valid.device)
    return totals.index_add(0, index, valid.to(totals.dtype))[index]


def group_sum(x: Tensor, valid: Tensor, group_ids: Tensor) -> Tensor:
    """Sum of x (B,) over the valid members of each row's group -> (B,), added in float64."""
    _, index = torch.unique(group_ids, return_inverse=True)
    groups = int(index.max()) + 1 if len(index) else 0
    kept = torch.where(valid, x, 0.0).double()
    totals = torch.zeros(groups, dtype=torch.float64, device=x.device).index_add(0, index, kept)
    return totals[index].to(x.dtype)


def group_mean(x: Tensor, valid: Tensor, group_ids: Tensor) -> Tensor:
    """Mean of x (B,) over the valid members of each row's group -> (B,)."""
    return (group_sum(x.double(), valid, group_ids) / group_sizes(valid, group_ids).clamp(min=1)).to(x.dtype)


def group_std(x: Tensor, valid: Tensor, group_ids: Tensor) -> Tensor:
    """Unbiased standard deviation of x (B,) in each row's group -> (B,); 0 in a group of one."""
    centred = x - group_mean(x, valid, group_ids)
    count = group_sizes(valid, group_ids)
    return (group_sum(centred.square(), valid, group_ids) / (count - 1).clamp(min=1)).sqrt()


def group_spread(x: Tensor, valid: Tensor, group_ids: Tensor) -> Tensor:
    """Largest minus smallest valid x in each row's group (B,); 0 in a group of one or none."""
    _, index = torch.unique(group_ids, return_inverse=True)
    groups = int(index.max()) + 1 if len(index) else 0
    low = torch.full((groups,), float("inf"), dtype=x.dtype, device=x.device)
    high = -low
    kept_low = torch.where(valid, x, float("inf"))
    kept_high = torch.where(valid, x, float("-inf"))
    low = low.scatter_reduce(0, index, kept_low, "amin")
    high = high.scatter_reduce(0, index, kept_high, "amax")
    return (high - low).clamp(min=0.0).nan_to_num(posinf=0.0, neginf=0.0)[index]


def group_varies(x: Tensor, valid: Tensor, group_ids: Tensor) -> Tensor:
    """Whether x (B,) differs by more than rounding noise among the valid members of each row's group (B,) bool."""
    return valid & (group_spread(x, valid, group_ids) > NOISE * (1.0 + x.abs()))
