"""Hard-focus curriculum: which prompts to keep between phases of training (DRIVE's second stage, arXiv 2511.06307).

Stage one trains on everything with few answers a prompt and a short limit. Stage two takes the hard prompts with many
answers, G = 64 say, and keeps after each phase the share with the lowest pass rates. Many answers are for this: a
prompt that is solved once in fifty is seen solved in 15 % of groups of 8 and in 73 % of groups of 64. Pass rates must
come from answers that are not used to evaluate: what was chosen for having failed will look better when it is asked
again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


def seen_solved(rate: float, group: int) -> float:
    """The probability that at least one of `group` answers is right: 1 - (1 - rate)^group."""
    return 1.0 - (1.0 - rate) ** group


@dataclass(frozen=True)
class HardFocus:
    """Keeps the `share` of prompts with the lowest pass rates, in their old order; ties are kept in that order too.
    With `drop_solved`, prompts that are always solved teach nothing and go first; with `drop_unsolved_after`, those
    that were never solved go once so many phases are over, and not before: more answers may find one."""

    share: float = 0.5
    drop_solved: bool = True
    drop_unsolved_after: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}: give a share above 0, at most 1")
        if self.drop_unsolved_after is not None and self.drop_unsolved_after < 1:
            raise ValueError(f"drop_unsolved_after is {self.drop_unsolved_after}: give 1 phase or more, or null")

    def kept(self, rates: Mapping[str, float], phase: int) -> list[str]:
        """The prompts of the next phase, from pass rates by prompt measured in `phase`, which counts from 0.

        Raises:
            ValueError: none is left.
        """
        late = self.drop_unsolved_after is not None and phase >= self.drop_unsolved_after
        left = [
            name for name, rate in rates.items()
            if not (self.drop_solved and rate >= 1.0) and not (late and rate <= 0.0)
        ]  # fmt: skip
        count = max(1, round(self.share * len(rates)))
        hardest = set(sorted(left, key=lambda name: rates[name])[:count])  # sorted is stable
        if not hardest:
            raise ValueError(
                f"none of {len(rates)} prompts is left after phase {phase}: end here, or bring harder ones"
            )
        return [name for name in rates if name in hardest]
