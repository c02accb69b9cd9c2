"""A critic's loss: squared or Huber error to the returns, optionally clipped around the old values
(PPO2's form, described in arXiv 2005.12729, section 3).

v_clip = v_old + clip(v - v_old, -c, c);   L = coef max(err(v, G), err(v_clip, G))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, mse_loss

from mmrl.algorithm import Stats, ValueLoss
from mmrl.types import Batch, Evaluation


@dataclass(frozen=True)
class ValueRegression(ValueLoss):
    """Regression of values on returns. `huber` None is half the squared error."""

    coef: float = 0.5
    clip: float | None = None
    huber: float | None = None

    def __post_init__(self) -> None:
        for name in ("coef", "clip", "huber"):
            if vars(self)[name] is not None and vars(self)[name] <= 0:
                null = "" if name == "coef" else ", or null"
                raise ValueError(f"value_loss.{name} is {vars(self)[name]}: give more than 0{null}")

    def _error(self, values: Tensor, targets: Tensor) -> Tensor:
        if self.huber is None:
            return 0.5 * mse_loss(values, targets, reduction="none")
        return huber_loss(values, targets, reduction="none", delta=self.huber)

    def __call__(self, evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Stats]:
        if evaluation.values is None or batch.returns is None or batch.old_values is None:
            raise ValueError(
                "a value loss needs a policy with values and an advantage with returns (mmrl.advantages.GAE)"
            )
        values = torch.where(batch.mask, evaluation.values, 0.0)  # 0 x NaN in the backward pass is NaN
        error = self._error(values, batch.returns)
        if self.clip is not None:
            moved = (values - batch.old_values).clamp(-self.clip, self.clip)
            error = torch.maximum(error, self._error(batch.old_values + moved, batch.returns))
        return self.coef * error, {"value_error": (values - batch.returns).detach().square()}
