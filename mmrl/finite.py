"""What a rollout must be: of one shape, of masks within one another, and finite wherever it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mmrl.types import Rollout

PER_DECISION = ["mask", "alive", "rewards", "discounts", "values", "ref_logprobs", "behaviour_logprobs", "chain_ends"]
"""Fields of a Rollout that are (B, T) as its log-probs are."""
PER_ROW = ["group_ids", "prompt_ids", "replayed", "staleness", "last_value"]
KINDS = {
    "mask": torch.bool, "alive": torch.bool, "chain_ends": torch.bool, "replayed": torch.bool,
    "group_ids": torch.long, "prompt_ids": torch.long, "staleness": torch.long,
}  # fmt: skip


def check_finite(name: str, tensor: Tensor | None, where: Tensor) -> None:
    """Raises:
    ValueError: a number of Rollout.`name` (B, T) is not finite where it is read.
    """
    if tensor is None:
        return
    bad = ~torch.isfinite(tensor) & where
    if bool(bad.any()):
        row, step = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"Rollout.{name}[{row}, {step}] is {float(tensor[row, step])}: it must be finite wherever "
            f"it is read; find what produced it, or mark the trajectory as failed (alive False)"
        )


def check_kinds(rollout: Rollout) -> None:
    """Raises:
    ValueError: a mask is not of bool, since `~1` is -2 and would count as True; or an id is no whole number.
    """
    for name, kind in KINDS.items():
        tensor = vars(rollout)[name]
        if tensor is not None and tensor.dtype != kind:
            raise ValueError(f"Rollout.{name} is of {tensor.dtype}: give {kind}")


def check_named(rollout: Rollout) -> None:
    """Raises:
    ValueError: a statistic or a part of the reward has another shape, or is not finite where it is read.
    """
    shape = rollout.logprobs.shape
    for name, tensor in rollout.stats.items():
        if tensor.shape != shape:
            raise ValueError(f"Rollout.stats[{name!r}] has shape {tuple(tensor.shape)}: give {tuple(shape)}")
        check_finite(f"stats[{name!r}]", tensor, rollout.mask)
    for name, tensor in rollout.reward_parts.items():
        where = rollout.applicable[name]
        if tensor.shape != shape[:1] or where.shape != shape[:1] or where.dtype != torch.bool:
            raise ValueError(
                f"Rollout.reward_parts[{name!r}] and applicable[{name!r}] are ({shape[0]},), and the latter bool"
            )
        check_finite(f"reward_parts[{name!r}]", tensor[:, None], (where & rollout.alive.any(-1))[:, None])


def check_rollout(rollout: Rollout) -> None:
    """Raises:
    ValueError: what the docstring of `Rollout` says.
    """
    shape = rollout.logprobs.shape
    if len(shape) != 2:
        raise ValueError(f"Rollout.logprobs has shape {tuple(shape)}: give (B, T), one number a decision")
    check_kinds(rollout)
    for name in PER_DECISION:
        tensor = vars(rollout)[name]
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"Rollout.{name} has shape {tuple(tensor.shape)}, logprobs has {tuple(shape)}: "
                "every per-decision field is (B, T)"
            )
    for name in PER_ROW:
        tensor = vars(rollout)[name]
        if tensor is not None and tensor.ndim != 1:
            raise ValueError(f"Rollout.{name} has shape {tuple(tensor.shape)}: every per-trajectory field is (B,)")
    by_row = (rollout.group_ids, rollout.prompt_ids, rollout.replayed, rollout.staleness, rollout.last_value)
    sizes = [len(rollout.transitions), *(len(numbers) for numbers in by_row if numbers is not None)]
    if set(sizes) != {shape[0]}:
        told = "transitions, group_ids, and prompt_ids, replayed, staleness and last_value (if any)"
        raise ValueError(f"Rollout has {shape[0]} rows of log-probs and {sizes} {told}: give one a trajectory")
    if bool((rollout.mask & ~rollout.alive).any()):
        raise ValueError("Rollout.mask is True where alive is False: only living decisions are trained")
    if bool((rollout.alive[:, 1:] & ~rollout.alive[:, :-1]).any()):
        raise ValueError("Rollout.alive must be True up to the end of a trajectory and False after it")
    if (rollout.values is None) != (rollout.last_value is None):
        raise ValueError("Rollout.values and Rollout.last_value come together: give both or neither")
    if rollout.reward_parts.keys() != rollout.applicable.keys():
        raise ValueError(
            f"Rollout.reward_parts has {sorted(rollout.reward_parts)} and applicable has {sorted(rollout.applicable)}: "
            "each part says where it applies"
        )
    check_finite("logprobs", rollout.logprobs, rollout.mask)
    check_finite("rewards", rollout.rewards, rollout.alive)
    check_finite("discounts", rollout.discounts, rollout.alive)
    check_finite("values", rollout.values, rollout.alive)
    if rollout.last_value is not None:
        check_finite("last_value", rollout.last_value[:, None], rollout.alive.any(-1, keepdim=True))
    check_finite("ref_logprobs", rollout.ref_logprobs, rollout.mask)
    check_finite("behaviour_logprobs", rollout.behaviour_logprobs, rollout.mask)
    check_named(rollout)
