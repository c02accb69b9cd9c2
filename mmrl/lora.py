"""What the LoRA of every domain is told: its size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoRA:
    """A new low-rank adapter: `alpha` / `rank` times what it learns is added to the layers that a domain names."""

    rank: int = 16
    alpha: int = 32

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"policy.adapter.rank is {self.rank}: give 1 or more, 16 or 32 is usual")
