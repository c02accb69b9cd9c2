"""KL to the reference inside the reward, arXiv 2009.01325, eq. 2.   r_t <- r_t - coef (log pi_old - log ref)

Through the policy gradient this gives the true reverse-KL gradient, which k1 as a loss does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmrl.algorithm import Shaper
from mmrl.types import Rollout


@dataclass(frozen=True)
class KLInReward(Shaper):
    """A cost on each trained decision that the reference finds less likely."""

    coef: float = 0.001
    needs_reference = True

    def __call__(self, rollout: Rollout) -> Rollout:
        if rollout.ref_logprobs is None:
            raise ValueError("KLInReward needs Rollout.ref_logprobs: give the trainer a reference policy")
        cost = torch.where(rollout.mask, rollout.logprobs - rollout.ref_logprobs, 0.0)
        return rollout.with_(rewards=rollout.rewards - self.coef * cost)
