"""Log-probs of recorded decisions under a policy, without gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmrl.runtime import acting
from mmrl.types import Rollout


def score(policy: nn.Module, rollout: Rollout, micro_rows: int) -> Tensor:
    """log pi of every decision of `rollout` (B, T) under `policy`, a few rows at a time; 0 outside the mask."""
    scored = torch.zeros_like(rollout.logprobs)
    order = torch.argsort(rollout.group_ids, stable=True)
    with acting(policy):
        for rows in order.split(micro_rows):
            length = last_decision(rollout.mask[rows])
            steps = torch.arange(length, device=rows.device).expand(len(rows), -1)
            found = policy(rollout.transitions.rows(rows), steps).logprobs
            scored[rows, :length] = torch.where(rollout.mask[rows, :length], found, 0.0).to(scored.dtype)
    return scored


def last_decision(mask: Tensor) -> int:
    """Number of leading columns that hold every True of mask (b, T); at least 1."""
    columns = mask.any(0).nonzero()
    return int(columns[-1]) + 1 if len(columns) else 1
