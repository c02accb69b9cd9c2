"""Descriptions that are trained steps after they were written, as replayed rows of a rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.types import Rollout
from vision.collector import AnswerCollector
from vision.policy import VisionPolicy
from vision.synthetic.described import Written
from vision.transitions import TokenTransitions


def with_replayed(
    policy: VisionPolicy, rollout: Rollout, rows: Sequence[tuple[Written, float]], answers: AnswerCollector
) -> Rollout:
    """`rollout` and, below it, a row of each description: its whole completion, of which its words alone are trained,
    with the log-probs of when it was drawn, rewarded as given."""
    transitions, device = rollout.transitions, rollout.logprobs.device
    assert isinstance(transitions, TokenTransitions)
    own = [answers.encode(answers.examples[written.number]).to(device) for written, _ in rows]
    width = max(rollout.logprobs.shape[1], *(len(written.tokens) for written, _ in rows))

    def grown(tensor: Tensor, value: float = 0) -> Tensor:
        return pad(tensor, (0, width - tensor.shape[1]), value=value)

    def stacked(above: Tensor, below: list[Sequence[Any]], value: Any = 0) -> Tensor:
        filled = [[*row, *[value] * (width - len(row))] for row in below]
        return torch.cat([grown(above, value), torch.tensor(filled, dtype=above.dtype, device=device)])

    lengths = [len(written.tokens) for written, _ in rows]
    alive: list[Sequence[Any]] = [[True] * length for length in lengths]
    words = [[w.first <= t < w.last for t in range(len(w.tokens))] for w, _ in rows]
    paid = [[reward if t == w.last - 1 else 0.0 for t in range(len(w.tokens))] for w, reward in rows]
    blank: list[Sequence[Any]] = [[0.0] * length for length in lengths]
    more = len(rows)
    groups = 10**6 * (answers.runtime.rank + 1) + torch.arange(more, device=device)
    rewards = torch.tensor([reward for _, reward in rows], device=device)
    none = torch.zeros(more, dtype=torch.bool, device=device)
    assert rollout.prompt_ids is not None
    assert rollout.replayed is not None
    numbers = torch.tensor([written.number for written, _ in rows], device=device)
    places = torch.arange(len(transitions.prompts), len(transitions.prompts) + more, device=device)
    parts = {name: torch.cat([part, torch.zeros(more, device=device)]) for name, part in rollout.reward_parts.items()}
    applicable = {name: torch.cat([part, none]) for name, part in rollout.applicable.items()}
    return rollout.with_(
        transitions=TokenTransitions(
            (*transitions.prompts, *own),
            torch.cat([transitions.prompt_index, places]),
            stacked(transitions.completions, [written.tokens for written, _ in rows], policy.pad_id),
        ),
        logprobs=stacked(rollout.logprobs, [written.logprobs for written, _ in rows]),
        mask=stacked(rollout.mask, list(words), False),
        alive=stacked(rollout.alive, alive, False),
        rewards=stacked(rollout.rewards, list(paid)),
        discounts=stacked(rollout.discounts, [[1.0] * length for length in lengths], 1.0),
        group_ids=torch.cat([rollout.group_ids, groups]),
        prompt_ids=torch.cat([rollout.prompt_ids, numbers]),
        stats={name: stacked(values, blank) for name, values in rollout.stats.items()},
        reward_parts={**parts, "diversity": torch.cat([rollout.reward_parts["diversity"], rewards])},
        applicable={**applicable, "diversity": torch.cat([rollout.applicable["diversity"], ~none])},
        replayed=torch.cat([rollout.replayed, ~none]),
    )
