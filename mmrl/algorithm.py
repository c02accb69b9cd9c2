"""An algorithm is a record of parts; each part is its own config. A paper is a composition of these in
YAML, or one new file beside its siblings. See docs/add-an-algorithm.md."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.types import Batch, Evaluation, Rollout

Stats = dict[str, Tensor]
"""Name -> (b, t); the update reports the mean over the mask of the whole batch."""


@dataclass(frozen=True)
class Credit:
    """What each decision gets. Zero where the mask is False."""

    advantages: Tensor  # (B, T)
    returns: Tensor | None = None  # (B, T), targets of a critic


class Shaper(abc.ABC):
    """Changes rewards before credit is assigned."""

    needs_reference: bool = False

    @abc.abstractmethod
    def __call__(self, rollout: Rollout) -> Rollout:
        """The rollout with other rewards."""


class Advantage(abc.ABC):
    """Rewards to credit, on whole groups of all ranks."""

    @abc.abstractmethod
    def __call__(self, rollout: Rollout) -> Credit:
        """Credit of every decision, no gradient."""

    def state_dict(self) -> dict[str, object]:
        """What it remembers of past rollouts, as JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:  # noqa: B027  most remember nothing
        """Remember what `state_dict` told."""


class Surrogate(abc.ABC):
    """A policy-gradient loss per decision."""

    whole_trajectories: bool = False
    """Whether a loss needs all decisions of a trajectory at once, so that windows are not allowed."""

    @abc.abstractmethod
    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        """Loss (b, t) to be minimised, with gradient, and statistics."""


class Selector(abc.ABC):
    """Weights on decisions, planned once on the whole rollout of all ranks, no gradient."""

    shrinks_denominator: bool = False
    """True: a decision of weight 0 also leaves the mean. False: it stays, so the step is smaller."""

    @abc.abstractmethod
    def plan(self, rollout: Rollout, credit: Credit) -> Tensor:
        """Weights (B, T), 0 or more."""


class Regulariser(abc.ABC):
    """A penalty per decision, already multiplied by its coefficient."""

    needs_reference: bool = False
    needs_entropy: bool = False
    needs_outcome: bool = False
    needs_exact_kl: bool = False

    @abc.abstractmethod
    def __call__(self, evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Stats]:
        """Penalty (b, t) with gradient, and statistics."""


class ValueLoss(abc.ABC):
    """A critic's loss per decision."""

    @abc.abstractmethod
    def __call__(self, evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Stats]:
        """Loss (b, t) with gradient, already multiplied by its coefficient."""


class Aggregate(abc.ABC):
    """How losses of decisions become one number."""

    @abc.abstractmethod
    def __call__(self, mask: Tensor) -> Tensor:
        """Scale (B, T) of each decision, from the mask of one minibatch over all ranks."""


@dataclass(frozen=True)
class Algorithm:
    """A policy-gradient method: rewards -> shapers -> advantage -> surrogate x selectors + regularisers
    + value loss, put together by the aggregate."""

    advantage: Advantage
    surrogate: Surrogate
    aggregate: Aggregate
    shapers: tuple[Shaper, ...] = ()
    selectors: tuple[Selector, ...] = ()
    regularisers: tuple[Regulariser, ...] = ()
    value_loss: ValueLoss | None = None
    replayed: Surrogate | None = None
    """Of trajectories that an older policy drew; null: the same surrogate."""

    @property
    def needs_reference(self) -> bool:
        """Whether any part reads `ref_logprobs`."""
        shaped = any(part.needs_reference for part in self.shapers)
        return shaped or any(part.needs_reference for part in self.regularisers)

    @property
    def needs_entropy(self) -> bool:
        """Whether any part needs the policy's entropy with gradient."""
        return any(part.needs_entropy for part in self.regularisers)

    @property
    def needs_outcome(self) -> bool:
        """Whether any part differentiates the reward of the outcome."""
        return any(part.needs_outcome for part in self.regularisers)

    @property
    def needs_exact_kl(self) -> bool:
        """Whether any part reads `Evaluation.exact_kl`."""
        return any(part.needs_exact_kl for part in self.regularisers)

    @property
    def skips_zero_advantage(self) -> bool:
        """Whether a decision of zero advantage has zero gradient: no penalty and no critic acts on it."""
        return not self.regularisers and self.value_loss is None

    def shape(self, rollout: Rollout) -> Rollout:
        """The rollout after every shaper, in order."""
        for shaper in self.shapers:
            rollout = shaper(rollout)
        return rollout

    def assign(self, rollout: Rollout) -> Credit:
        """Credit (B, T). Replayed trajectories bring theirs, and stand in nobody's statistics.

        Raises:
            ValueError: some are replayed and there is a critic, which has no targets for them.
        """
        if rollout.replayed is None:
            return self.advantage(rollout)
        if self.value_loss is not None:
            raise ValueError(
                "algorithm.value_loss is set and the rollout has replayed trajectories, whose values nobody recorded: "
                "set it to null"
            )
        own = rollout.fresh()[:, None]
        credit = self.advantage(rollout.with_(alive=rollout.alive & own, mask=rollout.mask & own))
        brought = torch.where(rollout.mask, rollout.returns()[:, None], 0.0)
        return Credit(torch.where(rollout.replayed[:, None], brought, credit.advantages))

    def loss(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        """Loss (b, t) of a batch, with gradient, and statistics."""
        found, stats = self.surrogate(logprobs, batch)
        if self.replayed is None or batch.replayed is None or not bool(batch.replayed.any()):
            return found, stats
        replayed, _ = self.replayed(logprobs, batch)
        return torch.where(batch.replayed[:, None], replayed, found), stats

    def weigh(self, rollout: Rollout, credit: Credit) -> tuple[Tensor, Tensor]:
        """Weights (B, T) of all selectors together, and the mask that counts in the denominator."""
        weights = torch.ones_like(rollout.logprobs)
        counted = rollout.mask
        for selector in self.selectors:
            planned = selector.plan(rollout, credit)
            weights = weights * planned
            if selector.shrinks_denominator:
                counted = counted & (planned > 0)
        return weights, counted
