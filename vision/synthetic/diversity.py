"""How much a policy's answers to one picture differ: what GRPO learns from, and what a description is paid for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmrl.coverage import answer_entropy


def spread(scores: Tensor, group: int) -> Tensor:
    """Twice the standard deviation (n) of the scores (P x group,) in each group -> (P,): for scores of 0 and 1 it is 0
    where all agree and 1 where half of them are right (Syn-GRPO, arXiv 2511.19343, measures response diversity by the
    variance of the accuracy reward; the factor is ours)."""
    return 2.0 * scores.view(-1, group).std(-1, correction=0)


def group_entropy(answers: Sequence[str], group: int) -> float:
    """Mean over groups of the entropy, in nats, of the answers that occur in it; 0 without any."""
    groups = [answers[start : start + group] for start in range(0, len(answers), group)]
    return sum(answer_entropy(members) for members in groups) / max(1, len(groups))


class Baseline:
    """The moving mean that a spread is compared with (diversity smoothing): as a policy learns, its answers agree more
    on every picture, and no description is to blame for that."""

    def __init__(self, keep: float) -> None:
        self.keep = keep
        self.value: float | None = None

    def include(self, spreads: Sequence[float]) -> None:
        """Let the mean of new spreads in: value <- keep x value + (1 - keep) x mean."""
        if not spreads:
            return
        mean = sum(spreads) / len(spreads)
        self.value = mean if self.value is None else self.keep * self.value + (1.0 - self.keep) * mean
