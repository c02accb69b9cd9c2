"""A critic that classifies returns instead of regressing on them: HL-Gauss, arXiv 2403.03950, eq. 5.

L = - coef sum_k p_k log softmax(logits)_k, p of the return smoothed over bins (`mmrl.bins`)

Its gradient does not grow with the size of an error, so that rare large returns do not throw the critic about.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.algorithm import Stats, ValueLoss
from mmrl.types import Batch, Evaluation


@dataclass(frozen=True)
class HLGauss(ValueLoss):
    """Cross-entropy to smoothed returns, in the place of `mmrl.value_loss.ValueRegression`. `smooth` is sigma in widths
    of a bin. Needs a critic with bins: `policy.critic.bins: {low: 0, high: 1}`, the range of returns."""

    coef: float = 0.5
    smooth: float = 0.75

    def __post_init__(self) -> None:
        if self.smooth <= 0:
            raise ValueError(f"HLGauss.smooth is {self.smooth}: give more than 0, 0.75 is the paper's")

    def __call__(self, evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Stats]:
        bins = evaluation.bins
        if evaluation.value_logits is None or bins is None or batch.returns is None:
            raise ValueError(
                "HLGauss needs a critic with bins (policy.critic.bins) and an advantage with returns "
                "(mmrl.advantages.GAE)"
            )
        logits = torch.where(batch.mask[..., None], evaluation.value_logits.float(), 0.0)
        target = bins.targets(batch.returns, self.smooth * bins.width)
        error = -(target * logits.log_softmax(-1)).sum(-1)
        return self.coef * error, {"value_error": (bins.values(logits.detach()) - batch.returns).square()}
