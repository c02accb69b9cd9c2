"""Log-probs of recorded decisions under a policy, without gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmrl.runtime import acting
from mmrl.types import Rollout


def score(policy: nn.Module, rollout: Rollout, micro_rows: int) -> Tensor:
    """log pi of every decision of `rollout` (B, T) under `policy`, a few rows at a time; 0 outside the mask."""
    scored = torch.zeros_like(rollout.logprobs)
    order = torch.argsort(rollout.group_ids, stable=True)
    with acting(policy):
        for rows in order.split(micro_rows):
            span = decisions(policy, rollout.mask[rows])
            steps = torch.arange(span.start, span.stop, device=rows.device).expand(len(rows), -1)
            found = policy(rollout.transitions.rows(rows), steps).logprobs
            mask = rollout.mask[rows, span.start : span.stop]
            scored[rows, span.start : span.stop] = torch.where(mask, found, 0.0).to(scored.dtype)
    return scored


def decisions(policy: nn.Module, mask: Tensor) -> range:
    """The columns of mask (b, T) that must be scored: from the first to the last True, at least one column; from the
    very first one where the policy cannot score a window without what came before."""
    columns = mask.any(0).nonzero()
    if not len(columns):
        return range(1)
    inner = policy.module if isinstance(policy, DistributedDataParallel) else policy
    return range(int(columns[0]) if inner.windowable else 0, int(columns[-1]) + 1)
