"""Several sources as one: tasks to train on together, or what a start policy has to know something of before transfer
is measured."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vision.data.base import Example, Source, Split
from vision.data.protocols import FewShot


@dataclass(frozen=True)
class Mixed(Source):
    """The examples of `sources` after each other; each keeps its question, its id gets the prefix "name/" and the
    column `task` says the name: rewards of one task go by it (`rewards.tasks.ByTask`), and `evaluate.by: task`.
    `weights` are how often each source is trained on, in units of their sum, whatever its size (0: never); null: every
    example as often as any other."""

    sources: dict[str, Source]
    weights: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if not self.sources or any("/" in name for name in self.sources):
            raise ValueError(f"data.source.sources has {list(self.sources)}: give one or more names without a slash")
        given = self.weights
        if given is None:
            return
        if set(given) != set(self.sources) or min(given.values()) < 0 or not 0 < sum(given.values()) < float("inf"):
            raise ValueError(
                f"data.source.weights is {given}: give each of {list(self.sources)} a number, 0 or more, not all 0"
            )

    def examples(self) -> Sequence[Example]:
        return [_named(name, example) for name, source in self.sources.items() for example in source.examples()]

    def task_weights(self) -> Mapping[str, float] | None:
        return self.weights

    def thought(self, example: Example) -> str:
        source, own = self._own(example)
        return source.thought(own)

    def draft(self, example: Example, chance: random.Random) -> str:
        source, own = self._own(example)
        return source.draft(own, chance)

    def description(self, example: Example, chance: random.Random) -> str:
        source, own = self._own(example)
        return source.description(own, chance)

    def _own(self, example: Example) -> tuple[Source, Example]:
        """The source of an example, and the example as that knows it."""
        name, _, own = example.id.partition("/")
        return self.sources[name], replace(example, id=own)

    def thought_agrees(self, thought: str, answer: str) -> bool | None:
        """The verdict of the first source that has one: an answer may be judged by another source than its own
        only if both claim to know it."""
        verdicts = (source.thought_agrees(thought, answer) for source in self.sources.values())
        return next((verdict for verdict in verdicts if verdict is not None), None)


@dataclass(frozen=True)
class FewShotOfEach(FewShot):
    """FewShot of each source of a `Mixed` by itself, then joined: `shots`, `evaluation`, `dev` and `pool` are
    numbers of every source. A source is divided as it is alone under the same numbers, so that what a start
    policy learnt here stands in no held-out part of FewShot, BaseToNew or CrossDataset on one of them."""

    def split(self, source: Source) -> Split:
        if not isinstance(source, Mixed):
            return super().split(source)
        splits = {name: super(FewShotOfEach, self).split(part) for name, part in source.sources.items()}

        def joined(field: str) -> list[Example]:
            return [_named(name, example) for name, split in splits.items() for example in vars(split)[field]]

        labels = tuple(dict.fromkeys(label for split in splits.values() for label in split.labels))
        return Split(joined("demonstrations"), joined("pool"), joined("dev"), joined("evaluation"), labels)


def _named(name: str, example: Example) -> Example:
    if "task" in example.columns:
        raise ValueError(
            f"{example.id} of data.source.sources.{name} has a column 'task', which is for the name of its source: "
            "give the column another name (data.columns), or do not nest Mixed"
        )
    return replace(example, id=f"{name}/{example.id}", columns={**example.columns, "task": name})
