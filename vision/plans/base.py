"""What a rollout plan is, and how an answer is begun with tokens of another one.

A branch is a row as any other: its completion is whole, so that it is scored, rewarded and measured as an answer is,
and only the tokens that it drew itself are trained. So a token is trained in the one row in which it was drawn.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.lagged import Lagged
from mmrl.runtime import Runtime
from mmrl.types import Rollout
from vision.allowed import Nucleus
from vision.data.base import Example
from vision.policy import VisionPolicy
from vision.sampling import Drawn, draw, go_on
from vision.transitions import Prompt, TokenTransitions

if TYPE_CHECKING:
    from vision.collector import AnswerCollector


@dataclass(frozen=True)
class Rows:
    """B answers, of which each may have begun with tokens of another."""

    drawn: Drawn  # B
    first: Tensor  # (B,) long: the first token that the row drew itself
    behaviour: Tensor | None = None  # (B, C), log-probs of when they were drawn, where those of `drawn` are newer

    def own(self) -> Tensor:
        """The tokens (B, C) that a row drew itself."""
        alive = self.drawn.alive
        return alive & (torch.arange(alive.shape[1], device=alive.device) >= self.first[:, None])


@dataclass(frozen=True)
class Wanted:
    """`group` answers to each of P prompts, of at most `limit` tokens. `keep_prefill` leaves the run of the prompts to
    the policy, where they are drawn first."""

    prompts: list[Prompt]  # P
    group: int
    limit: int
    generator: torch.Generator
    keep_prefill: bool = False

    def asked(self, policy: VisionPolicy, completions: Tensor) -> TokenTransitions:
        """`completions` (P group, C) of the prompts, those of a prompt under each other."""
        device = policy.banned.device
        index = torch.arange(len(self.prompts), device=device).repeat_interleave(self.group)
        return TokenTransitions(tuple(prompt.to(device) for prompt in self.prompts), index, completions.to(device))


class Plan(abc.ABC):
    """How a group of answers comes about. A frozen dataclass; each collector takes a copy, with a memory of its own."""

    remembers: bool = False
    """Whether a rollout depends on those before it."""
    replays: bool = False
    """Whether its rows may hold tokens of an earlier step."""
    together: int = 1
    """So many examples next to each other in the pool are asked in one step: the order is of such bunches."""
    chooses: bool = False
    """Whether `take` has an order of its own."""

    def check(self, group: int, max_new_tokens: int) -> None:  # noqa: B027 - most can make any
        """Raises:
        ValueError: it cannot make groups of `group` answers of at most `max_new_tokens`.
        """

    def check_pool(self, examples: Sequence[Example], prompts: int, weighted: bool, runtime: Runtime) -> None:
        """Raises:
        ValueError: it cannot ask `prompts` of these examples a step, or not by the weights of their tasks, or not on
            so many processes.
        """
        name, count = type(self).__name__, self.together
        if self.remembers and runtime.world > 1:
            raise ValueError(
                f"rollout.plan is {name} on {runtime.world} processes, and a checkpoint has what one of them "
                "remembers: run it on one, or set plan to null"
            )
        if weighted and (self.chooses or count > 1):
            raise ValueError(
                f"rollout.plan is {name}, which goes through the examples in its own way, and data.source has "
                "weights of tasks: set one of them to null"
            )
        if prompts % (count * runtime.world) or len(examples) % count:
            raise ValueError(
                f"rollout.plan is {name}, which asks {count} at a time, and there are {prompts} prompts on "
                f"{runtime.world} processes out of {len(examples)} examples: give multiples of {count * runtime.world} "
                f"and {count}"
            )

    def take(self, numbers: Sequence[int], pool: int) -> list[int]:
        """Which of the `pool` examples are asked in this step, as many, where it is the turn of `numbers`."""
        return list(numbers)

    @abc.abstractmethod
    def draw(self, policy: VisionPolicy, wanted: Wanted) -> Rows:
        """The answers, those of a prompt under each other."""

    def then(
        self, policy: VisionPolicy, rollout: Rollout, answers: AnswerCollector, generator: torch.Generator
    ) -> Rollout:
        """What becomes of the rewarded rollout of these answers."""
        return rollout

    def lagged(self) -> Lagged | None:
        """The policy as it was some updates ago, which it draws with too."""
        return None

    def measured(self) -> Mapping[str, float]:
        """Figures of where it stands, by metric name."""
        return {}

    def state_dict(self) -> dict[str, object]:
        """What it remembers of past rollouts, as JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:  # noqa: B027 - most remember nothing
        """Remember what `state_dict` told."""


