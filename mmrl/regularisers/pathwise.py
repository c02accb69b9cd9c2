"""The gradient of a differentiable reward through the last decision (DRaFT-1, arXiv 2309.17400; AlignProp, 2310.03739).

penalty = - coef r(outcome), at the last decision of a trajectory, whose outcome is a function of the weights: no
log-prob. With `surrogates.Reinforce` and a last decision without noise, whose log-prob is constant, this is the whole
loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.algorithm import Regulariser, Stats
from mmrl.types import Batch, Evaluation


@dataclass(frozen=True)
class Pathwise(Regulariser):
    """Raises the reward of the outcome directly; needs a policy that can draw it, and a reward it can be derived by."""

    coef: float = 1.0
    needs_outcome = True

    def __call__(self, evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Stats]:
        if evaluation.outcome_rewards is None:
            raise ValueError("regularisers.Pathwise needs a policy that reports outcome rewards, and this one does not")
        return -self.coef * evaluation.outcome_rewards, {"outcome_reward": evaluation.outcome_rewards.detach()}
