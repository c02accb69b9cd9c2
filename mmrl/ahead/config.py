"""How far collecting may run ahead of the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Ahead:
    """Rollouts are collected while the policy is updated, by a policy that is at most `staleness` updates old: the
    delayed parameter update of AsyncFlow (arXiv 2507.01663). Correct for it with `mmrl.surrogates.AIPO`, or with
    `train.update.rescore` and `mmrl.selectors.TruncatedImportance` or `IcePop`.

    With `exact` rollout n is drawn by the policy after n - staleness updates, whatever takes how long: 1 is one step
    off, 0 the same numbers as without. Then a run has the same numbers every time and after a resume, for which a
    checkpoint holds the weights of the last `staleness` versions too. Without it the newest weights are taken, so that
    staleness is often less, and no two runs need be alike.

    `processes` 0 collects in a thread; otherwise so many processes build the experiment again and share a rollout out
    as ranks do. A process that is lost over a rollout is started again, at most `tries` times for one. It reads weights
    from `weights`: "files" in the run folder, or the "network", a store of torch.distributed in the trainer's memory,
    where that folder's disk is slow.
    """

    staleness: int = 1
    exact: bool = True
    processes: int = 0
    tries: int = 3
    weights: Literal["files", "network"] = "files"

    def __post_init__(self) -> None:
        if self.staleness < 0 or self.processes < 0:
            raise ValueError(
                f"train.ahead.staleness is {self.staleness} and train.ahead.processes is {self.processes}: give 0 or "
                "more (1 is one step off), and 0 (a thread) or more"
            )
        if self.tries < 1:
            raise ValueError(f"train.ahead.tries is {self.tries}: give 1 or more")

    def version(self, number: int) -> int:
        """How many updates the policy that draws rollout `number` (from 0) must have seen."""
        return max(0, number - self.staleness)
