"""Recorded chains of action chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.types import Transitions


@dataclass(frozen=True)
class ChunkTransitions(Transitions):
    """B episodes of at most E chunks. A row of a chunk that no longer happened holds zeros."""

    inputs: Mapping[str, Tensor]  # name -> (B, E, ...), what the model was given
    chains: Tensor  # (B, E, K+1, H, A), from noise to action
    stochastic: Tensor  # (B, E, K) bool: the step was drawn with noise
    alive: Tensor  # (B, E) bool: the chunk was begun

    def rows(self, index: Tensor) -> Self:
        inputs = {name: tensor[index] for name, tensor in self.inputs.items()}
        return type(self)(inputs, self.chains[index], self.stochastic[index], self.alive[index])

    def to(self, device: torch.device) -> Self:
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return type(self)(inputs, self.chains.to(device), self.stochastic.to(device), self.alive.to(device))

    def __len__(self) -> int:
        return len(self.chains)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        longest = max(part.alive.shape[1] for part in parts)

        def stacked(tensors: Sequence[Tensor]) -> Tensor:
            return torch.cat([pad(t, (*(0, 0) * (t.ndim - 2), 0, longest - t.shape[1])) for t in tensors])

        inputs = {name: stacked([part.inputs[name] for part in parts]) for name in parts[0].inputs}
        fields = [[vars(part)[name] for part in parts] for name in ("chains", "stochastic", "alive")]
        return cls(inputs, *(stacked(tensors) for tensors in fields))
