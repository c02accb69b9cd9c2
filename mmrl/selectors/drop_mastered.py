"""UloRL's mask of mastered tokens (DMMPTs), arXiv 2507.19766: what is right and certain already needs no more.

w = 0 where R_i >= reward and pi(a_t) >= probability and the mean entropy of trajectory i < entropy, else 1

The gate on the entropy is essential: always on, the mask lets entropy grow without bound. Equation 10 prints the
entropy without its minus sign; here it is -sum p log p. The denominator keeps what is masked. Of vectors a density
says nothing about mastery, so that there it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.algorithm import Credit, Selector
from mmrl.masked import masked_mean
from mmrl.statistics import Entropy, Statistic
from mmrl.types import Rollout


@dataclass(frozen=True)
class DropMastered(Selector):
    """Weight 0 on likely decisions of certain, rewarded trajectories. `entropy` is in nats; 0 switches it off."""

    probability: float = 0.99
    entropy: float = 0.2
    reward: float = 1.0
    noises = ("categorical",)

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ValueError(f"DropMastered.probability is {self.probability}: give more than 0, at most 1")

    @property
    def plans_on(self) -> tuple[Statistic, ...]:
        return (Entropy(),)

    def plan(self, rollout: Rollout, credit: Credit) -> Tensor:
        certain = masked_mean(rollout.stats["entropy"], rollout.mask, dim=-1) < self.entropy
        right = rollout.returns() >= self.reward
        likely = rollout.logprobs.exp() >= self.probability
        return 1.0 - ((certain & right)[:, None] & likely).float()
