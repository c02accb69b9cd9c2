"""The entropy-aware advantage of AEPO, arXiv 2510.14545: what was decided in doubt gets more of the credit.

A_{i,t} <- A_{i,t} max(0, 1 + alpha z_{i,t}), z = (H - mean H) / std H over all decisions of the rollout, no gradient

Public code standardises within a micro-batch, does not compute H unless an entropy bonus is on, and then leaves this
out without a word; here H is asked for. Below z = -1 / alpha a credit would change its sign: it ends at 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmrl.advantages.group_relative import GroupRelative
from mmrl.algorithm import Advantage, Credit
from mmrl.masked import whiten
from mmrl.statistics import Entropy, Statistic
from mmrl.types import Rollout


@dataclass(frozen=True)
class EntropyAware(Advantage):
    """The advantage `base`, more of it where entropy is high."""

    base: Advantage = GroupRelative()
    alpha: float = 0.2

    @property
    def plans_on(self) -> tuple[Statistic, ...]:
        return (Entropy(), *self.base.plans_on)

    def __call__(self, rollout: Rollout) -> Credit:
        credit = self.base(rollout)
        share = (1.0 + self.alpha * whiten(rollout.stats["entropy"], rollout.mask)).clamp(min=0.0)
        return replace(credit, advantages=credit.advantages * share)
