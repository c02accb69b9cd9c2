"""UloRL, arXiv 2507.19766, its rollouts: answers are drawn by segments, one a step, so that none waits for the longest.

An answer that has not ended after `segment` more tokens goes on in the next step, from the tokens it has. A group is
trained once all of its answers have ended or have `max_new_tokens`, of which the paper says nothing; until then its
rows are not alive. Where no group would be complete another segment is drawn, so that a step has something to train.

log-probs    of the policy of this step, of whole answers (POIS): ratio 1 before the first optimiser step
behaviour    those of the policies that drew the segments: `TruncatedImportance` and `IcePop` correct by them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vision.kept import Kept, longer, table
from vision.plans.base import Plan, Rows, Wanted
from vision.policy import VisionPolicy
from vision.sampling import Drawn, go_on


@dataclass(frozen=True)
class UloRL(Plan):
    """Answers of `segment` tokens a step."""

    segment: int = 16384
    _open: list[list[Kept]] = field(default_factory=list, init=False, repr=False, compare=False)
    _taken: list[int] = field(default_factory=list, init=False, repr=False, compare=False)
    remembers = replays = True

    def __post_init__(self) -> None:
        if self.segment < 1:
            raise ValueError(f"rollout.plan has segment {self.segment}: give 1 or more")

    def take(self, numbers: Sequence[int], pool: int) -> list[int]:
        self._taken[:] = [*(group[0].number for group in self._open), *numbers[len(self._open) :]]
        return list(self._taken)

    def draw(self, policy: VisionPolicy, wanted: Wanted) -> Rows:
        new = self._taken[len(self._open) :]
        groups = [*self._open, *([Kept(number, 0, 0.0, (), (), {})] * wanted.group for number in new)]
        answers = [kept for group in groups for kept in group]
        first = torch.tensor([len(kept.tokens) for kept in answers])
        complete = torch.zeros(len(groups), dtype=torch.bool)
        while not bool(complete.any()):
            answers = further(policy, wanted, answers, self.segment)
            over = torch.tensor([_over(policy, wanted, kept) for kept in answers])
            complete = over.view(len(groups), wanted.group).all(-1)
        divided = [answers[at : at + wanted.group] for at in range(0, len(answers), wanted.group)]
        self._open[:] = [group for group, done in zip(divided, complete.tolist(), strict=True) if not done]
        return _trained(policy, wanted, answers, first, complete.repeat_interleave(wanted.group))

    def state_dict(self) -> dict[str, object]:
        return {"open": [[kept.as_json() for kept in group] for group in self._open]}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        found: Any = state["open"]
        self._open[:] = [[Kept.from_json(kept) for kept in group] for group in found]


def _over(policy: VisionPolicy, wanted: Wanted, kept: Kept) -> bool:
    return len(kept.tokens) == wanted.limit or (len(kept.tokens) > 0 and kept.tokens[-1] in policy.eos_ids)


def further(policy: VisionPolicy, wanted: Wanted, answers: Sequence[Kept], segment: int) -> list[Kept]:
    """`answers`, of each prompt `group`, with up to `segment` more tokens where they are not over."""
    found = list(answers)
    lengths = {len(kept.tokens) for kept in answers if not _over(policy, wanted, kept)}
    for length in sorted(lengths):  # those as long as each other read at once what they have
        rows = [r for r, one in enumerate(answers) if len(one.tokens) == length and not _over(policy, wanted, one)]
        limit = min(length + segment, wanted.limit)
        given = table([kept.tokens for kept in answers], limit, policy.pad_id).long()
        asked = wanted.asked(policy, given).rows(torch.tensor(rows, device=policy.banned.device))
        drawn = go_on(policy, asked, torch.full_like(asked.prompt_index, length), wanted.generator)
        for place, row in enumerate(rows):
            found[row] = longer(answers[row], drawn, place)
    return found


@torch.no_grad()
def _trained(policy: VisionPolicy, wanted: Wanted, answers: Sequence[Kept], first: Tensor, complete: Tensor) -> Rows:
    """All `answers`, alive where their group is `complete` (B,). Those of `first` (B,) tokens before this step, if any,
    are scored again."""
    device, width = policy.banned.device, max(len(kept.tokens) for kept in answers)
    transitions = wanted.asked(policy, table([kept.tokens for kept in answers], width, policy.pad_id).long())
    lengths = torch.tensor([len(kept.tokens) for kept in answers], device=device)
    alive = (torch.arange(width, device=device) < lengths[:, None]) & complete.to(device)[:, None]
    behaviour = table([kept.logprobs for kept in answers], width).to(device)
    now = behaviour.clone()
    older = (complete & (first > 0)).nonzero()[:, 0].to(device)
    for rows in older.split(wanted.group) if len(older) else ():
        steps = torch.arange(width, device=device).expand(len(rows), -1)
        now[rows] = torch.where(alive[rows], policy(transitions.rows(rows), steps).logprobs.float(), 0.0)
    stats = {name: table([kept.stats[name] for kept in answers], width).to(device) for name in answers[0].stats}
    cut = torch.tensor([kept.tokens[-1] not in policy.eos_ids for kept in answers], device=device)
    return Rows(Drawn(transitions, now, stats, alive, cut, None), torch.zeros_like(lengths), behaviour)
