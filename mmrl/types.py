"""The records that pass between the parts of a run, and the interfaces that domains implement.

A token, a denoise step and an action chunk are each *a decision with a log-probability*; T counts such decisions.
Letters: B trajectories, T decisions, b and t the same inside a micro-batch.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from mmrl.bins import Bins
from mmrl.finite import check_rollout
from mmrl.statistics import Noise, Statistic


class Transitions(abc.ABC):
    """What a policy needs in order to score recorded decisions again; owned by a domain."""

    @abc.abstractmethod
    def rows(self, index: Tensor) -> Self:
        """The trajectories `index` (LongTensor, b)."""

    @abc.abstractmethod
    def to(self, device: torch.device) -> Self:
        """The same transitions on `device`."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """B, the number of trajectories."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Those of several rollouts as one, rows under each other; what is shorter is padded."""
        raise ValueError(f"several {cls.__name__} cannot be joined: set train.resample and train.ahead.processes to 0")


@dataclass(frozen=True)
class Rollout:
    """B trajectories of at most T decisions, as a collector records them.

    `mask` says that a decision enters the loss; `alive` that it exists. Rewards, discounts and values are read wherever
    `alive`, log-probs wherever `mask`. A failed trajectory has `alive` False everywhere and leaves every statistic.
    A `replayed` trajectory stands in no statistic either: its log-probs are those of then, so its ratio is not 1.
    With a demonstration the log-probs were not recorded by a sampler, so there is no ratio and no parity to speak of.

    Raises:
        ValueError: a shape that is not (B, T), a mask outside alive, gaps in alive, or a number read and not finite.
    """

    transitions: Transitions  # B
    logprobs: Tensor  # (B, T) float32, under the policy that acted
    mask: Tensor  # (B, T) bool
    alive: Tensor  # (B, T) bool
    rewards: Tensor  # (B, T)
    discounts: Tensor  # (B, T), 0 where the episode terminates
    group_ids: Tensor  # (B,) long, unique over ranks
    prompt_ids: Tensor | None = None  # (B,) long, of a prompt the same in every rollout
    values: Tensor | None = None  # (B, T)
    last_value: Tensor | None = None  # (B,), of the state after the last living decision
    ref_logprobs: Tensor | None = None  # (B, T)
    behaviour_logprobs: Tensor | None = None  # (B, T), the sampler's, when they were recomputed
    chain_ends: Tensor | None = None  # (B, T) bool, last step of a chain, inside which lambda is 1; None = all
    stats: Mapping[str, Tensor] = field(default_factory=dict)  # name -> (B, T)
    reward_parts: Mapping[str, Tensor] = field(default_factory=dict)  # name -> (B,)
    applicable: Mapping[str, Tensor] = field(default_factory=dict)  # part -> (B,) bool
    decision_size: int = 1  # dimensions of one decision, for parity per dimension
    demonstration: bool = False
    replayed: Tensor | None = None  # (B,) bool: recorded under an older policy; the return is the advantage
    staleness: Tensor | None = None  # (B,) long: updates since the policy that drew it; None: none

    def __post_init__(self) -> None:
        check_rollout(self)

    def __len__(self) -> int:
        return self.logprobs.shape[0]

    def returns(self) -> Tensor:
        """Undiscounted sum of the rewards of each trajectory (B,)."""
        return torch.where(self.alive, self.rewards, 0.0).sum(-1)

    def fresh(self) -> Tensor:
        """Which trajectories (B,) the policy of this step drew."""
        return self.alive.any(-1) if self.replayed is None else self.alive.any(-1) & ~self.replayed

    def with_(self, **changes: object) -> Rollout:
        """A copy with some fields replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Batch:
    """A micro-batch: the only thing a loss may read besides the policy's own evaluation."""

    transitions: Transitions  # b
    steps: Tensor  # (b, t) long: which decisions of each trajectory
    old_logprobs: Tensor  # (b, t)
    advantages: Tensor  # (b, t)
    mask: Tensor  # (b, t) bool
    scale: Tensor  # (b, t): the loss is the sum of scale x weight x L over all micro-batches
    weights: Tensor  # (b, t), from the selectors
    group_ids: Tensor  # (b,)
    ref_logprobs: Tensor | None = None  # (b, t)
    behaviour_logprobs: Tensor | None = None  # (b, t)
    returns: Tensor | None = None  # (b, t), targets of a critic
    old_values: Tensor | None = None  # (b, t)
    replayed: Tensor | None = None  # (b,) bool
    staleness: Tensor | None = None  # (b,) long
    rewards: Tensor | None = None  # (b,), of whole trajectories, shaped
    stats: Mapping[str, Tensor] = field(default_factory=dict)  # (b, t): of the acting policy, and what parts planned
    current: Mapping[str, Tensor] = field(default_factory=dict)  # (b, t) with gradient: `Evaluation.stats`


