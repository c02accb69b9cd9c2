"""What a domain gives the trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mmrl.algorithm import Algorithm
from mmrl.batching import UpdateConfig
from mmrl.statistics import TOLD
from mmrl.types import Collector, Evaluator, Policy

if TYPE_CHECKING:
    from mmrl.lagged import Lagged  # which draws on what is made of parts


def nothing() -> None:
    """There is nothing to end."""


@dataclass(frozen=True)
class Parts:
    """A policy, what it acts in, how it is judged and how it learns."""

    policy: Policy
    collector: Collector
    evaluator: Evaluator
    algorithm: Algorithm
    reference: Policy | None = None
    primary_metric: str | None = None
    """What a run is judged by; None: the evaluator's first figure."""
    lagged: Lagged | None = None
    """The policy as it was some updates ago, if the collector acts with that too."""
    close: Callable[[], None] = nothing
    """Ends what they hold besides memory, processes say; twice is fine."""

    def to(self, device: torch.device) -> None:
        """Move the policy and its reference."""
        self.policy.to(device)
        if self.reference is not None:
            self.reference.to(device)

    def ask_policy(self) -> None:
        """Let the policy report what the algorithm wants to know."""
        self.policy.report_entropy = self.algorithm.needs_entropy
        self.policy.report_outcome = self.algorithm.needs_outcome
        self.policy.report = self.algorithm.reads

    def check(self, update: UpdateConfig) -> None:
        """That the parts suit each other and how they are used.

        Raises:
            ValueError: they do not.
        """
        policy, algorithm = self.policy, self.algorithm
        if (algorithm.needs_reference or algorithm.needs_exact_kl) and self.reference is None:
            raise ValueError("the algorithm has a KL to the reference and the domain gave no reference policy")
        for part in algorithm.parts:
            if policy.noise is not None:
                objection = part.objection(policy.noise)
                if objection:
                    told = f"the decisions of {type(policy).__name__} are {TOLD[policy.noise]}"
                    raise ValueError(f"{told}, and {type(part).__name__} {objection}")
            elif part.plans_on or part.reads:
                raise ValueError(
                    f"{type(part).__name__} reads {', '.join(s.name for s in (*part.plans_on, *part.reads))}, and "
                    f"{type(policy).__name__} reports no statistics: define its `noise` and `Evaluation.stats`"
                )
        windows = update.micro_steps is not None
        if windows and (algorithm.surrogate.whole_trajectories or not policy.windowable):
            raise ValueError(
                f"train.update.micro_steps is {update.micro_steps}, and {type(policy).__name__} with "
                f"{type(algorithm.surrogate).__name__} needs whole trajectories: set it to null and lower micro_rows"
            )
