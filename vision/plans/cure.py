"""CURE, arXiv 2508.11016, stage 1: some answers are told again from where the policy was most in doubt.

n1 answers to each prompt; in each, one of the K tokens of highest entropy is chosen, and n2 others begin with what
stands before it: that token is drawn anew, and all after it. n1 (1 + n2) = group, and all of them are one group.

A token can be chosen if it is no special one, reads as `characters` visible characters at least, and is not the first:
what begins with nothing is a further answer, and an answer without such a token is given those instead. Published code
puts the beginning into the prompt and cuts its end off where it is too long; here an answer and what it begins with
have `max_new_tokens` together, so that none is cut. Stage 2 is a run without a plan, from the weights of this one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vision.plans.base import Plan, Rows, Wanted, branches, together, whole
from vision.policy import VisionPolicy


@dataclass(frozen=True)
class CURE(Plan):
    """`branches` (n2) further ends for each first answer, from one of its `candidates` (K) most open tokens."""

    branches: int = 3
    candidates: int = 20
    characters: int = 2

    def __post_init__(self) -> None:
        if self.branches < 0 or self.candidates < 1 or self.characters < 0:
            raise ValueError(
                f"rollout.plan has branches {self.branches}, candidates {self.candidates} and characters "
                f"{self.characters}: give 0 or more, 1 or more, and 0 or more"
            )

    def check(self, group: int, max_new_tokens: int) -> None:
        if group % (1 + self.branches):
            raise ValueError(
                f"rollout.group is {group} and rollout.plan.branches is {self.branches}: each first answer comes with "
                f"its branches, so give a group that {1 + self.branches} divides"
            )

    def draw(self, policy: VisionPolicy, wanted: Wanted) -> Rows:
        roots = whole(policy, wanted, wanted.group // (1 + self.branches))
        if self.branches == 0:
            return roots
        drawn = roots.drawn
        open_to = drawn.alive & told_apart(policy, drawn.transitions.completions, self.characters)
        first = critical(drawn.stats["entropy"], open_to, self.candidates, wanted.generator)
        parents = torch.arange(len(first), device=first.device).repeat_interleave(self.branches)
        return together([roots, branches(policy, wanted, roots, parents, first[parents])], policy.pad_id)


def told_apart(policy: VisionPolicy, tokens: Tensor, characters: int) -> Tensor:
    """Which of `tokens` (B, C) are no special ones and read as so many visible characters (B, C) bool."""
    tokenizer = policy.processor.tokenizer
    known, place = torch.unique(tokens, return_inverse=True)
    special = {*tokenizer.all_special_ids, *policy.eos_ids}
    told = [t not in special and len(tokenizer.decode([t]).strip()) >= characters for t in known.tolist()]
    return torch.tensor(told, device=tokens.device)[place]


def critical(entropy: Tensor, open_to: Tensor, candidates: int, generator: torch.Generator) -> Tensor:
    """Of each row's `candidates` tokens of highest `entropy` (B, C) among `open_to` (B, C) bool one at random (B,),
    each as likely as the others; 0 where there is none but the first."""
    may = open_to.clone()
    may[:, 0] = False
    ranked = entropy.masked_fill(~may, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    count = may.sum(-1).clamp(max=candidates)
    point = torch.rand(len(count), generator=generator, device=entropy.device)
    chosen = torch.minimum((point * count).long(), (count - 1).clamp(min=0))
    return torch.where(count > 0, ranked.gather(-1, chosen[:, None])[:, 0], 0)
