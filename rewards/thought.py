"""Rewards of answers with a thought before them: score the answer alone (RLMT, arXiv 2509.20357), and pay for having
looked around (RLSP, arXiv 2502.06773)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal

from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import Part, checked
from rewards.pictures.base import scores_of

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerOnly(RewardFunction):
    """`use`, a reward model say, sees what stands between `opening` and `closing` and nothing of the thought. With
    `strict`, text without both is scored as `nothing`, so that a lost format costs what an empty answer does; else what
    comes after `opening`, or all of it. RLMT takes the first `opening`, which a thought can write too; `last` is
    safer."""

    use: RewardFunction | str
    opening: str = "<answer>"
    closing: str = "</answer>"
    which: Literal["first", "last"] = "last"
    strict: bool = True
    nothing: str = "[NULL]"

    def __post_init__(self) -> None:
        if not self.opening or not self.closing:
            raise ValueError("AnswerOnly.opening and closing are empty: give what stands before and after an answer")

    def answer(self, text: str) -> str:
        """What is scored of `text`."""
        cut = text.partition(self.opening) if self.which == "first" else text.rpartition(self.opening)
        if not cut[1]:
            return self.nothing if self.strict else text
        found, end, _ = cut[2].partition(self.closing)
        return found.strip() if end or not self.strict else self.nothing

    def __call__(self, samples: Samples) -> Scores:
        answers = [self.answer(str(output)) for output in samples.outputs]
        return checked("use", Part(self.use).function, replace(samples, outputs=answers))


@dataclass(frozen=True)
class Exploration(RewardFunction):
    """-strength / n, where n is the length of the text before `opening` in tokens of four characters, at least `least`:
    more thought is better, and ever less so. Held by `strength` < `least`, a right answer (1) beats any wrong one (0)
    whatever their lengths; RLSP's own 1000 does not do that for answers under 804 tokens."""

    strength: float = 50.0
    least: float = 64.0
    opening: str = "<answer>"

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ValueError(f"Exploration.least is {self.least}: give 1 token or more")
        if not 0 <= self.strength < self.least:
            raise ValueError(
                f"Exploration.strength is {self.strength} and least {self.least}: give a strength below least, or a "
                "long wrong answer is worth more than a short right one"
            )

    def __call__(self, samples: Samples) -> Scores:
        lengths = [len(str(output).partition(self.opening)[0]) / 4 for output in samples.outputs]
        return scores_of([-self.strength / max(length, self.least) for length in lengths])
