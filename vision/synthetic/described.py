"""What a policy wrote about the next picture: where a description stands in a completion, and its log-probs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vision.policy import VisionPolicy

OPENS, CLOSES = "<desc>", "</desc>"


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

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @staticmethod
    def from_json(found: dict[str, Any]) -> Written:
        """Of `as_json`."""
        return Written(**{**found, "tokens": tuple(found["tokens"]), "logprobs": tuple(found["logprobs"])})


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
    first = _first(len(tokens), lambda count: length(count) >= begin + len(OPENS))
    last = _first(len(tokens), lambda count: length(count) > end) - 1
    if not description.strip() or first >= last:
        return None
    return description.strip(), range(first, last)


def _first(most: int, holds: Any) -> int:
    """The smallest count up to `most` from which on `holds`, by halving."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
