"""The reward of R1-Reward, arXiv 2505.02835: a right answer is worth more where the thought before it leads there.

R = format_weight format + right (1 + 0.5 c), c = 1 if the judge finds thought and answer consistent, -1 if not, 0 if it
does not say

With the weights of the paper: right, consistent and in form 2; right and inconsistent 1; wrong and in form 0.5. The
authors' code gives 1 where its verifier fails; here a judge that fails is an error, and one that does not apply says
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import checked
from rewards.functions import as_scores
from rewards.text import AnswerMatch, TagFormat, tagged


@dataclass(frozen=True)
class ConsistentAnswer(RewardFunction):
    """`consistent` scores 0.5 or more where the thought implies the answer: a judge of `rewards.judge`, say."""

    consistent: RewardFunction
    right: RewardFunction = AnswerMatch()
    format: RewardFunction = TagFormat()
    format_weight: float = 0.5

    def __call__(self, samples: Samples) -> Scores:
        parts = {
            name: checked(name, function, samples)
            for name, function in (("right", self.right), ("format", self.format), ("consistent", self.consistent))
        }
        verdict = torch.where(parts["consistent"].values >= 0.5, 1.0, -1.0)
        leads = torch.where(parts["consistent"].applicable, verdict, 0.0)
        values = self.format_weight * parts["format"].values + parts["right"].values * (1.0 + 0.5 * leads)
        return Scores(values, parts["right"].applicable, parts)


@dataclass(frozen=True)
class ThoughtImplies(RewardFunction):
    """Whether the thought leads to the answer, by rule: the column `implied` has the answer that follows from each word
    that a thought may say. 1 if that is the answer given, right or wrong, 0 if not; not applicable to a thought that
    says none of them, or several from which different answers follow. A judge of its own where there is no such
    column."""

    thought: str = "think"
    answer: str = "answer"

    def __call__(self, samples: Samples) -> Scores:
        if "implied" not in samples.columns:
            raise ValueError(f"ThoughtImplies reads the column 'implied', and the data has {sorted(samples.columns)}")
        scores: list[float | None] = []
        for output, implied in zip(samples.outputs, samples.columns["implied"], strict=True):
            assert isinstance(implied, Mapping)
            words = re.findall(r"\w+", tagged(str(output), self.thought).casefold())
            leads = {str(word).casefold(): str(answer).casefold() for word, answer in implied.items()}
            follows = {leads[word] for word in words if word in leads}
            given = AnswerMatch(self.answer).extract(str(output)).casefold()
            scores.append(float(follows == {given}) if len(follows) == 1 else None)
        return as_scores(scores)
