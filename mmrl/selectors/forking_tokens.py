"""The 80/20 rule, arXiv 2506.01939: only decisions of high entropy, where an answer forks, teach.

w = 1[H >= quantile(H, 1 - share)], over all decisions of the rollout.

The scope is the whole rollout of all ranks (the paper: a batch); public versions rank a micro-batch (`per_micro_batch`)
or each answer by itself. The denominator keeps the decisions of weight 0, as in TRL, so that the step is smaller; with
`shrinks_denominator`, as in other versions, the same learning rate moves the policy about 1 / share times as far.
Penalties act everywhere in any case.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.ranking import Decisions, quantile
from mmrl.selectors.ranking import Ranking
from mmrl.statistics import Entropy, Statistic


@dataclass(frozen=True)
class ForkingTokens(Ranking):
    """Weight 1 on the `share` of decisions with the highest entropy, 0 elsewhere."""

    share: float = 0.2
    shrinks_denominator: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"ForkingTokens.share is {self.share}: give more than 0, at most 1; 0.2 is usual")

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return (Entropy(),)

    def weights(self, seen: Decisions) -> Tensor:
        entropy = seen.stats["entropy"].double()
        return (entropy >= quantile(entropy, seen.mask, 1.0 - self.share)).float()
