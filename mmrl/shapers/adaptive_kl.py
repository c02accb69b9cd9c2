"""KL in the reward with a coefficient that a controller moves, arXiv 1909.08593, section 2.2.

r_t <- r_t - beta (log pi_old - log ref);   beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)

KL is the mean over the n trajectories of a rollout of the sum over their decisions. Seen as inference (arXiv
2205.11275), beta is the temperature of the posterior ref exp(R / beta) / Z that the policy converges to: a target on
the KL says how far from its prior it may go, rather than how much reward a nat is worth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmrl.algorithm import Shaper
from mmrl.masked import masked_mean
from mmrl.memory import Remembering
from mmrl.types import Rollout


@dataclass(frozen=True)
class AdaptiveKLInReward(Remembering, Shaper):
    """`target` in nats a trajectory; `horizon` in trajectories; `coef` is where beta begins. A checkpoint has it."""

    target: float = 6.0
    horizon: float = 10000.0
    coef: float = 0.2
    needs_reference = True

    def __post_init__(self) -> None:
        if min(self.target, self.horizon, self.coef) <= 0:
            raise ValueError(
                f"AdaptiveKLInReward has target {self.target}, horizon {self.horizon} and coef {self.coef}: give more "
                "than 0 each"
            )

    def __call__(self, rollout: Rollout) -> Rollout:
        if rollout.ref_logprobs is None:
            raise ValueError("AdaptiveKLInReward needs Rollout.ref_logprobs: give the trainer a reference policy")
        coef, valid = self._memory.get("coef", self.coef), rollout.alive.any(-1)
        cost = torch.where(rollout.mask, rollout.logprobs - rollout.ref_logprobs, 0.0)
        error = float(masked_mean(cost.sum(-1), valid)) / self.target - 1.0
        self._memory["coef"] = coef * (1.0 + min(max(error, -0.2), 0.2) * float(valid.sum()) / self.horizon)
        return rollout.with_(rewards=rollout.rewards - coef * cost)
