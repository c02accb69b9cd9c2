"""A judge of two outputs at once, trained on verdicts in both orders (Pairwise-RL, arXiv 2504.04950; reconstructed):

    L = 1/2 [H(w, q(u, v)) + H(1 - w, q(v, u))] + consistency (q(u, v) + q(v, u) - 1)^2

with q(u, v) = sigmoid(f(z_u, z_v)), the probability that u is better where it is shown first; w is 1 where u is better,
0 where v is, 1/2 for a tie; H is cross-entropy and z are the frozen vectors of the outputs. A difference of scores is
consistent by what it is; f has to learn it, and can say of two outputs together what no score of either says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mmrl.types import Samples
from rewards.pairwise import Meeting, PairJudge
from rewards.pictures.base import find_path
from rewards.training.bradley_terry import TrainBradleyTerry
from rewards.training.trained import check_folder, load_head


@dataclass(frozen=True)
class TrainPairwise(TrainBradleyTerry):
    """`mmrl rewards train` of such a judge, as of a Bradley-Terry head but for what the head reads and its loss.
    `rewards.training.TrainedPairwise` uses what it writes. `consistency` weighs its last term."""

    consistency: float = 1.0
    at_once = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.consistency >= 0:
            raise ValueError(f"consistency is {self.consistency}: give 0 or more, 1 is usual")

    def read(self, vectors: Tensor) -> Tensor:
        return torch.cat([vectors, vectors.flip(1)], dim=2)  # (u, v), and beside it (v, u)

    def loss(self, found: Tensor, wanted: Tensor) -> Tensor:
        return pairwise_loss(found, wanted, self.consistency)

    def scores(self, found: Tensor) -> Tensor:
        q = found.sigmoid()
        return (q + 1 - q.flip(1)) / 2


def pairwise_loss(logits: Tensor, wanted: Tensor, consistency: float) -> Tensor:
    """The mean of L over the logits (n, 2) of q(u, v) and q(v, u), with w (n,)."""
    both = torch.stack([wanted, 1 - wanted], dim=1)
    apart = logits.sigmoid().sum(1) - 1
    return binary_cross_entropy_with_logits(logits, both) + consistency * apart.square().mean()


@dataclass(frozen=True)
class TrainedPairwise(PairJudge):
    """The judge in `folder`; not applicable to what its backbone cannot read."""

    folder: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder("TrainedPairwise", self.folder)

    def first_better(self, samples: Samples, asked: Sequence[Meeting]) -> list[float | None]:
        head, backbone = load_head(find_path(self.folder).resolve(), at_once=2)
        vectors, usable = backbone.features(samples)
        if not bool(usable.any()):
            return [None] * len(asked)
        first, second = torch.tensor(asked).unbind(1)
        with torch.no_grad():
            q = head(torch.cat([vectors[first], vectors[second]], dim=1)).sigmoid()
        read = usable[first] & usable[second]
        return [float(one) if known else None for one, known in zip(q, read.tolist(), strict=True)]
