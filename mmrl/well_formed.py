"""Whether a rollout is what it says: shapes, masks within what exists, and finite numbers where they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmrl.finite import check_finite

if TYPE_CHECKING:
    from mmrl.types import Rollout

PER_DECISION = ["mask", "alive", "rewards", "discounts", "values", "ref_logprobs", "behaviour_logprobs", "chain_ends"]
"""Fields of a Rollout that are (B, T) as its log-probs are."""


def check_rollout(rollout: Rollout) -> None:
    """Refuse a rollout that is not well formed.

    Raises:
        ValueError: a shape that is not (B, T), a mask outside alive, alive that is not a prefix of the row, or a number
            that is not finite where it is read.
    """
    shape = rollout.logprobs.shape
    for name in PER_DECISION:
        tensor = vars(rollout)[name]
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"Rollout.{name} has shape {tuple(tensor.shape)}, logprobs has {tuple(shape)}: "
                "every per-decision field is (B, T)"
            )
    by_row = (rollout.group_ids, rollout.prompt_ids, rollout.replayed)
    sizes = [len(rollout.transitions), *(len(numbers) for numbers in by_row if numbers is not None)]
    if set(sizes) != {shape[0]}:
        told = "transitions, group_ids, and prompt_ids and replayed (if any)"
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
