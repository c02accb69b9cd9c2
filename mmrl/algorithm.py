"""An algorithm is a record of parts, each its own config; a paper is a composition in YAML, or one new file."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.part import Part
from mmrl.statistics import Statistic, asked
from mmrl.types import Batch, Evaluation, Rollout

Stats = dict[str, Tensor]
"""Name -> (b, t); the update reports the mean over the mask of the whole batch."""


@dataclass(frozen=True)
class Credit:
    """What each decision gets. Zero where the mask is False."""

    advantages: Tensor  # (B, T)
    returns: Tensor | None = None  # (B, T), targets of a critic


class Shaper(Part, abc.ABC):
    """Changes rewards before credit is assigned; called once a rollout."""

    @abc.abstractmethod
    def __call__(self, rollout: Rollout) -> Rollout:
        """The rollout with other rewards."""


class Advantage(Part, abc.ABC):
    """Rewards to credit, on whole groups of all ranks."""

    @abc.abstractmethod
    def __call__(self, rollout: Rollout) -> Credit:
        """Credit of every decision, no gradient."""


class Surrogate(Part, abc.ABC):
    """A policy-gradient loss per decision."""

    whole_trajectories: bool = False
    """Whether a loss needs all decisions of a trajectory at once, so that windows are not allowed."""
    whole_groups: bool = False
    """Whether it needs all trajectories of a group at once."""
    silent_at_zero: bool = True
    """Whether a decision of advantage 0 has no gradient, so that it need not be computed."""

    @abc.abstractmethod
    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        """Loss (b, t) to be minimised, with gradient, and statistics."""


class Selector(Part, abc.ABC):
    """Weights on decisions, planned once on the whole rollout of all ranks, no gradient."""

    shrinks_denominator: bool = False
    """True: a decision of weight 0 also leaves the mean. False: it stays, so the step is smaller."""
    per_micro_batch: bool = False
    """Whether it weighs by `again`, among all the decisions of a micro-batch."""

    @abc.abstractmethod
    def plan(self, rollout: Rollout, credit: Credit) -> Tensor:
        """Weights (B, T), 0 or more."""

    def again(self, logprobs: Tensor, batch: Batch) -> Tensor | None:
        """Weights (b, t) of one micro-batch, of the policy as it is now; they never shrink the denominator, which is
        counted before. None, as most: what was planned is all."""
        return None


class Regulariser(Part, abc.ABC):
    """A penalty per decision, already multiplied by its coefficient."""

    @property
    def only_where(self) -> str | None:
        """Which of its notes (B, T) bool is True wherever it acts; None: it may act anywhere."""
        return None

    def plan(self, rollout: Rollout, credit: Credit) -> dict[str, Tensor]:
        """What it wants to find in `Batch.stats`, by name (B, T): planned once on the whole rollout of all ranks."""
        return {}

    @abc.abstractmethod
    def __call__(self, evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Stats]:
        """Penalty (b, t) with gradient, and statistics."""


class ValueLoss(Part, abc.ABC):
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
    def parts(self) -> tuple[Part, ...]:
        """All that may need something; an aggregate never does."""
        critic = () if self.value_loss is None else (self.value_loss,)
        other = () if self.replayed is None else (self.replayed,)
        return (*self.shapers, self.advantage, *self.selectors, self.surrogate, *other, *self.regularisers, *critic)

    @property
    def needs_reference(self) -> bool:
        """Whether any part reads `ref_logprobs`."""
        return any(part.needs_reference for part in self.parts)

    @property
    def needs_entropy(self) -> bool:
        """Whether any part needs the policy's entropy with gradient."""
        return any(part.needs_entropy for part in self.parts)

    @property
    def needs_outcome(self) -> bool:
        """Whether any part differentiates the reward of the outcome."""
        return any(part.needs_outcome for part in self.parts)

    @property
    def needs_exact_kl(self) -> bool:
        """Whether any part reads `Evaluation.exact_kl`."""
        return any(part.needs_exact_kl for part in self.parts)

    @property
    def plans_on(self) -> tuple[Statistic, ...]:
        """Statistics of the acting policy that parts want in the rollout."""
        return asked(statistic for part in self.parts for statistic in part.plans_on)

    @property
    def reads(self) -> tuple[Statistic, ...]:
        """Statistics of the policy as it is that parts want in every evaluation."""
        return asked(statistic for part in self.parts for statistic in part.reads)

    @property
    def skips_zero_advantage(self) -> bool:
        """Whether a decision of zero advantage that no penalty has noted has no say."""
        read = any(selector.per_micro_batch for selector in self.selectors) or self.value_loss is not None
        return self.surrogate.silent_at_zero and not read and all(part.only_where for part in self.regularisers)

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

    def weigh(self, rollout: Rollout, credit: Credit) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Weights (B, T) of all selectors together, the mask that counts in the denominator, and on how many trained
        decisions each had something to say."""
        weights = torch.ones_like(rollout.logprobs)
        counted, touched = rollout.mask, {}
        for selector in self.selectors:
            planned = selector.plan(rollout, credit)
            weights = weights * planned
            touched[f"plan/{type(selector).__name__}"] = float((rollout.mask & (planned != 1)).sum())
            if selector.shrinks_denominator:
                counted = counted & (planned > 0)
        return weights, counted, touched

    def note(self, rollout: Rollout, credit: Credit) -> tuple[dict[str, Tensor], dict[str, float]]:
        """What penalties want to find in every batch (B, T), and how many trained decisions each of them chose."""
        notes: dict[str, Tensor] = {}
        chosen: dict[str, float] = {}
        for regulariser in self.regularisers:
            for name, noted in regulariser.plan(rollout, credit).items():
                notes[name] = noted
                if noted.dtype == torch.bool:
                    chosen[f"plan/{name}"] = float((rollout.mask & noted).sum())
        return notes, chosen

    def again(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """Weights (b, t) of what selectors say of one micro-batch."""
        weights = torch.ones_like(logprobs)
        for selector in self.selectors:
            found = selector.again(logprobs.detach(), batch)
            weights = weights if found is None else weights * found
        return weights.detach()

    def state_dict(self) -> dict[str, object]:
        """What its parts remember, each under its place and class; the advantage's is kept apart."""
        return {key: state for key, part in self._named() if (state := part.state_dict())}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Remember what `state_dict` told; a part that was not there then starts anew."""
        for key, part in self._named():
            if key in state:
                found = state[key]
                assert isinstance(found, Mapping)
                part.load_state_dict(found)

    def _named(self) -> list[tuple[str, Part]]:
        others = (part for part in self.parts if part is not self.advantage)
        return [(f"{number}.{type(part).__name__}", part) for number, part in enumerate(others)]
