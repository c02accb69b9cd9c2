"""Truncated importance sampling (TIS), https://fengyao.notion.site/off-policy-rl: corrects for a sampler whose
log-probs differ from the trainer's, by its precision or its age.

w = min(pi_old / mu, cap), with mu the sampler, pi_old the trainer before the update

There is a mu of its own where old log-probs are computed again: in reduced precision, or with `train.update.rescore`.
The denominator keeps everything.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.algorithm import Credit, Selector
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Rollout


def sampler_ratio(part: Selector, rollout: Rollout) -> Tensor:
    """pi_old / mu (B, T), 1 outside the mask.

    Raises:
        ValueError: the rollout holds one set of log-probs.
    """
    if rollout.behaviour_logprobs is None:
        raise ValueError(
            f"{type(part).__name__} reads Rollout.behaviour_logprobs, the sampler's own, and there are none: set "
            "train.update.rescore to true, or leave it out"
        )
    return log_ratio(rollout.logprobs, rollout.behaviour_logprobs, rollout.mask).exp()


@dataclass(frozen=True)
class TruncatedImportance(Selector):
    """Weights decisions by how much likelier the trainer finds them than the sampler did, at most `cap`."""

    reads_sampler = True

    cap: float = 2.0

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise ValueError(f"TruncatedImportance.cap is {self.cap}: give 1 or more, 2 is usual")

    def plan(self, rollout: Rollout, credit: Credit) -> Tensor:
        return sampler_ratio(self, rollout).clamp(max=self.cap)
