"""Rule-based rewards of a text answer (CLS-RL, arXiv 2503.16188, section 3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmrl.types import RewardFunction, Samples, Scores


def tagged(text: str, tag: str) -> str:
    """What stands in the first <tag>...</tag>, stripped; "" if there is none."""
    found = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return found.group(1).strip() if found else ""


def _scores(values: Sequence[float]) -> Scores:
    return Scores(torch.tensor(values, dtype=torch.float32), torch.ones(len(values), dtype=torch.bool))


def _answers(samples: Samples, name: str) -> Sequence[str]:
    if "answer" not in samples.columns:
        raise ValueError(f"{name} compares with the column 'answer', and the data has {sorted(samples.columns)}")
    return [str(answer) for answer in samples.columns["answer"]]


@dataclass(frozen=True)
class TagFormat(RewardFunction):
    """1 if the whole completion is these tags in this order, with anything inside and space between.
    `optional` tags may be missing."""

    tags: tuple[str, ...] = ("think", "answer")
    optional: tuple[str, ...] = ()

    def __call__(self, samples: Samples) -> Scores:
        parts = []
        for tag in self.tags:
            part = rf"<{tag}>(?:(?!</?{tag}>).)*</{tag}>\s*"
            parts.append(f"(?:{part})?" if tag in self.optional else part)
        pattern = re.compile("".join(parts), re.DOTALL)
        return _scores([float(pattern.fullmatch(str(text).strip()) is not None) for text in samples.outputs])


@dataclass(frozen=True)
class AnswerMatch(RewardFunction):
    """1 if the text inside <answer>, or the whole text without tags, is the gold answer up to case and
    surrounding space."""

    tag: str = "answer"

    def __call__(self, samples: Samples) -> Scores:
        gold = _answers(samples, "AnswerMatch")
        found = [self.extract(str(text)) for text in samples.outputs]
        return _scores([float(f.casefold() == g.strip().casefold()) for f, g in zip(found, gold, strict=True)])

    def extract(self, text: str) -> str:
        """The answer that `text` gives."""
        return tagged(text, self.tag) if f"<{self.tag}>" in text else text.strip()


@dataclass(frozen=True)
class ExactMatch(RewardFunction):
    """1 if the whole completion is the gold answer, letter for letter (No-Thinking-CLS-RL)."""

    def __call__(self, samples: Samples) -> Scores:
        gold = _answers(samples, "ExactMatch")
        return _scores([float(str(text) == g) for text, g in zip(samples.outputs, gold, strict=True)])
