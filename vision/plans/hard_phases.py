"""DRIVE, arXiv 2511.06307, its second stage (Pre-GRPO): a set of hard prompts with many answers each, which is narrowed
to the hardest of them after each phase.

phase 0, 1, ...   every prompt that is left is asked once, in a new order; the last step is filled up from its first
pass rate         share of a prompt's answers in a phase with a reward of at least `passed`
after a phase     `focus` says which are left (`mmrl.curriculum.HardFocus`), `phases` times; then these stay

The first stage is a run of its own, of all prompts with few answers and a short limit: it needs no plan, and the second
begins with `mmrl train vision/drive_hard --from` its folder. Rates are of the answers that are trained, never of
held-out ones. Shares and phases are ours: the paper's were not to be had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mmrl.curriculum import HardFocus
from mmrl.types import Rollout
from vision.plans.base import Plan, Rows, Wanted, whole
from vision.policy import VisionPolicy

if TYPE_CHECKING:
    from vision.collector import AnswerCollector


@dataclass
class _Memory:
    left: list[int] = field(default_factory=list)
    """In the order in which they are asked in this phase; empty before the first."""
    place: int = 0
    """How many of them have been asked."""
    phase: int = 0
    passed: dict[int, list[float]] = field(default_factory=dict)
    """Of each prompt asked in this phase: answers that passed, and all."""


@dataclass(frozen=True)
class HardPhases(Plan):
    """Groups as ever, of prompts that `focus` leaves. `seed` is of their order."""

    focus: HardFocus = HardFocus()
    phases: int = 2
    passed: float = 1.0
    seed: int = 0
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False, compare=False)
    remembers = True
    chooses = True

    def __post_init__(self) -> None:
        if self.phases < 1:
            raise ValueError(f"rollout.plan has phases {self.phases}: give 1 or more")

    def take(self, numbers: Sequence[int], pool: int) -> list[int]:
        memory, count = self._memory, len(numbers)
        if memory.place >= len(memory.left):
            self._begin(memory.left or range(pool))
        taken = [memory.left[place % len(memory.left)] for place in range(memory.place, memory.place + count)]
        memory.place += count
        return taken

    def _begin(self, prompts: Sequence[int]) -> None:
        """Ask these in a new order."""
        chance = torch.Generator().manual_seed(self.seed + self._memory.phase)
        ordered = sorted(prompts)
        self._memory.left = [ordered[place] for place in torch.randperm(len(ordered), generator=chance).tolist()]
        self._memory.place, self._memory.passed = 0, {}

    def draw(self, policy: VisionPolicy, wanted: Wanted) -> Rows:
        return whole(policy, wanted)

    def then(
        self, policy: VisionPolicy, rollout: Rollout, answers: AnswerCollector, generator: torch.Generator
    ) -> Rollout:
        assert rollout.prompt_ids is not None
        memory, there = self._memory, rollout.alive.any(-1)
        passed = (rollout.returns() >= self.passed)[there].tolist()
        for number, right in zip(rollout.prompt_ids[there].tolist(), passed, strict=True):
            counts = memory.passed.setdefault(number, [0.0, 0.0])
            counts[0] += right
            counts[1] += 1
        if memory.place >= len(memory.left):
            self._narrow()
        return rollout

    def _narrow(self) -> None:
        """End a phase. Prompts to which no reward applied have no rate and go; where none would be left, all stay."""
        memory = self._memory
        memory.phase += 1
        if memory.phase > self.phases:
            return
        rates = {str(n): memory.passed[n][0] / memory.passed[n][1] for n in sorted(memory.passed)}
        with suppress(ValueError):  # none would be left
            memory.left = [int(name) for name in self.focus.kept(rates, memory.phase - 1)]
        memory.place = len(memory.left)

    def measured(self) -> Mapping[str, float]:
        return {"phases/number": float(self._memory.phase), "phases/prompts": float(len(self._memory.left))}

    def state_dict(self) -> dict[str, object]:
        passed = {str(number): counts for number, counts in self._memory.passed.items()}
        return {**vars(self._memory), "passed": passed, "left": list(self._memory.left)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        found: Mapping[str, Any] = state
        memory = self._memory
        memory.left, memory.place, memory.phase = list(found["left"]), int(found["place"]), int(found["phase"])
        memory.passed = {int(number): list(counts) for number, counts in found["passed"].items()}
