"""Pairs asked in both orders in one step, as Pairwise-RL (2025) trains its judge: a verdict can then be compared with
those on the same two the other way round (`rewards.swapped.SwapAgreement`).

The pool has to hold both orders of a pair at 2k and 2k + 1, as `vision.data.BothOrders` leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmrl.runtime import Runtime
from vision.data.base import Example
from vision.plans.base import Plan, Rows, Wanted, whole
from vision.policy import VisionPolicy


@dataclass(frozen=True)
class Swapped(Plan):
    """Half as many pairs as there are prompts in a step, each of them in both orders."""

    together = 2

    def check_pool(self, examples: Sequence[Example], prompts: int, weighted: bool, runtime: Runtime) -> None:
        super().check_pool(examples, prompts, weighted, runtime)
        for one, other in zip(examples[::2], examples[1::2], strict=True):
            if one.columns.get("pair", one.id) != other.columns.get("pair"):
                raise ValueError(
                    f"rollout.plan is Swapped, and {one.id} and {other.id} are not one pair in both orders (column "
                    "`pair`): give data.protocol vision.data.BothOrders"
                )

    def draw(self, policy: VisionPolicy, wanted: Wanted) -> Rows:
        return whole(policy, wanted)
