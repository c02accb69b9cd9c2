"""Policy shaping of guided trajectories, LUFFY, arXiv 2504.14945, as RGR-GRPO uses it (arXiv 2511.12344).

p = pi(y_t | x, y_<t), without what the trajectory was guided by
L = -A p / (p + gamma) where guided, and the loss of `own` elsewhere

The gradient to p is gamma / (p + gamma)^2: at gamma .1 a decision of p = .01 moves 83 times as much as one of p = .9.
What guidance brought in is learnt, what was likely anyway is left alone; there is no ratio and no clipping. Guided are
decisions whose statistic `guided` is above 0: whoever guides says so (`vision.plans.Refined`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.algorithm import Stats, Surrogate
from mmrl.statistics import Statistic
from mmrl.surrogates.ppo_clip import PPOClip
from mmrl.types import Batch


@dataclass(frozen=True)
class Guided(Surrogate):
    """`own` for what the policy drew by itself, a shaped probability for what it was guided to."""

    own: Surrogate = PPOClip()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"Guided.gamma is {self.gamma}: give more than 0, 0.1 is usual")
        if self.own.whole_trajectories or self.own.whole_groups or not self.own.silent_at_zero:
            raise ValueError(
                f"Guided.own is {type(self.own).__name__}, whose loss is of whole trajectories or groups: give one of "
                "single decisions, such as PPOClip"
            )

    @property
    def plans_on(self) -> tuple[Statistic, ...]:
        return self.own.plans_on

    @property
    def reads(self) -> tuple[Statistic, ...]:
        return self.own.reads

    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        found, stats = self.own(logprobs, batch)
        guided = batch.stats.get("guided")
        if guided is None or not bool((guided > 0).any()):
            return found, stats
        probability = logprobs.exp()
        shaped = -batch.advantages * probability / (probability + self.gamma)
        return torch.where(guided > 0, shaped, found), stats
