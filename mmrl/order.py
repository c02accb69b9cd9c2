"""In which order examples are drawn."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import torch

from mmrl.runtime import Runtime


class Order(abc.ABC):
    """Which examples come next, the same on every rank; remembers where it stands."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.drawn = 0
        """How many have come."""

    @abc.abstractmethod
    def take(self, count: int) -> list[int]:
        """The next `count` indices."""

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


class Shuffled(Order):
    """Examples in a new order each epoch."""

    def __init__(self, size: int, runtime: Runtime, name: str) -> None:
        super().__init__(runtime)
        self._size, self._seed = size, runtime.fresh_generator(f"shared_{name}", shared=True).initial_seed()

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


class Weighted(Order):
    """Examples of several tasks, each task as often as its weight says: what comes next is of the task that is furthest
    behind its share of all so far, so that after n examples none is off by more than the number of tasks. Within a task
    they are `Shuffled`."""

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float], runtime: Runtime, name: str) -> None:
        """`tasks` says of every example whose it is.

        Raises:
            ValueError: a weight is of no task, or a task has none.
        """
        super().__init__(runtime)
        known = dict.fromkeys(tasks)
        if set(weights) - set(known) or set(known) - set(weights):
            raise ValueError(
                f"the weights are of {sorted(weights)} and the examples of {sorted(known)}: give every task with "
                "examples a weight, 0 to leave it out, and no other"
            )
        self._weights = {task: weight / sum(weights.values()) for task, weight in weights.items() if weight > 0}
        self._numbers = {task: [i for i, own in enumerate(tasks) if own == task] for task in self._weights}
        self._within = {
            task: Shuffled(len(numbers), runtime, f"{name}_{task}") for task, numbers in self._numbers.items()
        }

    def take(self, count: int) -> list[int]:
        """The next `count` indices; within a task none comes twice before all have come once."""
        had = {task: order.drawn for task, order in self._within.items()}
        turns = []
        for number in range(self.drawn + 1, self.drawn + count + 1):
            turns.append(max(had, key=lambda task: self._weights[task] * number - had[task]))
            had[turns[-1]] += 1
        self.drawn += count
        found = {task: iter(order.take(turns.count(task))) for task, order in self._within.items()}
        return [self._numbers[task][next(found[task])] for task in turns]

    def state_dict(self) -> dict[str, object]:
        return {"drawn": self.drawn, "drawn_of": {task: order.drawn for task, order in self._within.items()}}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        super().load_state_dict(state)
        own = state["drawn_of"]
        assert isinstance(own, Mapping)
        for task, order in self._within.items():
            order.drawn = int(own.get(task, 0))


def check_shared_out(prompts: int, runtime: Runtime) -> None:
    """Raises:
    ValueError: so many prompts a step cannot be shared out evenly over the processes.
    """
    if prompts % runtime.world or prompts < runtime.world:
        raise ValueError(
            f"rollout.prompts is {prompts} on {runtime.world} processes: give a multiple of {runtime.world}"
        )
