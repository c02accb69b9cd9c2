"""What of a drawing's or a page's markup is right, attribute by attribute: parsed, never run or drawn.

It reads the gold program, so it is a metric for evaluation and no reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from html.parser import HTMLParser

import torch

from mmrl.types import RewardFunction, Samples, Scores
from rewards.render.programs import program_of

MOST_LETTERS = 4000
"""Of a program; what is beyond is not read."""
Part = dict[str, str]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Part] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        part = {"": tag}
        for name, value in attrs:
            if name == "style":
                for rule in (value or "").split(";"):
                    key, colon, said = rule.partition(":")
                    part |= {f"style {key.strip()}": said.strip()} if colon else {}
            else:
                part[name] = (value or "").strip()
        self.parts.append(part)


def parts_of(program: str) -> list[Part]:
    """The elements in the order in which they begin: the tag under "", attributes, and what a style sets."""
    reader = _Reader()
    reader.feed(program[:MOST_LETTERS])
    return reader.parts


@dataclass(frozen=True)
class MarkupAccuracy(RewardFunction):
    """The share of right tags, attributes and style values, element by element; too many and missing ones are wrong."""

    def __call__(self, samples: Samples) -> Scores:
        if "answer" not in samples.columns:
            raise ValueError(
                f"MarkupAccuracy compares with the column 'answer', and the data has {sorted(samples.columns)}"
            )
        found = []
        for said, answer in zip(samples.outputs, samples.columns["answer"], strict=True):
            ours, theirs = parts_of(program_of(str(said))), parts_of(str(answer))
            pairs = [(ours[i] if i < len(ours) else {}, theirs[i] if i < len(theirs) else {}) for i in
                     range(max(len(ours), len(theirs)))]  # fmt: skip
            of = sum(len(mine.keys() | gold.keys()) for mine, gold in pairs)
            right = sum(mine.get(name) == value for mine, gold in pairs for name, value in gold.items())
            found.append(right / of if of else 0.0)
        return Scores(torch.tensor(found, dtype=torch.float32), torch.ones(len(found), dtype=torch.bool))
