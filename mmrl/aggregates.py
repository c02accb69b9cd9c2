"""How the losses of decisions become one number. Every scale comes from counts over all ranks, so the
loss is the same for any split into micro-batches or processes. Names differ in the literature: with
two trajectories of length 1 (loss 3) and 3 (loss 1 each), TokenMean gives 1.5, SequenceMean 2.0 and
ConstantLength(4) 0.75."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.algorithm import Aggregate


@dataclass(frozen=True)
class TokenMean(Aggregate):
    """Mean over all decisions of the minibatch (DAPO, arXiv 2503.14476)."""

    def __call__(self, mask: Tensor) -> Tensor:
        return mask.float() / mask.sum().clamp(min=1)


@dataclass(frozen=True)
class SequenceMean(Aggregate):
    """Mean over trajectories of the mean over their decisions (GRPO, arXiv 2402.03300, eq. 3)."""

    def __call__(self, mask: Tensor) -> Tensor:
        per_row = mask.sum(-1, keepdim=True)
        rows = (per_row > 0).sum().clamp(min=1)
        return mask.float() / (per_row.clamp(min=1) * rows)


@dataclass(frozen=True)
class ConstantLength(Aggregate):
    """Sum over decisions divided by trajectories x a constant length (Dr.GRPO, arXiv 2503.20783)."""

    length: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"ConstantLength.length is {self.length}: give the longest completion, 1 or more")

    def __call__(self, mask: Tensor) -> Tensor:
        rows = (mask.sum(-1) > 0).sum().clamp(min=1)
        return mask.float() / (rows * self.length)
