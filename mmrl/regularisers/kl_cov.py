"""KL-Cov, arXiv 2505.22617: the decisions of highest covariance are held to the policy that acted.

c = (A - mean A) (log pi - mean log pi);   penalty = coef |log pi - log pi_old| on the `share` of decisions with the
largest c, 0 elsewhere

`share` is a fraction, as in verl; the authors' own code has it in percent (2e-3 here is their 0.2). The paper clips
nothing: take `surrogates.Importance` with it. While the policy has not moved the penalty has no gradient, so give a
rollout two minibatches or epochs at least. Where each step has its own spread log-probs can only be compared
`within_step`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.algorithm import Credit, Regulariser, Stats
from mmrl.ranking import Decisions, count_of, covariance, largest
from mmrl.statistics import Noise
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Batch, Evaluation, Rollout


@dataclass(frozen=True)
class KLCov(Regulariser):
    """Distance to the old policy, where entropy is eaten most. Chosen once on the rollout of all ranks, or with
    `per_micro_batch`, as in the authors' code, in each micro-batch."""

    coef: float = 1.0
    share: float = 2e-3
    within_step: bool = False
    per_micro_batch: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"KLCov.share is {self.share}: give a fraction from 0 to 1, 2e-3 is usual")

    def objection(self, noise: Noise) -> str:
        if noise == "scheduled" and not self.within_step:
            return "compares log-probs of steps with different spreads: set within_step: true"
        return super().objection(noise)

    @property
    def only_where(self) -> str | None:
        return None if self.per_micro_batch else "KLCov"

    def _chosen(self, seen: Decisions) -> Tensor:
        count = count_of(self.share, int(seen.mask.sum()))
        return largest(covariance(seen, self.within_step), seen.mask, count, seen)

    def plan(self, rollout: Rollout, credit: Credit) -> dict[str, Tensor]:
        return {} if self.per_micro_batch else {"KLCov": self._chosen(Decisions.of_rollout(rollout, credit))}

    def __call__(self, evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Stats]:
        moved = log_ratio(evaluation.logprobs, batch.old_logprobs, batch.mask)
        fresh = self._chosen(Decisions.of_batch(evaluation.logprobs, batch)) if self.per_micro_batch else None
        chosen = batch.stats["KLCov"] if fresh is None else fresh
        return torch.where(chosen, self.coef * moved.abs(), 0.0), {"kl_cov_share": chosen.float()}
