"""In which order examples are drawn."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mmrl.runtime import Runtime


class Shuffled:
    """Examples in a new order each epoch, the same on every rank; remembers where it stands."""

    def __init__(self, size: int, runtime: Runtime, name: str) -> None:
        self._runtime = runtime
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

    def share(self, count: int) -> tuple[range, list[int]]:
        """Of the next `count` indices those of this process, and which places they have among all of them."""
        taken = self.take(count)
        places = range(self._runtime.rank, count, self._runtime.world)
        return places, [taken[place] for place in places]

    def state_dict(self) -> dict[str, object]:
        """Where it stands, for a collector's own."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from `state_dict`."""
        self.drawn = int(str(state["drawn"]))


def check_shared_out(prompts: int, runtime: Runtime) -> None:
    """Raises:
    ValueError: so many prompts a step cannot be shared out evenly over the processes.
    """
    if prompts % runtime.world or prompts < runtime.world:
        raise ValueError(
            f"rollout.prompts is {prompts} on {runtime.world} processes: give a multiple of {runtime.world}"
        )
