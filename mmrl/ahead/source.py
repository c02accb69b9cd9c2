"""Who draws a rollout: here, the run's own collector with a policy of its own, in whatever thread asks."""

from __future__ import annotations

import abc
import copy
from dataclasses import dataclass

from torch import Tensor

from mmrl.ahead.stream import Sample
from mmrl.ahead.weights import WeightStore, put_into
from mmrl.parts import Parts
from mmrl.resampling import collect
from mmrl.runtime import Runtime, acting
from mmrl.scoring import described, parity, reporting
from mmrl.types import Policy, Rollout

PARITY_ROWS = 8


@dataclass(frozen=True)
class Place:
    """Where a collector stands before a rollout."""

    collector: dict[str, object]
    generator: Tensor
    """State of the generator that it draws from."""


def drawn(parts: Parts, policy: Policy, resample: int, micro_rows: int, runtime: Runtime) -> Rollout:
    """A rollout of `policy`, with the statistics of it that the algorithm plans on."""
    asked = reporting(policy, parts.algorithm.plans_on)
    with acting(policy), runtime.accelerator.autocast(), asked:
        rollout = collect(parts.collector, policy, runtime.generator("collect"), resample, runtime)
        return described(rollout, policy, parts.algorithm, micro_rows)


def twin(policy: Policy) -> Policy:
    """A policy of its own for who draws. What is not trained is shared, not copied."""
    shared = {id(p): p for p in policy.parameters() if not p.requires_grad}
    return copy.deepcopy(policy, memo=dict(shared))


class Source(abc.ABC):
    """Draws rollouts, or its share of them, one at a time."""

    @abc.abstractmethod
    def place(self) -> Place:
        """Where it stands, between two rollouts."""

    @abc.abstractmethod
    def go_on_from(self, place: Place) -> None:
        """Draw the next rollout from there."""

    @abc.abstractmethod
    def draw(self, number: int, version: int) -> Sample:
        """Rollout `number` by the policy after `version` updates."""

    def cpu_s(self) -> float:
        """CPU seconds so far of processes of its own."""
        return 0.0

    @abc.abstractmethod
    def close(self) -> None:
        """End what it started."""


class Here(Source):
    """The collector of `parts` with `policy`, a twin of the one that is trained, and weights out of `store`. Since the
    trainer cannot check what an older policy recorded, parity is measured here, on the first `PARITY_ROWS`."""

    def __init__(
        self, parts: Parts, policy: Policy, store: WeightStore, resample: int, micro_rows: int, runtime: Runtime,
        source: int = 0,
    ) -> None:  # fmt: skip
        self.parts, self.policy, self.store, self.runtime = parts, policy, store, runtime
        self.resample, self.micro_rows, self.source = resample, micro_rows, source
        self._version: int | None = None

    def place(self) -> Place:
        collector = copy.deepcopy(self.parts.collector.state_dict())
        return Place(collector, self.runtime.generator("collect").get_state())

    def go_on_from(self, place: Place) -> None:
        self.parts.collector.load_state_dict(place.collector)
        self.runtime.generator("collect").set_state(place.generator)

    def draw(self, number: int, version: int) -> Sample:
        if version != self._version:
            put_into(self.policy, self.store.get(version))
            self.policy.weights_changed()
            self._version = version
        rollout = drawn(self.parts, self.policy, self.resample, self.micro_rows, self.runtime)
        measured = dict(self.parts.collector.measured())
        if number != version:
            with self.runtime.accelerator.autocast():
                measured["parity/logprob_diff_max"] = parity(self.policy, rollout, PARITY_ROWS)
        return Sample(number, self.source, version, rollout, measured)

    def close(self) -> None:
        """The collector is the run's own."""
