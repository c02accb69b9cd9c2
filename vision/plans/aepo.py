"""AEPO, arXiv 2510.14545: a group is shared out between whole answers and branches by where the policy is in doubt.

m = clip(int(k sigmoid(beta (H_root - mean_j H_j))), 1, k) whole answers and k - m branches, k = group
at step j of a whole answer: a branch iff clip((u + weight (H_j - H_root)) max(0, 1 - penalty l), 0, 1) >= threshold,
u ~ U(0, 1), l = steps in a row before it that branched

No tool is called here: a step is `window` tokens, H_j their mean entropy in nats, H_root that of the first ones. m is
of one whole answer a prompt, drawn first and kept as one of the m. Public code adds 1 before the clip, adds up terms of
H over however many tokens there are, and keeps the first H_root of a run; here H is a mean and each answer has its own.
When l begins anew is not told: here with a step that does not branch. What is left of a budget becomes whole answers,
so that a group is always of k. Credit and clipping of the paper are `EntropyAware` and `GPPO`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.masked import masked_mean
from vision.plans.base import Plan, Rows, Wanted, branches, together, whole, with_more
from vision.policy import VisionPolicy


@dataclass(frozen=True)
class AEPO(Plan):
    """Whole answers and branches of them, as many of each as entropy says."""

    window: int = 20
    beta: float = 0.5
    threshold: float = 0.5
    weight: float = 0.2
    penalty: float = 0.05

    def __post_init__(self) -> None:
        if self.window < 1 or self.penalty < 0:
            raise ValueError(
                f"rollout.plan has window {self.window} and penalty {self.penalty}: give 1 or more, and 0 or more"
            )

    def check(self, group: int, max_new_tokens: int) -> None:
        if max_new_tokens <= self.window:
            raise ValueError(
                f"rollout.max_new_tokens is {max_new_tokens} and rollout.plan.window is {self.window}: branches begin "
                "after the first window, so give a smaller one"
            )

    def draw(self, policy: VisionPolicy, wanted: Wanted) -> Rows:
        pilots = whole(policy, wanted, 1)
        budget = self.budget(windows(pilots.drawn.stats["entropy"], pilots.drawn.alive, self.window), wanted.group)
        roots = with_more(policy, wanted, pilots, budget - 1)
        index = roots.drawn.transitions.prompt_index
        entropy = windows(roots.drawn.stats["entropy"], roots.drawn.alive, self.window)
        u = torch.rand(entropy.shape, generator=wanted.generator, device=entropy.device)
        parents, steps = earliest(self.branching(entropy, u), index, wanted.group - budget)
        found = roots
        if len(parents):
            others = branches(policy, wanted, roots, parents, steps * self.window)
            found = together([roots, others], policy.pad_id)
        had = torch.bincount(found.drawn.transitions.prompt_index, minlength=len(budget))
        return with_more(policy, wanted, found, wanted.group - had)

    def budget(self, entropy: Tensor, group: int) -> Tensor:
        """Whole answers (P,) of each group, from the entropy (P, S) of a pilot's steps, NaN where it has none."""
        later = entropy[:, 1:]
        mean = masked_mean(later, ~later.isnan(), -1)
        mean = torch.where(later.isnan().all(-1), entropy[:, 0], mean)  # it never came to a second step
        return (group * torch.sigmoid(self.beta * (entropy[:, 0] - mean))).long().clamp(1, group)

    def branching(self, entropy: Tensor, u: Tensor) -> Tensor:
        """Whether each answer branches at each step (R, S), from the steps' entropy and a draw of U(0, 1) each."""
        wanted = torch.zeros_like(u, dtype=torch.bool)
        in_a_row = torch.zeros_like(u[:, 0])
        for step in range(1, u.shape[1]):
            rise = u[:, step] + self.weight * (entropy[:, step] - entropy[:, 0])
            score = (rise * (1 - self.penalty * in_a_row).clamp(min=0)).clamp(0, 1)
            wanted[:, step] = score >= self.threshold  # False for NaN: an answer that has ended
            in_a_row = torch.where(wanted[:, step], in_a_row + 1, 0)
        return wanted


def windows(entropy: Tensor, alive: Tensor, window: int) -> Tensor:
    """Mean entropy of every `window` tokens (B, S), from that of tokens (B, C); NaN where none of them is alive."""
    more = -entropy.shape[1] % window
    kept = pad(torch.where(alive, entropy, 0.0), (0, more)).unflatten(1, (-1, window))
    return kept.sum(-1) / pad(alive, (0, more)).unflatten(1, (-1, window)).sum(-1)


def earliest(wanted: Tensor, index: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n,) and steps (n,) of the branches `wanted` (R, S) that fit the budget `most` (P,) of each row's prompt
    `index` (R,), where those of earlier steps come first."""
    steps, rows = wanted.T.nonzero(as_tuple=True)
    mine = index[rows][:, None] == torch.arange(len(most), device=index.device)  # (n, P)
    rank = (mine.cumsum(0) * mine).sum(-1)
    kept = rank <= most[index[rows]]
    return rows[kept], steps[kept]
