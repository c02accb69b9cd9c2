"""REINFORCE, Williams 1992.   L = - A log pi(a | s)"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.algorithm import Stats, Surrogate
from mmrl.types import Batch


@dataclass(frozen=True)
class Reinforce(Surrogate):
    """The score-function gradient, without a ratio: for one strictly on-policy step a rollout."""

    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        return -batch.advantages * logprobs, {}
