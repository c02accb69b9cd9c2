"""The episodes that environments are in, as seeds and actions: what the successor of a lost worker plays again.

Only where every episode begins in a new scene (`simulation.rebuild`) do these make the same episode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vla.sim.worker import Act, Floats, Reset


class Episodes:
    """Seed and actions so far of each row; an episode that is over stays until the next one begins."""

    def __init__(self) -> None:
        self._seeds: dict[int, int] = {}
        self._actions: dict[int, list[Floats]] = {}

    def begin(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """New episodes in `rows`."""
        for row, seed in zip(rows, seeds, strict=True):
            self._seeds[row], self._actions[row] = seed, []

    def act(self, rows: Sequence[int], actions: Floats) -> None:
        """In `rows` the steps `actions` (n, H, A) were taken."""
        for row, steps in zip(rows, actions, strict=True):
            self._actions[row].append(steps)

    def lose(self, rows: Sequence[int]) -> None:
        """Nobody plays those of `rows` again."""
        for row in rows:
            self._seeds.pop(row, None)
            self._actions.pop(row, None)

    def again(self, rows: Sequence[int]) -> Iterator[Reset | Act]:
        """Messages that bring a new worker of `rows` to where these stand. Whoever has taken fewer steps begins later,
        so that all arrive together."""
        taken = {row: self._steps(row) for row in rows if row in self._seeds}
        lengths = sorted({len(steps) for steps in taken.values()}, reverse=True)
        for longer, shorter in zip(lengths, [*lengths[1:], 0], strict=False):
            begun = [number for number, row in enumerate(rows) if row in taken and len(taken[row]) == longer]
            yield Reset(begun, [self._seeds[rows[number]] for number in begun])
            if longer > shorter:
                part = [taken[row][len(taken[row]) - longer : len(taken[row]) - shorter]
                        if row in taken and len(taken[row]) >= longer else None for row in rows]  # fmt: skip
                like = next(steps for steps in part if steps is not None)
                yield Act(np.stack([np.zeros_like(like) if steps is None else steps for steps in part]), None)

    def _steps(self, row: int) -> Floats:
        done = self._actions[row]
        return np.concatenate(done) if done else np.zeros((0, 0), np.float32)
