"""What is put on top of a policy for reinforcement learning: a critic, and the noise of Flow-Noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from vla.cloning import initialise


@dataclass(frozen=True)
class CriticConfig:
    """Widths of the hidden layers of V(s), and what of a VLA it `reads`: what comes after its expert or after its VLM;
    null: as RLinf does, the expert of pi0 and the VLM of pi0.5, and so of SmolVLA. A small policy's reads the state."""

    widths: tuple[int, ...] = (128, 128)
    reads: Literal["expert", "vlm"] | None = None

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"policy.critic.widths is {self.widths}: give one width or more")


class Perceptron(nn.Module):
    """Tanh layers, and a last linear one that starts at zero."""

    def __init__(self, sizes: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        initialise(self, generator)
        last = self.layers[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).tanh()
        found: Tensor = self.layers[-1](x)
        return found
