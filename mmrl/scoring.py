"""What a policy says about recorded decisions, without gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmrl.algorithm import Algorithm
from mmrl.runtime import acting
from mmrl.statistics import Statistic
from mmrl.types import Policy, Rollout


@contextmanager
def reporting(policy: Policy, statistics: tuple[Statistic, ...]) -> Iterator[None]:
    """Inside, `policy` reports these statistics and no others."""
    before = policy.report
    policy.report = statistics
    try:
        yield
    finally:
        policy.report = before


def completed(
    rollout: Rollout, policy: Policy, reference: Policy | None, algorithm: Algorithm, micro_rows: int
) -> Rollout:
    """`rollout` with what the algorithm wants to know of it and its collector did not record: log-probs of the
    reference, and statistics of the acting policy, which cost a run of it."""
    if algorithm.needs_reference and reference is not None:
        rollout = rollout.with_(ref_logprobs=score(reference, rollout, micro_rows))
    missing = tuple(statistic for statistic in algorithm.plans_on if statistic.name not in rollout.stats)
    if missing:
        with reporting(policy, missing):
            _, stats = observe(policy, rollout, micro_rows, missing)
        rollout = rollout.with_(stats={**rollout.stats, **stats})
    return rollout


def score(policy: nn.Module, rollout: Rollout, micro_rows: int) -> Tensor:
    """log pi of every decision of `rollout` (B, T) under `policy`, a few rows at a time; 0 outside the mask."""
    return observe(policy, rollout, micro_rows)[0]


def observe(
    policy: nn.Module, rollout: Rollout, micro_rows: int, statistics: Sequence[Statistic] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """That, and statistics (B, T) which `policy` has been asked to report, by name."""
    scored = torch.zeros_like(rollout.logprobs)
    stats = {statistic.name: torch.zeros_like(scored) for statistic in statistics}
    order = torch.argsort(rollout.group_ids, stable=True)
    with acting(policy):
        for rows in order.split(micro_rows):
            span = decisions(policy, rollout.mask[rows])
            steps = torch.arange(span.start, span.stop, device=rows.device).expand(len(rows), -1)
            found = policy(rollout.transitions.rows(rows), steps)
            mask = rollout.mask[rows, span.start : span.stop]
            scored[rows, span.start : span.stop] = torch.where(mask, found.logprobs, 0.0).to(scored.dtype)
            for name, numbers in stats.items():
                numbers[rows, span.start : span.stop] = torch.where(mask, found.stats[name], 0.0).to(scored.dtype)
    return scored, stats


def decisions(policy: nn.Module, mask: Tensor) -> range:
    """The columns of mask (b, T) that must be scored: from the first to the last True, at least one column; from the
    very first one where the policy cannot score a window without what came before."""
    columns = mask.any(0).nonzero()
    if not len(columns):
        return range(1)
    inner = policy.module if isinstance(policy, DistributedDataParallel) else policy
    return range(int(columns[0]) if inner.windowable else 0, int(columns[-1]) + 1)
