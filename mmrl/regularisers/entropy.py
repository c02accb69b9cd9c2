"""Entropy bonus, arXiv 1602.01783, section 4.   penalty = - coef H(pi(. | s))"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.algorithm import Regulariser, Stats
from mmrl.types import Batch, Evaluation


@dataclass(frozen=True)
class Entropy(Regulariser):
    """Rewards spread; needs a policy that reports its entropy with gradient."""

    coef: float = 0.01
    needs_entropy = True

    def __call__(self, evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Stats]:
        if evaluation.entropy is None:
            raise ValueError("regularisers.Entropy needs a policy that reports entropy, and this one does not")
        return -self.coef * evaluation.entropy, {}
