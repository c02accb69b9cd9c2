"""What a policy says about recorded decisions, without gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmrl.algorithm import Algorithm
from mmrl.masked import masked_max
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


def described(rollout: Rollout, policy: Policy, algorithm: Algorithm, micro_rows: int) -> Rollout:
    """`rollout` of `policy` with the statistics of it that the algorithm plans on and its collector did not record:
    that costs a run of it."""
    missing = tuple(statistic for statistic in algorithm.plans_on if statistic.name not in rollout.stats)
    if not missing:
        return rollout
    with reporting(policy, missing):
        _, stats = observe(policy, rollout, micro_rows, missing)
    return rollout.with_(stats={**rollout.stats, **stats})


def referred(rollout: Rollout, reference: Policy | None, algorithm: Algorithm, micro_rows: int) -> Rollout:
    """`rollout` with the log-probs of the reference, where the algorithm wants them."""
    if not algorithm.needs_reference or reference is None:
        return rollout
    return rollout.with_(ref_logprobs=score(reference, rollout, micro_rows))


def score(policy: nn.Module, rollout: Rollout, micro_rows: int) -> Tensor:
    """log pi of every decision of `rollout` (B, T) under `policy`, a few rows at a time; 0 outside the mask."""
    return observe(policy, rollout, micro_rows)[0]


def parity(policy: Policy, rollout: Rollout, rows: int) -> float:
    """Largest difference, per dimension of a decision, between recorded and re-scored log-probs of the first `rows`
    trajectories that this policy drew."""
    own = rollout.fresh().nonzero()[:rows, 0]
    mask = rollout.mask[own]
    if not bool(mask.any()):
        return 0.0
    steps = decisions(policy, mask)
    index = torch.arange(steps.start, steps.stop, device=own.device).expand(len(own), -1)
    with acting(policy):
        found = policy(rollout.transitions.rows(own), index).logprobs
    moved = (found.double() - rollout.logprobs[own, steps.start : steps.stop].double()).abs()
    return float(masked_max(moved, mask[:, steps.start : steps.stop])) / rollout.decision_size


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
