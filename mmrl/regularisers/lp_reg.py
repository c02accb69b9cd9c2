"""Lp-Reg, arXiv 2510.03222: unlikely decisions that were punished, but are no noise, are not pushed out altogether.

S = of the decisions with A < 0 the `share` of lowest log pi, where log pi < log proxy;   d = log proxy - log pi
penalty = coef (exp(d) - d - 1) on S, 0 elsewhere, with the proxy of `ProxyGain`, of the policy that acted

On S the paper takes A r unclipped: with its own PPOClip(clip_low=1) nothing of A < 0 is clipped anyway, so that the
surrogate is left as it is. The authors' code clamps the penalty at 10, which kills its gradient beyond d = 2.6, where
it is needed most: here it is not clamped. S is chosen once on the rollout of all ranks, or with `per_micro_batch`, as
in their code, by the policy as it is in each micro-batch; one decision at least, where theirs wants two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.algorithm import Credit, Regulariser, Stats
from mmrl.ranking import Decisions, count_of, largest
from mmrl.regularisers.kl import k3
from mmrl.regularisers.proxy_gain import ProxyGain
from mmrl.statistics import Statistic
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Batch, Evaluation, Rollout


@dataclass(frozen=True)
class LpReg(Regulariser):
    """A barrier below unlikely decisions; of low-probability tokens, not an estimate of any KL."""

    coef: float = 1.0
    share: float = 0.01
    kappa: float = 0.02
    per_micro_batch: bool = False

    @property
    def plans_on(self) -> tuple[Statistic, ...]:
        return (ProxyGain(self.kappa),)

    @property
    def only_where(self) -> str | None:
        return None if self.per_micro_batch else "LpReg"

    def _chosen(self, seen: Decisions, proxy: Tensor) -> Tensor:
        punished = seen.mask & (seen.advantages < 0)
        low = largest(-seen.logprobs, punished, count_of(self.share, int(punished.sum())), seen)
        return low & (proxy > seen.logprobs)

    def plan(self, rollout: Rollout, credit: Credit) -> dict[str, Tensor]:
        seen, gain = Decisions.of_rollout(rollout, credit), rollout.stats[self.plans_on[0].name]
        return {} if self.per_micro_batch else {"LpReg": self._chosen(seen, seen.old_logprobs + gain)}

    def __call__(self, evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Stats]:
        gain = batch.stats[self.plans_on[0].name]
        proxy = batch.old_logprobs + gain
        fresh = Decisions.of_batch(evaluation.logprobs, batch) if self.per_micro_batch else None
        chosen = batch.stats["LpReg"] if fresh is None else self._chosen(fresh, proxy) & (gain > 0)
        distance = log_ratio(evaluation.logprobs, proxy, batch.mask & chosen)
        return torch.where(chosen, self.coef * k3(distance), 0.0), {"lp_reg_share": chosen.float()}
