"""NLPO, arXiv 2210.01241: answers are drawn from the likely tokens of the policy as it was some updates ago.

allowed    the nucleus of a copy of the policy that is renewed every `renew_every` rollouts: the most likely tokens that
           have `top_p` of its probability together, at least `least` and at most `most`, and those that end an answer
drawn      pi(a | s) / sum of pi over what is allowed
ratio      of two such distributions, new and old, over the same tokens, which are recorded with every decision

So are entropies and a KL to the reference, of which the paper's takes plain log-probs. Published code does not
renormalise, and has its sampler keep the first copy for ever; here the copy that is renewed is the one that is asked.
`most` bounds what is recorded (`vision.allowed`) and is ours. A token costs a run of the copy beside that of the
policy. Held-out answers are drawn from the policy as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmrl.lagged import Lagged
from vision.allowed import Nucleus
from vision.plans.base import Plan, Rows, Wanted, whole
from vision.policy import VisionPolicy


@dataclass
class _Memory:
    rollouts: int = 0
    lagged: Lagged = field(default_factory=Lagged)


@dataclass(frozen=True)
class NLPO(Plan):
    """Groups as ever, of tokens that an older policy finds likely. With `top_p` 1 every token is allowed."""

    top_p: float = 0.9
    least: int = 100
    most: int = 1024
    renew_every: int = 20
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False, compare=False)
    remembers = True

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"rollout.plan has top_p {self.top_p}: give more than 0, and 1 to allow every token")
        if not 1 <= self.least <= self.most or self.renew_every < 1:
            raise ValueError(
                f"rollout.plan has least {self.least}, most {self.most} and renew_every {self.renew_every}: give 1 or "
                "more, no less than that, and 1 or more"
            )

    def draw(self, policy: VisionPolicy, wanted: Wanted) -> Rows:
        if self.top_p == 1:
            return whole(policy, wanted)
        memory, age = self._memory, self._memory.rollouts % self.renew_every
        if age == 0:
            memory.lagged.renew(policy, memory.rollouts)
        older = memory.lagged.of(policy, memory.rollouts - age)
        assert isinstance(older, VisionPolicy)
        memory.rollouts += 1
        return whole(policy, wanted, nucleus=Nucleus(older, self.top_p, self.least, self.most))

    def lagged(self) -> Lagged | None:
        return None if self.top_p == 1 else self._memory.lagged

    def measured(self) -> Mapping[str, float]:
        return {"nlpo/age": float((self._memory.rollouts - 1) % self.renew_every)} if self._memory.rollouts else {}

    def state_dict(self) -> dict[str, object]:
        return {"rollouts": self._memory.rollouts}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        found: Mapping[str, Any] = state
        self._memory.rollouts = int(found["rollouts"])
