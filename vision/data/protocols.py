"""How examples are divided: the three protocols of CLS-RL (arXiv 2503.16188, section 4)."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vision.data.base import Example, Source, Split


@dataclass(frozen=True)
class Protocol(abc.ABC):
    """`shots` demonstrations a class; `evaluation` and `dev` held-out examples in all; the rest is the pool,
    of which at most `pool` are used. `seed` divides, and is apart from the seed of a run so that several
    runs share one division."""

    shots: int = 4
    evaluation: int = 400
    dev: int = 200
    pool: int | None = None
    seed: int = 0

    @abc.abstractmethod
    def split(self, source: Source) -> Split:
        """Divide `source`."""


@dataclass(frozen=True)
class FewShot(Protocol):
    """All classes, a few labelled examples of each."""

    def split(self, source: Source) -> Split:
        return _divide(source.examples(), self, shuffled(source.examples(), self.seed))


@dataclass(frozen=True)
class BaseToNew(Protocol):
    """Train on the first half of the classes, in the source's order; `new` is the held-out other half."""

    def split(self, source: Source) -> Split:
        examples = source.examples()
        labels = list(dict.fromkeys(example.answer for example in examples))
        base = set(labels[: (len(labels) + 1) // 2])
        order = shuffled(examples, self.seed)
        known = [e for e in order if e.answer in base]
        new = [e for e in order if e.answer not in base][: self.evaluation]
        split = _divide(examples, self, known)
        return Split(split.demonstrations, split.pool, split.dev, split.evaluation, tuple(labels), {"new": new})


@dataclass(frozen=True)
class CrossDataset(Protocol):
    """Train on one source; evaluate also on `others`, which share none of its pictures ("free lunch")."""

    others: dict[str, Source] | None = None

    def split(self, source: Source) -> Split:
        if not self.others:
            raise ValueError("data.protocol.others is empty: name at least one other source to transfer to")
        split = _divide(source.examples(), self, shuffled(source.examples(), self.seed))
        transfer = {
            name: shuffled(other.examples(), self.seed)[: self.evaluation] for name, other in self.others.items()
        }
        return Split(split.demonstrations, split.pool, split.dev, split.evaluation, split.labels, transfer)


def shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples in an order that depends on the seed alone."""
    return [examples[i] for i in np.random.default_rng(seed).permutation(len(examples))]


def _divide(examples: Sequence[Example], protocol: Protocol, order: Sequence[Example]) -> Split:
    labels = tuple(dict.fromkeys(sorted({example.answer for example in examples})))
    if len(labels) < 2:
        raise ValueError(f"data.source has one class, {labels[0]!r}: classification needs at least two")
    evaluation = list(order[: protocol.evaluation])
    dev = list(order[protocol.evaluation : protocol.evaluation + protocol.dev])
    taken: dict[str, int] = {}
    demonstrations, pool = [], []
    for example in order[protocol.evaluation + protocol.dev :]:
        taken[example.answer] = taken.get(example.answer, 0) + 1
        (demonstrations if taken[example.answer] <= protocol.shots else pool).append(example)
    if not pool:
        raise ValueError(
            f"data.protocol leaves nothing for RL: {len(order)} examples, {len(evaluation)} held out, {len(dev)} dev, "
            f"{len(demonstrations)} demonstrations: lower evaluation, dev or shots"
        )
    return Split(demonstrations, pool[: protocol.pool], dev, evaluation, labels)
