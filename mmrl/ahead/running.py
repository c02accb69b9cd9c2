"""Collecting ahead: sources draw in threads, the trainer takes rollouts in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from mmrl.ahead.config import Ahead
from mmrl.ahead.feed import Feed, Position, with_reference
from mmrl.ahead.source import Place, Source
from mmrl.ahead.stream import SampleStream
from mmrl.ahead.weights import WeightStore, trained
from mmrl.metrics import together_measured
from mmrl.parts import Parts
from mmrl.resampling import together
from mmrl.runtime import Runtime
from mmrl.types import Rollout


class Running(Feed):
    """Collects ahead: `sources` draw, each in a thread of its own, while the trainer updates `policy`. At most the
    first `steps` rollouts of the run are drawn."""

    def __init__(
        self, parts: Parts, sources: Sequence[Source], store: WeightStore, config: Ahead, steps: int, micro_rows: int,
        runtime: Runtime,
    ) -> None:  # fmt: skip
        self.parts, self.sources, self.store, self.config = parts, sources, store, config
        self.steps, self.micro_rows, self.runtime = steps, micro_rows, runtime
        self.stream = SampleStream({"update": ()}, len(sources))
        self._places: dict[tuple[int, int], Place] = {}
        self._lock = threading.Lock()
        self._next, self._version = 0, -1
        self._threads: list[threading.Thread] = []
        self._measured: dict[str, float] = {}

    # ---- for the trainer --------------------------------------------------------------------------------

    def ready(self) -> None:
        self.store.clear()  # of a run that was killed
        for source in self.sources:
            source.launch()
        for source in self.sources:
            source.place()

    def next(self, step: int) -> Rollout:
        self._start(step)
        began = time.perf_counter()
        samples = self.stream.take("update", step, self.config.version(step))
        if samples is None:
            raise RuntimeError("rollouts are no longer drawn: this feed was closed")
        rollout = together([sample.rollout for sample in samples])
        # here and not in a thread: a reference may be the policy itself with another adapter for the time being
        rollout = with_reference(rollout, self.parts, self.micro_rows, self.runtime)
        ages = torch.cat([torch.full((len(s.rollout),), step - s.version) for s in samples])
        self._measured = {
            **together_measured([sample.measured for sample in samples]),
            "ahead/staleness": float(ages.float().mean()),
            "ahead/waited_s": time.perf_counter() - began,
            "ahead/queue": float(len(self.stream)),
        }
        with self._lock:
            self._next = step + 1
            self._places = {key: place for key, place in self._places.items() if key[0] > step}
        return rollout.with_(staleness=ages.to(rollout.logprobs.device))

    def updated(self, step: int) -> None:
        self._version = step
        self.store.publish(step, trained(self.parts.policy))
        self.store.drop(self.config.version(step))

    def restore(self, step: int, position: Position) -> None:
        for version, weights in position.behind.items():
            self.store.publish(version, weights)
        self._next = step
        for number, source in enumerate(self.sources):
            generator = position.generators.get(f"{self.runtime.rank + number}/collect")
            own = source.place().generator if generator is None else generator  # of a rank that was not there then
            source.go_on_from(Place(position.collector, own))

    def settle(self) -> None:
        if self._threads:
            self.stream.settle(min(self._version + self.config.staleness, self.steps - 1))

    def position(self) -> Position:
        with self._lock:
            places = [self._places.get((self._next, n)) or source.place() for n, source in enumerate(self.sources)]
        older = range(self.config.version(self._next), self._next) if self.config.exact else range(0)
        behind = {version: self.store.get(version) for version in older}
        first = self.runtime.rank
        generators = {f"{first + n}/collect": place.generator for n, place in enumerate(places)}
        return Position(places[0].collector, generators, behind)

    def measured(self) -> Mapping[str, float]:
        return self._measured

    def cpu_s(self) -> float:
        return sum(source.cpu_s() for source in self.sources)

    def close(self) -> None:
        self.store.close()
        self.stream.close()
        for source in self.sources:
            source.stop()
        for thread in self._threads:
            thread.join()
        for source in self.sources:
            source.close()
        self.store.clear()

    # ---- the threads ------------------------------------------------------------------------------------

    def _start(self, step: int) -> None:
        if self._threads:
            return
        self.updated(step)
        jobs: list[Callable[[], None]] = [partial(self._draw, place, step) for place in range(len(self.sources))]
        threads = torch.get_num_threads()

        def run(job: Callable[[], None]) -> None:
            torch.set_num_threads(threads)  # which is a thread's own setting, and moves the last bits of products
            self.runtime.use_device()
            job()

        self._threads = [threading.Thread(target=run, args=(job,), daemon=True, name="mmrl ahead") for job in jobs]
        for thread in self._threads:
            thread.start()

    def _draw(self, place: int, first: int) -> None:
        """Rollout after rollout, each as soon as it may be drawn."""
        source = self.sources[place]
        for number in range(first, self.steps):
            newest = self.store.wait(self.config.version(number))
            if newest is None:
                return
            with self._lock:
                self._places[number, place] = source.place()
            try:
                sample = source.draw(number, self.config.version(number) if self.config.exact else newest)
            except BaseException as error:  # it is the trainer's to know, with its place in the order
                self.stream.fail(number, error)
                return
            self.stream.put(sample)
