"""The decisions of all ranks in one rollout, on which credit and weights are planned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.types import Rollout, Transitions


@dataclass(frozen=True)
class Elsewhere(Transitions):
    """The transitions of a gathered rollout: they stay on the ranks that collected them."""

    length: int

    def rows(self, index: Tensor) -> Self:
        raise TypeError("a gathered rollout holds decisions only; take rows of the rank's own rollout")

    def to(self, device: torch.device) -> Self:
        return self

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True)
class Ledger:
    """The decisions of all ranks, and which of its rows are this rank's."""

    rollout: Rollout  # every rank's, T padded to the longest, transitions elsewhere
    rows_per_rank: tuple[int, ...]
    rank: int

    def rows_of(self, rank: int) -> range:
        """Rows of the ledger that `rank` collected."""
        start = sum(self.rows_per_rank[:rank])
        return range(start, start + self.rows_per_rank[rank])


def _fields(rollout: Rollout) -> dict[str, Tensor]:
    return {name: value for name, value in vars(rollout).items() if isinstance(value, Tensor)}


def moved(rollout: Rollout, device: torch.device) -> Rollout:
    """All of its tensors on `device`."""
    tensors = {name: tensor.to(device) for name, tensor in _fields(rollout).items()}
    maps = {
        name: {key: tensor.to(device) for key, tensor in vars(rollout)[name].items()}
        for name in ("stats", "reward_parts", "applicable")
    }
    return rollout.with_(**tensors, **maps)


def joined(parts: list[Rollout]) -> Rollout:
    """Rows of all parts under each other, with T padded to the longest."""
    longest = max(part.logprobs.shape[1] for part in parts)

    def stack(tensors: list[Tensor]) -> Tensor:
        return torch.cat([pad(t, (0, longest - t.shape[1])) if t.ndim == 2 else t for t in tensors])

    joined = {name: stack([_fields(part)[name] for part in parts]) for name in _fields(parts[0])}
    maps = {
        name: {key: stack([vars(part)[name][key] for part in parts]) for key in vars(parts[0])[name]}
        for name in ("stats", "reward_parts", "applicable")
    }
    return parts[0].with_(transitions=Elsewhere(sum(len(p) for p in parts)), **joined, **maps)
