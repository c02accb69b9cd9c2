"""Advantage 1 everywhere: with REINFORCE and a token mean this is maximum likelihood.

L = - mean_t log pi(a_t | s_t): supervised warm-up and the SFT controls run through the same update as RL.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmrl.algorithm import Advantage, Credit
from mmrl.types import Rollout


@dataclass(frozen=True)
class Likelihood(Advantage):
    """Every decision of a demonstration is as good as any other."""

    def __call__(self, rollout: Rollout) -> Credit:
        return Credit(rollout.mask.float())
