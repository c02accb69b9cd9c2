"""How examples are divided: the three protocols of CLS-RL (arXiv 2503.16188, section 4)."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

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

    def __post_init__(self) -> None:
        for name in ("shots", "evaluation", "dev"):
            if vars(self)[name] < 0:
                raise ValueError(f"data.protocol.{name} is {vars(self)[name]}: give 0 or more")

    @abc.abstractmethod
    def split(self, source: Source) -> Split:
        """Divide `source`."""


@dataclass(frozen=True)
class FewShot(Protocol):
    """All classes, a few labelled examples of each."""

    def split(self, source: Source) -> Split:
        examples = source.examples()
        return _divide(examples, self, shuffled(examples, self.seed))


@dataclass(frozen=True)
class BaseToNew(Protocol):
    """Train on the first half of the classes, in the source's order; `new` is the held-out other half.

    All classes are divided as FewShot divides them (so `evaluation` and `dev` count both halves) and then the
    new ones are taken out of demonstrations, pool, dev and evaluation; those of them that were held out are
    `new`. A start policy made under FewShot with the same numbers has therefore seen `shots` pictures of the
    new classes and none that is evaluated here, which is as close as a model without pre-training comes to
    "knows the word, was not trained on it": without them its accuracy on new classes would be 0."""

    def split(self, source: Source) -> Split:
        examples = source.examples()
        names = list(dict.fromkeys(example.answer for example in examples))
        base = set(names[: (len(names) + 1) // 2])
        # `pool` limits what is used: it cuts after the new classes are out
        whole = _divide(examples, replace(self, pool=None), shuffled(examples, self.seed))

        def known(part: Sequence[Example]) -> list[Example]:
            return [example for example in part if example.answer in base]

        pool, new = known(whole.pool), [example for example in whole.evaluation if example.answer not in base]
        if len(base) < 2 or not pool:
            raise ValueError(
                f"data.protocol trains on {sorted(base)} with {len(pool)} examples left for RL: BaseToNew needs a "
                "source of at least three classes, and fewer evaluation, dev or shots"
            )
        return Split(
            known(whole.demonstrations), pool[: self.pool], known(whole.dev), known(whole.evaluation), tuple(names),
            {"new": new},
        )  # fmt: skip


@dataclass(frozen=True)
class CrossDataset(Protocol):
    """Train on one source; evaluate also on `others`, which share none of its pictures ("free lunch")."""

    others: dict[str, Source] | None = None

    def split(self, source: Source) -> Split:
        if not self.others:
            raise ValueError("data.protocol.others is empty: name at least one other source to transfer to")
        examples = source.examples()
        split = _divide(examples, self, shuffled(examples, self.seed))
        transfer = {
            name: shuffled(other.examples(), self.seed)[: self.evaluation] for name, other in self.others.items()
        }
        return Split(split.demonstrations, split.pool, split.dev, split.evaluation, split.labels, transfer)


@dataclass(frozen=True)
class HeldOutFile(Protocol):
    """Everything of the source is trained on; `held_out` is another source, which only evaluation reads. Answers may
    be free text, so there are demonstrations only if `shots` says so."""

    shots: int = 0
    dev: int = 0
    held_out: Source | None = None

    def split(self, source: Source) -> Split:
        if self.held_out is None:
            raise ValueError("data.protocol.held_out is missing: name the source that evaluation reads")
        order, evaluation = shuffled(source.examples(), self.seed), list(self.held_out.examples())
        shared = {_content(example) for example in order} & {_content(example) for example in evaluation}
        if shared:
            raise ValueError(
                f"{len(shared)} questions stand both in what is trained on and in what is held out, such as "
                f"{min(shared)[:80]!r}: evaluating on what was trained on says nothing; take them out of one"
            )
        taken: dict[str, int] = {}
        demonstrations, pool = [], []
        for example in order[self.dev :]:
            taken[example.answer] = taken.get(example.answer, 0) + 1
            (demonstrations if taken[example.answer] <= self.shots else pool).append(example)
        if not pool:
            raise ValueError(f"data.protocol leaves nothing for RL of {len(order)} examples: lower dev or shots")
        labels = tuple(sorted({example.answer for example in (*order, *evaluation)}))
        return Split(demonstrations, pool[: self.pool], order[: self.dev], evaluation[: self.evaluation], labels)


@dataclass(frozen=True)
class FewPairs(Protocol):
    """`pairs` demonstrations in all, for answers that are free text: programs, captions. Only their answers are among
    the labels, so that not even the vocabulary of a start is made from what it will be asked."""

    shots: int = 0
    pairs: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs < 1 or self.shots:
            raise ValueError(
                f"data.protocol has pairs {self.pairs} and shots {self.shots}: give pairs, at least 1, and no shots"
            )

    def split(self, source: Source) -> Split:
        order = shuffled(source.examples(), self.seed)
        evaluation, rest = order[: self.evaluation], order[self.evaluation :]
        dev, demonstrations, pool = rest[: self.dev], rest[self.dev :][: self.pairs], rest[self.dev :][self.pairs :]
        if not pool:
            raise ValueError(
                f"data.protocol leaves nothing for RL: {len(order)} examples, {len(evaluation)} held out, {len(dev)} "
                f"dev, {len(demonstrations)} demonstrations: lower evaluation, dev or pairs"
            )
        labels = tuple(dict.fromkeys(sorted({example.answer for example in demonstrations})))
        return Split(demonstrations, pool[: self.pool], dev, evaluation, labels)


def _content(example: Example) -> str:
    pictures = [hashlib.sha1(p.tobytes(), usedforsecurity=False).hexdigest() for p in example.pictures()]
    return f"{example.question} {pictures}"


def shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples in an order that depends on the seed alone."""
    return [examples[i] for i in np.random.default_rng(seed).permutation(len(examples))]


def _divide(examples: Sequence[Example], protocol: Protocol, order: Sequence[Example]) -> Split:
    labels = tuple(dict.fromkeys(sorted({example.answer for example in examples})))
    if not labels:
        raise ValueError(
            "data.source holds no example: is it the right path, and are its pictures .png, .jpg, .webp or .bmp?"
        )
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
