"""How a head is fitted to the vectors of a frozen backbone, whatever its loss."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """AdamW on a head of one layer, or with `hidden` two. A tenth of the clusters stops it at the epoch of their least
    loss, another tenth is measured once, at the end."""

    hidden: int = 0
    epochs: int = 200
    lr: float = 3.0e-3
    weight_decay: float = 0.01
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"hidden": (self.hidden, 0), "epochs": (self.epochs, 1), "batch": (self.batch, 1)}
        for name, (value, smallest) in least.items():
            if value < smallest:
                raise ValueError(f"{name} is {value}: give {smallest} or more")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}: give a number above 0")

    def fit(
        self,
        head: nn.Module,
        scores: Callable[[Tensor], Tensor],
        wanted: Tensor,
        parts: dict[str, list[int]],
        loss: Callable[[Tensor, Tensor], Tensor],
        generator: torch.Generator,
    ) -> list[float]:
        """Leaves `head` as it was at its least validation loss; returns that loss by epoch. `scores` are those that it
        gives to the cases at some indices (n,), and `loss` is of them and what is wanted of these (n,).

        Raises:
            ValueError: a part is empty.
        """
        for part, ids in parts.items():
            if not ids:
                raise ValueError(f"none of {len(wanted)} cases falls into the part {part!r}: give more of them")
        train, validation = torch.tensor(parts["train"]), torch.tensor(parts["validation"])
        optimizer = torch.optim.AdamW(head.parameters(), self.lr, weight_decay=self.weight_decay)
        best, losses = head.state_dict(), list[float]()
        for _ in range(self.epochs):
            for ids in train[torch.randperm(len(train), generator=generator)].split(self.batch):
                value = loss(scores(ids), wanted[ids])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            with torch.no_grad():
                losses.append(float(loss(scores(validation), wanted[validation])))
            if losses[-1] == min(losses):
                best = {name: value.clone() for name, value in head.state_dict().items()}
        head.load_state_dict(best)
        return [round(value, 5) for value in losses]


def split(clusters: Sequence[str]) -> dict[str, list[int]]:
    """Which cases are trained on, 8 tenths, and which stop and measure, by the name of the cluster of each; those of
    one cluster stay together."""
    found: dict[str, list[int]] = {part: [] for part in PARTS}
    for index, cluster in enumerate(clusters):
        place = hashlib.sha256(cluster.encode()).digest()[0] % 10
        found["validation" if place == 0 else "test" if place == 1 else "train"].append(index)
    return found
