"""The mean log-prob of all alternatives of a decision, what `mmrl.surrogates.ROVER` bootstraps from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.statistics import Statistic


@dataclass(frozen=True)
class MeanLogProb(Statistic):
    """Over those that are possible; added up in float32 at least, since a vocabulary has 150,000."""

    noises = ("categorical",)
    name = "mean_logprob"

    def of_categorical(self, log_softmax: Tensor, drawn: Tensor) -> Tensor:
        possible = log_softmax > float("-inf")
        return torch.where(possible, log_softmax.float(), 0.0).sum(-1) / possible.sum(-1)
