"""KL to the reference policy from samples, http://joschu.net/blog/kl-approx.html, with l = log pi - log ref.

| class             | value         | gradient of the loss, on samples of pi                        |
|-------------------|---------------|---------------------------------------------------------------|
| K1                | l             | zero in expectation: a metric, or a reward (shapers.KLInReward) |
| K2                | l^2 / 2       | that of KL(pi || ref), the reverse KL                         |
| K3                | e^-l - 1 + l  | that of KL(ref || pi), the forward KL (GRPO's penalty)        |
| K3StraightThrough | K3's          | K2's (verl's "k3+")                                           |
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.algorithm import Regulariser, Stats
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Batch, Evaluation


def k2(ratio: Tensor) -> Tensor:
    """l^2 / 2: biased and of low variance."""
    return 0.5 * ratio.square()


def k3(ratio: Tensor) -> Tensor:
    """e^-l - 1 + l: unbiased and never negative."""
    return torch.expm1(-ratio) + ratio


@dataclass(frozen=True)
class ReferenceKL(Regulariser, abc.ABC):
    """coef x an estimate of the KL to the reference."""

    coef: float = 0.04
    needs_reference = True

    @abc.abstractmethod
    def estimate(self, ratio: Tensor) -> Tensor:
        """Estimate (b, t) from log pi - log ref (b, t)."""

    def __call__(self, evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Stats]:
        if batch.ref_logprobs is None:
            raise ValueError("a KL penalty needs Rollout.ref_logprobs: give the trainer a reference policy")
        kl = self.estimate(log_ratio(evaluation.logprobs, batch.ref_logprobs, batch.mask))
        return self.coef * kl, {"kl": kl.detach()}


@dataclass(frozen=True)
class K1(ReferenceKL):
    """As a loss its gradient is zero in expectation; kept for comparison."""

    def estimate(self, ratio: Tensor) -> Tensor:
        return ratio


@dataclass(frozen=True)
class K2(ReferenceKL):
    """The right reverse-KL gradient."""

    def estimate(self, ratio: Tensor) -> Tensor:
        return k2(ratio)


@dataclass(frozen=True)
class K3(ReferenceKL):
    """GRPO's penalty, arXiv 2402.03300, eq. 4."""

    def estimate(self, ratio: Tensor) -> Tensor:
        return k3(ratio)


@dataclass(frozen=True)
class K3StraightThrough(ReferenceKL):
    """K3's value with K2's gradient."""

    def estimate(self, ratio: Tensor) -> Tensor:
        gradient = k2(ratio)
        return k3(ratio).detach() + gradient - gradient.detach()
