"""In which order examples are drawn."""

from __future__ import annotations

import torch

from mmrl.runtime import Runtime


class Shuffled:
    """Examples in a new order each epoch, the same on every rank; remembers where it stands."""

    def __init__(self, size: int, runtime: Runtime, name: str) -> None:
        self._size, self._seed = size, runtime.fresh_generator(f"shared_{name}", shared=True).initial_seed()
        self.drawn = 0

    def take(self, count: int) -> list[int]:
        """The next `count` indices; no example comes twice before all have come once."""
        taken = []
        for position in range(self.drawn, self.drawn + count):
            epoch, place = divmod(position, self._size)
            if place == 0 or position == self.drawn:
                order = torch.randperm(self._size, generator=torch.Generator().manual_seed(self._seed + epoch))
            taken.append(int(order[place]))
        self.drawn += count
        return taken
