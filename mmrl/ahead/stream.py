"""The sample stream: samples on their way from those who draw them to those who use them.

Each consumer names the columns that it needs, sees a sample once they are there, and gets it once, in the order of
rollouts and sources; what all have had is forgotten. The columns are the fields of `Rollout`, None until somebody has
filled them (the readiness flags of AsyncFlow's TransferQueue, arXiv 2507.01663, in one process).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from mmrl.types import Rollout

Key = tuple[int, int]
"""Number and source of a sample."""


class Stale(RuntimeError):
    """A sample is older than it may be: whoever drew it did not keep to the bound."""


@dataclass(frozen=True)
class Sample:
    """Whole groups of one rollout, drawn by one version of the policy. Its ids, behaviour log-probs, masks and reward
    parts are those of the `Rollout`, whose schema is the same however it came about."""

    number: int
    """Of the rollout that it is part of, from the start of the run."""
    source: int
    """Who drew it: 0, or the number of a process."""
    version: int
    """Updates that the policy had seen."""
    rollout: Rollout
    measured: Mapping[str, float] = field(default_factory=dict)
    """The collector's own figures."""

    @property
    def key(self) -> Key:
        """Where it stands in the stream."""
        return self.number, self.source


class SampleStream:
    """`consumers`: by name the columns of `Rollout` that each waits for. `sources` share out every rollout."""

    def __init__(self, consumers: Mapping[str, Sequence[str]], sources: int = 1) -> None:
        self.consumers, self.sources = dict(consumers), sources
        self._samples: dict[Key, Sample] = {}
        self._had: dict[Key, set[str]] = {}
        self._last_put = dict.fromkeys(range(sources), -1)
        self._last_taken = dict.fromkeys(consumers, -1)
        self._failed: dict[int, BaseException] = {}
        self._condition = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        """Samples that somebody has yet to have."""
        with self._condition:
            return len(self._samples)

    def put(self, sample: Sample) -> None:
        """Raises:
        ValueError: this source has put this rollout, or a later one, already.
        """
        with self._condition:
            if sample.number <= self._last_put[sample.source]:
                raise ValueError(f"source {sample.source} puts rollout {sample.number} again: numbers only rise")
            self._last_put[sample.source] = sample.number
            self._samples[sample.key], self._had[sample.key] = sample, set()
            self._condition.notify_all()

    def fill(self, key: Key, columns: Mapping[str, Tensor]) -> None:
        """Give a sample more columns."""
        with self._condition:
            sample = self._samples[key]
            self._samples[key] = replace(sample, rollout=sample.rollout.with_(**columns))
            self._condition.notify_all()

    def fail(self, number: int, error: BaseException) -> None:
        """Rollout `number` will not come, nor any after it: whoever takes it gets the error."""
        with self._condition:
            self._failed.setdefault(number, error)
            self._condition.notify_all()

    def close(self) -> None:
        """Nothing more comes: who waits gets None."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def take(self, consumer: str, number: int, oldest: int = 0, timeout_s: float | None = None) -> list[Sample] | None:
        """All parts of rollout `number` once they are ready for `consumer`; None when the stream was closed.

        Raises:
            Stale: one was drawn by a version before `oldest`.
            TimeoutError: they are not there after `timeout_s` seconds.
            ValueError: this consumer has had it.
        """
        keys = [(number, source) for source in range(self.sources)]
        with self._condition:
            if number <= self._last_taken[consumer]:
                raise ValueError(f"{consumer} takes rollout {number} again: numbers only rise")
            ended = self._condition.wait_for(
                lambda: self._closed or self._error(number) is not None or self._ready(keys, consumer), timeout_s
            )
            if self._ready(keys, consumer):
                return self._given(keys, consumer, oldest)
            error = self._error(number)
            if error is not None:
                raise error
            if not ended:
                raise TimeoutError(f"rollout {number} was not ready for {consumer} after {timeout_s} s")
            return None

    def _given(self, keys: Sequence[Key], consumer: str, oldest: int) -> list[Sample]:
        found = [self._samples[key] for key in keys]
        for sample in found:
            if sample.version < oldest:
                raise Stale(
                    f"rollout {sample.number} was drawn by version {sample.version} of the policy, and the bound is "
                    f"{oldest}: whoever drew it did not keep to train.ahead.staleness"
                )
        self._last_taken[consumer] = keys[0][0]
        for key in keys:
            self._had[key].add(consumer)
            if self._had[key] >= self.consumers.keys():
                del self._samples[key], self._had[key]
        return found

    def settle(self, number: int) -> None:
        """Wait until rollout `number` was put by all sources, or will not come."""
        with self._condition:
            self._condition.wait_for(
                lambda: self._closed or self._error(number) is not None or min(self._last_put.values()) >= number
            )

    def _error(self, number: int) -> BaseException | None:
        return next((self._failed[failed] for failed in sorted(self._failed) if failed <= number), None)

    def _ready(self, keys: Sequence[Key], consumer: str) -> bool:
        there = [self._samples.get(key) for key in keys]
        needs = self.consumers[consumer]
        return all(s is not None and all(vars(s.rollout)[need] is not None for need in needs) for s in there)
