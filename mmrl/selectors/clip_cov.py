"""Clip-Cov, arXiv 2505.22617: likely decisions of high advantage eat entropy, so a few of them teach nothing.

c = (A - mean A) (log pi - mean log pi);   of those with low < c < high that the surrogate does not clip already, a
share of all decisions, drawn at random, gets weight 0. They stay in the denominator, as in the authors' code.

The bounds fit advantages in standard deviations (GRPO). The authors' scripts have it with PPOClip(1, 1), which is told
here as `clip_low` and `clip_high`; they matter per micro-batch alone, since nothing is clipped where the policy has not
moved. Where each step has its own spread (denoise steps) log-probs can only be compared `within_step`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.ranking import Decisions, at_random, count_of, covariance
from mmrl.selectors.ranking import Ranking
from mmrl.statistics import Noise


@dataclass(frozen=True)
class ClipCov(Ranking):
    """Weight 0 on a random few of the decisions of high covariance."""

    share: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    within_step: bool = False
    clip_low: float = 1.0
    clip_high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1 or self.low >= self.high:
            raise ValueError(
                f"ClipCov has share {self.share}, low {self.low} and high {self.high}: give a share from 0 to 1 (2e-4 "
                "is a fiftieth of a percent) and low < high"
            )

    def objection(self, noise: Noise) -> str:
        if noise == "scheduled" and not self.within_step:
            return "compares log-probs of steps with different spreads: set within_step: true"
        return super().objection(noise)

    def weights(self, seen: Decisions) -> Tensor:
        found = covariance(seen, self.within_step)
        ratio = (seen.logprobs - seen.old_logprobs).exp()
        above = (ratio > 1 + self.clip_high) & (seen.advantages > 0)
        clipped = above | (ratio < 1 - self.clip_low) & (seen.advantages < 0)
        among = seen.mask & (found > self.low) & (found < self.high) & ~clipped
        count = count_of(self.share, int(seen.mask.sum()))
        return 1.0 - at_random(found, among, count, seen).float()