def whole(policy: VisionPolicy, wanted: Wanted, group: int | None = None, nucleus: Nucleus | None = None) -> Rows:
    """Answers that begin with nothing: `group` to each prompt, all that are wanted if null; of the tokens in `nucleus`,
    if it is given."""
    count, keep = group or wanted.group, wanted.keep_prefill
    drawn = draw(policy, wanted.prompts, count, wanted.limit, wanted.generator, keep, nucleus)
    return Rows(drawn, torch.zeros_like(drawn.transitions.prompt_index))


def with_more(policy: VisionPolicy, wanted: Wanted, rows: Rows, count: Tensor) -> Rows:
    """`rows` and `count` (P,) further answers to each prompt that begin with nothing."""
    index = torch.arange(len(count), device=count.device).repeat_interleave(count)
    if not len(index):
        return rows
    blank = torch.full((len(index), wanted.limit), policy.pad_id, device=index.device)
    everyone, first = rows.drawn.transitions, torch.zeros_like(index)
    drawn = go_on(policy, replace(everyone, prompt_index=index, completions=blank), first, wanted.generator)
    return together([rows, Rows(drawn, first)], policy.pad_id)


def branches(policy: VisionPolicy, wanted: Wanted, roots: Rows, parents: Tensor, first: Tensor) -> Rows:
    """Other ends for rows `parents` (n,) of `roots`, n > 0, drawn from their token `first` (n,) on. What a branch
    begins with counts in its length and is on record as it was drawn."""
    before = roots.drawn
    everyone = before.transitions
    parent = everyone.rows(parents)
    width = parent.completions.shape[1]
    given = replace(parent, completions=pad(parent.completions, (0, wanted.limit - width), value=policy.pad_id))
    drawn = go_on(policy, given, first, wanted.generator)
    length = drawn.alive.shape[1]
    begun = torch.arange(length, device=first.device) < first[:, None]

    def recorded(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(begun, pad(old[parents], (0, max(0, length - width)))[:, :length], new)

    return Rows(
        replace(
            drawn,
            transitions=replace(
                everyone, prompt_index=everyone.prompt_index[parents], completions=drawn.transitions.completions
            ),
            logprobs=recorded(before.logprobs, drawn.logprobs),
            stats={name: recorded(before.stats[name], found) for name, found in drawn.stats.items()},
            values=None if drawn.values is None or before.values is None else recorded(before.values, drawn.values),
        ),
        first,
    )


def together(parts: Sequence[Rows], pad_id: int) -> Rows:
    """Rows of several parts, which answer the same prompts, as one: those of a prompt under each other."""
    drawn = [part.drawn for part in parts]
    longest = max(part.alive.shape[1] for part in drawn)
    index = torch.cat([part.transitions.prompt_index for part in drawn])
    order = torch.argsort(index, stable=True)

    def stacked(tensors: Sequence[Tensor], fill: int = 0) -> Tensor:
        return torch.cat([pad(t, (0, longest - t.shape[1]), value=fill) for t in tensors])[order]

    completions = stacked([part.transitions.completions for part in drawn], pad_id)
    values = [part.values for part in drawn if part.values is not None]
    return Rows(
        Drawn(
            replace(drawn[0].transitions, prompt_index=index[order], completions=completions),
            stacked([part.logprobs for part in drawn]),
            {name: stacked([part.stats[name] for part in drawn]) for name in drawn[0].stats},
            stacked([part.alive for part in drawn]),
            torch.cat([part.truncated for part in drawn])[order],
            stacked(values) if values else None,
        ),
        torch.cat([part.first for part in parts])[order],
    )
