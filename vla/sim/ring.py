"""Environments of all workers in parts that step by themselves (SRL's environment ring, arXiv 2306.16688).

Part j has every k-th environment of each worker, so that all workers have work whenever a part steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vla.sim.worker import Acted


@dataclass(frozen=True)
class Share:
    """What one worker has of a part."""

    worker: int
    rows: list[int]  # m, of the worker
    places: Tensor  # (m,) long, in the part


@dataclass(frozen=True)
class Part:
    """Environments that step together."""

    rows: Tensor  # (n,) long, of the simulator, in order
    shares: tuple[Share, ...]


@dataclass
class Stepping:
    """A part that is under way."""

    horizon: int
    answers: dict[int, Acted | None] = field(default_factory=dict)  # by worker; None: it was lost


def divide(workers: Sequence[Tensor], ring: int) -> tuple[Part, ...]:
    """The rows of each worker in `ring` parts, or in as many as have one."""
    parts = []
    for number in range(ring):
        mine = [rows[number::ring] for rows in workers]
        rows = torch.cat(mine).sort().values
        shares = tuple(
            Share(worker, list(range(number, len(workers[worker]), ring)), torch.searchsorted(rows, found.contiguous()))
            for worker, found in enumerate(mine)
            if len(found)
        )
        if shares:
            parts.append(Part(rows, shares))
    return tuple(parts)
