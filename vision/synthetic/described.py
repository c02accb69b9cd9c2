"""What a policy wrote about the next picture: where a description stands in a completion, and its log-probs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmrl.types import Rollout
from vision.data.base import Example
from vision.kept import Kept
from vision.policy import VisionPolicy
from vision.transitions import TokenTransitions

OPENS, CLOSES = "<desc>", "</desc>"
Spans = Sequence[tuple[str, range] | None]
"""Of each row the description and the tokens that are nothing else, or None."""


@dataclass(frozen=True)
class Written:
    """A completion with a description, as it was drawn. `first` and `last` bound the description's own tokens."""

    number: int
    """Of the example it was written about, in the pool."""
    description: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    first: int
    last: int
    step: int
    request: int
    seed: int

    @property
    def kept(self) -> Kept:
        """As an answer that is replayed; its reward is not known before its picture is answered."""
        return Kept(self.number, self.step, 0.0, self.tokens, self.logprobs, {})

    @property
    def words(self) -> range:
        """The description's own tokens."""
        return range(self.first, self.last)

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @staticmethod
    def from_json(found: dict[str, Any]) -> Written:
        """Of `as_json`."""
        return Written(**{**found, "tokens": tuple(found["tokens"]), "logprobs": tuple(found["logprobs"])})


@dataclass(frozen=True, eq=False)
class Ready:
    """A made picture that waits to be shown."""

    written: Written
    example: Example


def description_span(policy: VisionPolicy, tokens: list[int]) -> tuple[str, range] | None:
    """The description in a completion and the tokens that are nothing else; None where there is no whole one, or none
    of its tokens is its own. A token that holds a part of a tag belongs to the form."""
    decode = policy.processor.tokenizer.decode

    def length(count: int) -> int:
        return len(decode(tokens[:count], skip_special_tokens=False))

    text = decode(tokens, skip_special_tokens=False)
    begin = text.find(OPENS)
    end = text.find(CLOSES, begin)
    if begin < 0 or end < 0:
        return None
    description = text[begin + len(OPENS) : end]
    first = bisect_left(range(len(tokens)), begin + len(OPENS), key=length)
    last = bisect_right(range(len(tokens)), end, key=length) - 1
    if not description.strip() or first >= last:
        return None
    return description.strip(), range(first, last)


def spans_of(policy: VisionPolicy, rollout: Rollout) -> Spans:
    """The description in each row, and its own tokens."""
    assert isinstance(rollout.transitions, TokenTransitions)
    rows = zip(rollout.transitions.completions, rollout.alive, strict=True)
    return [description_span(policy, tokens[alive].tolist()) for tokens, alive in rows]