@dataclass(frozen=True)
class Evaluation:
    """What a policy says about recorded decisions."""

    logprobs: Tensor  # (b, t) with gradient
    entropy: Tensor | None = None  # (b, t)
    values: Tensor | None = None  # (b, t)
    means: Tensor | None = None  # (b, t, ...) of a Gaussian policy
    stds: Tensor | None = None  # (b, t, ...)
    exact_kl: Tensor | None = None  # (b, t) with gradient, KL to `Policy.kl_reference` in closed form
    outcome_rewards: Tensor | None = None  # (b, t) with gradient, of the outcome of the last decision; else 0
    stats: Mapping[str, Tensor] = field(default_factory=dict)  # name -> (b, t) with gradient: `Policy.report`
    value_logits: Tensor | None = None  # (b, t, bins), where the critic classifies; values are then their mean
    bins: Bins | None = None


class Policy(nn.Module, abc.ABC):
    """A generative model whose decisions have a density. Call it, never `.forward`: DDP and FSDP hook `__call__`."""

    windowable: bool = True
    """Whether a window of the decisions of a trajectory can be scored without the others."""
    report_entropy: bool = False
    report_outcome: bool = False
    """Set by the trainer when the algorithm needs `Evaluation.entropy`, or `.outcome_rewards`, with gradient."""
    kl_reference: tuple[Policy, ...] = ()
    """Likewise for `.exact_kl`: the reference, in a tuple since it is no part of the policy."""
    report: tuple[Statistic, ...] = ()
    """Likewise for `Evaluation.stats`, by name."""

    @property
    def noise(self) -> Noise | None:
        """Where the spread of its decisions comes from; None where it does not say, and then reports no statistics."""
        return None

    @abc.abstractmethod
    def forward(self, transitions: Transitions, steps: Tensor) -> Evaluation:
        """Score the decisions `steps` (b, t) of `transitions` (b)."""

    def weights_changed(self) -> None:
        """Called after every optimiser step."""

    def critic_parameters(self) -> Sequence[nn.Parameter]:
        """Those of a critic that shares none with the policy; such a critic can be trained apart."""
        return ()

    @abc.abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Write what `from_pretrained` of the library this model comes from can load."""

    @abc.abstractmethod
    def load_weights(self, folder: Path) -> None:
        """Read back, in place and exactly, what `save_pretrained` wrote."""


class Collector(abc.ABC):
    """Acts with the policy and records what happened."""

    @abc.abstractmethod
    def collect(self, policy: Policy, generator: torch.Generator) -> Rollout:
        """One rollout of the policy (unwrapped, in eval mode, no gradient)."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, object]:
        """JSON-able position in the data and environments."""

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from `state_dict`."""

    def measured(self) -> Mapping[str, float]:
        """Figures of the last rollout that are no mean over its decisions or trajectories, by metric name."""
        return {}

    def cpu_s(self) -> float:
        """CPU seconds that living processes of its own have used so far."""
        return 0.0


@dataclass(frozen=True)
class Samples:
    """What is to be rewarded: N outputs (texts, pictures, episodes) with their dataset columns."""

    outputs: Sequence[object]  # N
    columns: Mapping[str, Sequence[object]] = field(default_factory=dict)  # name -> N
    ids: Sequence[str] = ()  # N, of the examples, for messages

    def __len__(self) -> int:
        return len(self.outputs)


@dataclass(frozen=True)
class Scores:
    """Rewards of N samples. "Not applicable" is the bool; NaN is always an error."""

    values: Tensor  # (N,) float32, 0 where not applicable
    applicable: Tensor  # (N,) bool
    parts: Mapping[str, Scores] = field(default_factory=dict)


class RewardFunction(abc.ABC):
    """Scores a batch of samples."""

    @abc.abstractmethod
    def __call__(self, samples: Samples) -> Scores:
        """One score per sample, in order."""


@dataclass(frozen=True)
class Estimate:
    """A measured figure with its 95 % interval and the number of cases it rests on."""

    value: float
    low: float
    high: float
    n: int


class Evaluator(abc.ABC):
    """Held-out evaluation, identical before and after training."""

    @abc.abstractmethod
    def evaluate(self, policy: Policy, generator: torch.Generator) -> dict[str, Estimate]:
        """Metric name -> estimate. The policy is unwrapped and in eval mode."""

    def between(self, policy: Policy, generator: torch.Generator) -> dict[str, Estimate]:
        """The same in the course of a run, where it may cost less: fewer cases, say."""
        return self.evaluate(policy, generator)

    @abc.abstractmethod
    def samples(self, policy: Policy, generator: torch.Generator, folder: Path, count: int) -> None:
        """Write `count` samples for people to look at: `samples.json` and pictures beside it."""
