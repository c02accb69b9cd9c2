"""Dynamic sampling, DAPO, arXiv 2503.14476, section 3.2: groups without spread teach nothing, so others are drawn.

Groups are told by the rewards that the collector gives, before any shaper: an overlong punishment would make nearly
all of them differ. Rounds are bounded; should they not do, the first decided groups fill the step up, so that it is as
large as ever. All ranks draw as often, so that none repeats another's prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmrl.ledger import joined
from mmrl.masked import group_varies, grouped
from mmrl.runtime import Runtime
from mmrl.types import Collector, Policy, Rollout

STRIDE = 2**32
"""Between the group ids of one round and those of the next."""


def collect(collector: Collector, policy: Policy, generator: torch.Generator, rounds: int, runtime: Runtime) -> Rollout:
    """One rollout, or as many as it takes, and at most `rounds` more, for as many groups with spread as one has groups.

    Raises:
        ValueError: rows have no group.
    """
    first = collector.collect(policy, generator)
    if rounds == 0:
        return first
    if not grouped(first.group_ids):
        raise ValueError(f"train.resample is {rounds}, and rows of this rollout have no groups to compare: set it to 0")
    wanted = _groups(first)
    drawn = [first]
    while len(drawn) <= rounds and runtime.any_rank(sum(_varied(part) for part in drawn) < wanted):
        more = collector.collect(policy, generator)
        drawn.append(more.with_(group_ids=more.group_ids + len(drawn) * STRIDE))
    everyone = together(drawn)
    varies = _varies(everyone)
    order = torch.cat([everyone.group_ids[varies].unique(), everyone.group_ids[~varies].unique()])
    return rows(everyone, torch.isin(everyone.group_ids, order[:wanted]).nonzero()[:, 0])


def _varies(rollout: Rollout) -> Tensor:
    """Whether each row's group (B,) has spread; its failed rows too."""
    there = group_varies(rollout.returns(), rollout.alive.any(-1), rollout.group_ids)
    return torch.isin(rollout.group_ids, rollout.group_ids[there])


def _varied(rollout: Rollout) -> int:
    return len(rollout.group_ids[_varies(rollout)].unique())


def _groups(rollout: Rollout) -> int:
    return len(rollout.group_ids.unique())


def rows(rollout: Rollout, index: Tensor) -> Rollout:
    """The trajectories `index` (b,) of a rollout."""
    tensors = {name: value[index] for name, value in vars(rollout).items() if isinstance(value, Tensor)}
    maps = {
        name: {key: tensor[index] for key, tensor in vars(rollout)[name].items()}
        for name in ("stats", "reward_parts", "applicable")
    }
    return rollout.with_(transitions=rollout.transitions.rows(index), **tensors, **maps)


def together(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of one policy as one, rows under each other."""
    if len(parts) == 1:
        return parts[0]
    transitions = [part.transitions for part in parts]
    return joined(list(parts)).with_(transitions=type(transitions[0]).joined(transitions))
