"""Which decisions stand out in a rollout, the same whatever the order of its rows: what selectors and penalties rank
by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mmrl.algorithm import Credit
from mmrl.masked import group_mean, masked_mean
from mmrl.types import Batch, Rollout


@dataclass(frozen=True)
class Decisions:
    """What is known of decisions when some are to be chosen: all of a rollout, or those of one micro-batch."""

    logprobs: Tensor  # (r, t), of the policy as it is
    old_logprobs: Tensor  # (r, t)
    advantages: Tensor  # (r, t)
    mask: Tensor  # (r, t) bool
    steps: Tensor  # (r, t) long: place in the trajectory
    group_ids: Tensor  # (r,)
    rewards: Tensor  # (r,), of whole trajectories
    stats: Mapping[str, Tensor]  # name -> (r, t)

    @classmethod
    def of_rollout(cls, rollout: Rollout, credit: Credit) -> Self:
        """Those of all ranks, under the policy that acted."""
        steps = torch.arange(rollout.mask.shape[1], device=rollout.mask.device).expand(rollout.mask.shape)
        logprobs = torch.where(rollout.mask, rollout.logprobs, 0.0)
        return cls(
            logprobs, logprobs, credit.advantages, rollout.mask, steps, rollout.group_ids, rollout.returns(),
            rollout.stats,
        )  # fmt: skip

    @classmethod
    def of_batch(cls, logprobs: Tensor, batch: Batch) -> Self:
        """Those of one micro-batch, under the policy as it is now."""
        assert batch.rewards is not None
        current = {name: found.detach() for name, found in batch.current.items()}
        return cls(
            torch.where(batch.mask, logprobs.detach(), 0.0), batch.old_logprobs, batch.advantages, batch.mask,
            batch.steps, batch.group_ids, batch.rewards, current,
        )  # fmt: skip


def covariance(seen: Decisions, within_step: bool) -> Tensor:
    """(A - mean A) (log pi - mean log pi) (r, t) in float64, 0 outside the mask: its mean is the covariance. Means are
    over all decisions, or `within_step` over those at the same place of a trajectory."""
    return _centred(seen.advantages, seen, within_step) * _centred(seen.logprobs, seen, within_step)


def _centred(x: Tensor, seen: Decisions, within_step: bool) -> Tensor:
    exact = x.double()
    if within_step:
        flat = group_mean(exact.flatten(), seen.mask.flatten(), seen.steps.flatten())
        return torch.where(seen.mask, exact - flat.view(x.shape), 0.0)
    return torch.where(seen.mask, exact - masked_mean(exact, seen.mask), 0.0)


def count_of(share: float, decisions: int) -> int:
    """How many a share of so many is: rounded down, but one at least, unless the share is 0."""
    return max(1, int(share * decisions)) if share > 0 and decisions else 0


def largest(x: Tensor, among: Tensor, count: int, seen: Decisions) -> Tensor:
    """Which are the `count` largest x of those `among` (r, t) bool."""
    chosen = torch.zeros_like(among)
    places = _in_order(x, among, seen)[:count]
    chosen.view(-1)[places] = True
    return chosen


def at_random(x: Tensor, among: Tensor, count: int, seen: Decisions) -> Tensor:
    """`count` of those `among` (r, t) bool, drawn anew for each rollout. The draw is seeded by the bits of the
    log-probs, whose sum is the same in any order, so that it hangs neither on rows nor on ranks."""
    bits = torch.where(seen.mask, seen.old_logprobs.float(), 0.0).view(torch.int32).long().sum()
    generator = torch.Generator().manual_seed(int(bits) % 2**63)
    places = _in_order(x, among, seen)
    drawn = torch.randperm(len(places), generator=generator)[:count].to(places.device)
    chosen = torch.zeros_like(among)
    chosen.view(-1)[places[drawn]] = True
    return chosen


def _in_order(x: Tensor, among: Tensor, seen: Decisions) -> Tensor:
    """Flat places of those `among`, the largest x first, equal ones by group and step."""
    places = among.flatten().nonzero()[:, 0]
    groups = seen.group_ids[:, None].expand(among.shape)
    for key in (seen.steps, groups, -x):
        places = places[key.flatten()[places].argsort(stable=True)]
    return places


def quantile(x: Tensor, mask: Tensor, q: float) -> Tensor:
    """The q-quantile of x over mask, between two neighbours in proportion; of any number of them, which
    `torch.quantile` is not. Infinite where nothing is masked in."""
    kept = x[mask].double().sort().values
    if not len(kept):
        return x.new_tensor(float("inf"), dtype=torch.float64)
    place = q * (len(kept) - 1)
    below = min(int(place), len(kept) - 1)
    above = min(below + 1, len(kept) - 1)
    return kept[below] + (place - below) * (kept[above] - kept[below])
