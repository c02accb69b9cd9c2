"""KL to the reference in closed form, where the policy knows both distributions (Flow-GRPO, arXiv 2505.05470, section
4: for Gaussians of one deviation, |mean - ref_mean|^2 / (2 std^2)).   penalty = coef KL(pi(. | s) || ref(. | s))
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.algorithm import Regulariser, Stats
from mmrl.types import Batch, Evaluation


@dataclass(frozen=True)
class ExactKL(Regulariser):
    """Of less variance than an estimate from samples, at the price of scoring the reference in every epoch. A mean or a
    sum over the dimensions of a decision, as the policy's log-probs are."""

    coef: float = 0.04
    needs_exact_kl = True

    def __call__(self, evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Stats]:
        if evaluation.exact_kl is None:
            raise ValueError(
                "regularisers.ExactKL needs a policy that knows its KL in closed form, and this one does not"
            )
        return self.coef * evaluation.exact_kl, {"kl": evaluation.exact_kl.detach()}
