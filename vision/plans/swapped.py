"""Pairs asked in both orders in one step, as Pairwise-RL (2025) trains its judge: a verdict can then be compared with
those on the same two the other way round (`rewards.swapped.SwapAgreement`).

The pool has to hold both orders of a pair at 2k and 2k + 1, as `vision.data.BothOrders` leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vision.plans.base import Plan, Rows, Wanted, whole
from vision.policy import VisionPolicy


@dataclass(frozen=True)
class Swapped(Plan):
    """Half as many pairs as there are prompts in a step, each of them in both orders."""

    def take(self, numbers: Sequence[int], pool: int) -> list[int]:
        if len(numbers) % 2:
            raise ValueError(f"rollout.plan is Swapped and a process has {len(numbers)} prompts: give an even number")
        if pool % 2:
            raise ValueError(
                f"rollout.plan is Swapped and there are {pool} examples, so that one has no other order: give "
                "data.protocol vision.data.BothOrders"
            )
        return [number for one in numbers[: len(numbers) // 2] for number in (one, one ^ 1)]

    def draw(self, policy: VisionPolicy, wanted: Wanted) -> Rows:
        return whole(policy, wanted)
