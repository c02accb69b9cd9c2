"""A reward without labels: to agree with the collective (RLCCF, "Wisdom of the Crowd", 2025).

Models m = 1..M give K_m answers each to one question. A model's self-consistency is the share of its commonest answer,
SC_m = max_a count_m(a) / K_m; the vote is V(a) = sum_m SC_m count_m(a) / K_m, and the reward 1 for its winner. With one
model it is a majority vote. Answers that cannot be read never win. Watch it: nothing here knows what is true, and a
policy that always says the same is unanimous. `agreement` and the accuracy on some labelled set are what tells."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mmrl.types import RewardFunction, Samples, Scores
from rewards.pictures.base import groups_of
from rewards.text import tagged


def votes(answers: Mapping[str, Sequence[str | None]]) -> dict[str, float]:
    """V(a) of the answers of each model; None is an answer that could not be read."""
    found: dict[str, float] = defaultdict(float)
    for given in answers.values():
        counts = Counter(answer for answer in given if answer is not None)
        if counts:
            consistency = max(counts.values()) / len(given)
            for answer, count in counts.items():
                found[answer] += consistency * count / len(given)
    return dict(found)


def winner(found: Mapping[str, float]) -> str | None:
    """The answer with the most votes; None where there is none, or several have as many."""
    if not found:
        return None
    best = max(found.values())
    first = [answer for answer, vote in found.items() if abs(vote - best) <= 1e-12]
    return first[0] if len(first) == 1 else None


@dataclass(frozen=True)
class Collective(RewardFunction):
    """1 where the answer inside <`tag`> is the vote's winner in its group; does not apply where the vote has none, nor
    with `skip_unanimous` where there is nothing to learn. The column `model` says who answered; without it there is one
    model. The part `agreement` is the share of the group that has the winner."""

    tag: str = "answer"
    model: str = "model"
    skip_unanimous: bool = False

    def __call__(self, samples: Samples) -> Scores:
        values, applicable = torch.zeros(len(samples)), torch.zeros(len(samples), dtype=torch.bool)
        agreement = torch.zeros(len(samples))
        answers = [tagged(str(output), self.tag).casefold() or None for output in samples.outputs]
        models = [str(name) for name in samples.columns.get(self.model, ["one"] * len(samples))]
        for ids in groups_of(samples, "Collective").values():
            given: dict[str, list[str | None]] = defaultdict(list)
            for i in ids:
                given[models[i]].append(answers[i])
            best = winner(votes(given))
            right = [float(answers[i] == best) for i in ids]
            if best is None or (self.skip_unanimous and all(right)):
                continue
            values[ids], applicable[ids] = torch.tensor(right), True
            agreement[ids] = sum(right) / len(right)
        return Scores(values, applicable, {"agreement": Scores(agreement, applicable)})
