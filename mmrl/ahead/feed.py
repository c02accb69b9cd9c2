"""Where the trainer gets its rollouts: drawn when it asks, or ahead of it while it updates.

Rollout n is used by update n. Ahead, each source draws rollout after rollout as soon as the policy has seen
max(0, n - staleness) updates, puts it into the stream, and the trainer takes them in order; so no sample is ever
staler than that, and nothing needs to be thrown away.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mmrl.ahead.source import drawn
from mmrl.ahead.weights import Weights
from mmrl.parts import Parts
from mmrl.runtime import Runtime
from mmrl.scoring import referred
from mmrl.sharding import whole
from mmrl.types import Rollout


@dataclass(frozen=True)
class Position:
    """Where a run stands between two steps, besides what it has learnt."""

    collector: dict[str, object]
    generators: dict[str, Tensor]
    """Those that rollouts are drawn from, of this process, by "rank/name"."""
    behind: Mapping[int, Weights] = field(default_factory=dict)
    """Older versions of the policy by which rollouts are yet to be drawn, or with whose help (`mmrl.lagged`)."""


class Feed(abc.ABC):
    """Gives a rollout for every update, in order."""

    @abc.abstractmethod
    def ready(self) -> None:
        """Get ready to draw, before anything else is asked.

        Raises:
            WorkerError: a process that is to collect cannot be started.
        """

    @abc.abstractmethod
    def next(self, step: int) -> Rollout:
        """The rollout of update `step` (from 0), with everything that the algorithm wants to know of it."""

    @abc.abstractmethod
    def position(self) -> Position:
        """Where to go on from, so that the same rollouts come."""

    @abc.abstractmethod
    def updated(self, step: int) -> None:
        """The policy has seen `step` updates."""

    @abc.abstractmethod
    def restore(self, step: int, position: Position) -> None:
        """Go on from `position`, which was that before update `step`."""

    @abc.abstractmethod
    def settle(self) -> None:
        """Wait until nothing is being drawn: what evaluates may need the same simulator."""

    def measured(self) -> Mapping[str, float]:
        """Figures of the last rollout."""
        return {}

    def cpu_s(self) -> float:
        """CPU seconds so far of processes that draw."""
        return 0.0

    @abc.abstractmethod
    def close(self) -> None:
        """Stop drawing."""


class OnDemand(Feed):
    """Collects when it is asked."""

    def __init__(self, parts: Parts, resample: int, micro_rows: int, runtime: Runtime) -> None:
        self.parts, self.resample, self.micro_rows, self.runtime = parts, resample, micro_rows, runtime

    def ready(self) -> None:
        """It always is."""

    def next(self, step: int) -> Rollout:
        parts = self.parts
        rollout = drawn(parts, parts.policy, self.resample, self.micro_rows, self.runtime)
        return with_reference(rollout, parts, self.micro_rows, self.runtime)

    def position(self) -> Position:
        name, lagged = f"{self.runtime.rank}/collect", self.parts.lagged
        generators = {name: self.runtime.generator("collect").get_state()}
        return Position(self.parts.collector.state_dict(), generators, {} if lagged is None else lagged.older())

    def restore(self, step: int, position: Position) -> None:
        self.parts.collector.load_state_dict(position.collector)
        if self.parts.lagged is not None:
            self.parts.lagged.load(position.behind)
        generator = position.generators.get(f"{self.runtime.rank}/collect")
        if generator is not None:
            self.runtime.generator("collect").set_state(generator)

    def updated(self, step: int) -> None:
        """It draws with the policy itself."""

    def settle(self) -> None:
        """Nothing is drawn that is not asked for."""

    def close(self) -> None:
        """There is nothing to stop."""

    def measured(self) -> Mapping[str, float]:
        return self.parts.collector.measured()

    def cpu_s(self) -> float:
        return self.parts.collector.cpu_s()


def with_reference(rollout: Rollout, parts: Parts, micro_rows: int, runtime: Runtime) -> Rollout:
    """`rollout` with log-probs of the reference, where the algorithm wants them."""
    with whole(parts.policy), runtime.accelerator.autocast():  # as the policy itself is scored
        return referred(rollout, parts.reference, parts.algorithm, micro_rows)
