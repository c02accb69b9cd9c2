"""What a rollout must be: of one shape, of masks within one another, and finite wherever it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mmrl.types import Rollout

PER_DECISION = ["mask", "alive", "rewards", "discounts", "values", "ref_logprobs", "behaviour_logprobs", "chain_ends"]
"""Fields of a Rollout that are (B, T) as its log-probs are."""


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


def check_rollout(rollout: Rollout) -> None:
    """Raises:
    ValueError: what the docstring of `Rollout` says.
    """
    shape = rollout.logprobs.shape
    for name in PER_DECISION:
        tensor = vars(rollout)[name]
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"Rollout.{name} has shape {tuple(tensor.shape)}, logprobs has {tuple(shape)}: "
                "every per-decision field is (B, T)"
            )
    by_row = (rollout.group_ids, rollout.prompt_ids, rollout.replayed, rollout.staleness)
    sizes = [len(rollout.transitions), *(len(numbers) for numbers in by_row if numbers is not None)]
    if set(sizes) != {shape[0]}:
        told = "transitions, group_ids, and prompt_ids, replayed and staleness (if any)"
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
