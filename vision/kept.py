"""Answers that are kept from one step to another, as they were drawn, and as rows of a later rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.resampling import together
from mmrl.types import Rollout
from vision.policy import VisionPolicy
from vision.sampling import Drawn
from vision.transitions import TokenTransitions

if TYPE_CHECKING:
    from vision.collector import AnswerCollector


@dataclass(frozen=True)
class Kept:
    """An answer to the example `number` of the pool, rewarded in step `step`; its tokens are those up to its end."""

    number: int
    step: int
    reward: float
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    stats: Mapping[str, tuple[float, ...]]  # name -> of each token

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Kept:
        """Of `as_json`."""
        stats = {name: tuple(numbers) for name, numbers in found["stats"].items()}
        kept = {name: tuple(found[name]) for name in ("tokens", "logprobs")}
        return Kept(**{**found, **kept, "stats": stats})


def of_rollout(rollout: Rollout, row: int, step: int) -> Kept:
    """One answer of a rollout, to be kept."""
    transitions, alive = rollout.transitions, rollout.alive[row]
    assert isinstance(transitions, TokenTransitions)
    assert rollout.prompt_ids is not None
    return Kept(
        int(rollout.prompt_ids[row]),
        step,
        float(rollout.returns()[row]),
        tuple(transitions.completions[row, : len(alive)][alive].tolist()),
        tuple(rollout.logprobs[row, alive].tolist()),
        {name: tuple(numbers[row, alive].tolist()) for name, numbers in rollout.stats.items()},
    )


def longer(kept: Kept, drawn: Drawn, row: int) -> Kept:
    """`kept` with what `drawn`, which begins with its tokens, has behind them in `row`."""
    new = range(len(kept.tokens), int(drawn.alive[row].sum()))

    def joined(old: tuple[Any, ...], numbers: Tensor) -> tuple[Any, ...]:
        return (*old, *numbers[row, new.start : new.stop].tolist())

    stats = {name: joined(kept.stats.get(name, ()), numbers) for name, numbers in drawn.stats.items()}
    tokens = joined(kept.tokens, drawn.transitions.completions)
    return replace(kept, tokens=tokens, logprobs=joined(kept.logprobs, drawn.logprobs), stats=stats)


def table(rows: Sequence[Sequence[float]], width: int, fill: float = 0.0) -> Tensor:
    """Numbers of B rows (B, width) float32 or long, what is longer cut and what is shorter filled up."""
    return torch.tensor([[*row[:width], *[fill] * (width - len(row))] for row in rows])


def with_replayed(
    policy: VisionPolicy,
    rollout: Rollout,
    rows: Sequence[tuple[Kept, float]],
    answers: AnswerCollector,
    trained: Sequence[range] | None = None,
) -> Rollout:
    """`rollout`, all of whose rows are fresh, and below it kept answers with their credit, each a group of its own. Of
    each answer the tokens `trained` enter the loss, all of them if null; statistics that none was kept of are 0."""
    device = rollout.logprobs.device
    rollout = rollout.with_(replayed=torch.zeros(len(rollout), dtype=torch.bool, device=device))
    if not rows:
        return rollout
    kept = [answer for answer, _ in rows]
    width = max(rollout.logprobs.shape[1], *(len(answer.tokens) for answer in kept))

    alive = table([[1.0] * len(answer.tokens) for answer in kept], width).to(device).bool()
    last = alive & ~pad(alive[:, 1:], (0, 1))
    spans = trained or [range(len(answer.tokens)) for answer in kept]
    mask = table([[float(t in span) for t in range(span.stop)] for span in spans], width).to(device).bool()
    tokens = table([answer.tokens for answer in kept], width, policy.pad_id).long().to(device)
    credit = torch.tensor([worth for _, worth in rows], device=device)
    prompts = tuple(answers.encode(answers.examples[answer.number]).to(device) for answer in kept)
    each = torch.arange(len(kept), device=device)
    old = Rollout(
        transitions=TokenTransitions(prompts, each, tokens),
        logprobs=table([answer.logprobs for answer in kept], width).to(device),
        mask=mask,
        alive=alive,
        rewards=torch.where(last, credit[:, None], 0.0),
        discounts=torch.ones_like(alive, dtype=torch.float32),
        group_ids=10**6 * (answers.runtime.rank + 1) + each,
        prompt_ids=torch.tensor([answer.number for answer in kept], device=device),
        stats={
            name: table([answer.stats.get(name, ()) for answer in kept], width).to(device) for name in rollout.stats
        },
        reward_parts={name: torch.zeros_like(credit) for name in rollout.reward_parts},
        applicable={name: torch.zeros_like(credit, dtype=torch.bool) for name in rollout.applicable},
        replayed=torch.ones_like(credit, dtype=torch.bool),
    )
    transitions = rollout.transitions
    assert isinstance(transitions, TokenTransitions)
    grown = pad(transitions.completions, (0, width - transitions.completions.shape[1]), value=policy.pad_id)
    return together([rollout.with_(transitions=replace(transitions, completions=grown)), old])
