"""The head of a model of principles: the principle writes a linear classifier, which reads the output.

r = <u(premise), w(hypothesis)> + b(hypothesis), with u linear of some rank and w, b of two layers, or one. A head that
reads both vectors side by side has to learn each such product by itself: on emoji it bound them much worse."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standard(nn.Module):
    """Vectors shifted and scaled by what was seen in training."""

    shift: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def see(self, vectors: Tensor) -> None:
        """Take mean and deviation of vectors (N, D)."""
        self.shift.copy_(vectors.mean(0))
        self.scale.copy_(vectors.std(0).clamp(min=1e-4))

    def forward(self, vectors: Tensor) -> Tensor:
        return (vectors - self.shift) / self.scale


class EntailmentHead(nn.Module):
    """From vectors of premises (..., P) and hypotheses (..., H) to margins r (...)."""

    def __init__(self, premise: int, hypothesis: int, hidden: int, rank: int) -> None:
        super().__init__()
        self.sizes = {"premise": premise, "hypothesis": hypothesis, "hidden": hidden, "rank": rank}
        self.output = nn.Sequential(Standard(premise), nn.Linear(premise, rank))
        last = nn.Linear(hidden or hypothesis, rank + 1)
        between = [nn.Linear(hypothesis, hidden), nn.GELU()] if hidden else []
        self.principle = nn.Sequential(Standard(hypothesis), *between, last)

    @classmethod
    def new(
        cls, premises: Tensor, hypotheses: Tensor, hidden: int, rank: int, generator: torch.Generator
    ) -> EntailmentHead:
        """A fresh one for vectors such as these (N, P) and (M, H): it starts at r = 0, since what principles write is
        0; the rest is drawn."""
        head = cls(premises.shape[1], hypotheses.shape[1], hidden, rank)
        with torch.no_grad():
            for part, vectors in ((head.output, premises), (head.principle, hypotheses)):
                for layer in part:
                    if isinstance(layer, Standard):
                        layer.see(vectors)
                    if isinstance(layer, nn.Linear):
                        layer.weight.copy_(
                            torch.randn(layer.weight.shape, generator=generator) * layer.in_features**-0.5
                        )
                        layer.bias.zero_()
            last = head.principle[-1]
            assert isinstance(last, nn.Linear)
            last.weight.zero_()
        return head

    def forward(self, premises: Tensor, hypotheses: Tensor) -> Tensor:
        written: Tensor = self.principle(hypotheses)
        found: Tensor = (self.output(premises) * written[..., :-1]).sum(-1) + written[..., -1]
        return found
