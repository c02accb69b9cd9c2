"""Sets of tokens that a decision was restricted to, as numbers of tokens: (..., K) int32.

A smaller set repeats its first token. -1 in the first place says that a decision was not restricted. A recorded set is
4 K bytes a decision, where the K of a rollout is that of its largest: 128 answers of 512 tokens with 1,024 tokens to
choose from are 268 MB. It is recorded since it cannot be found again exactly: at the edge of a nucleus the last bits of
a number decide, and these are others where an answer is read at once than where it was drawn token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from vision.policy import VisionPolicy


@dataclass(frozen=True)
class Nucleus:
    """The most likely tokens of `policy` that have `top_p` of its probability together, with the one that completes
    them, but `least` at least and `most` at most; and every token that ends an answer."""

    policy: VisionPolicy
    top_p: float
    least: int
    most: int

    def of(self, log_softmax: Tensor) -> Tensor:
        """Of each distribution (B, V) of `policy` the set (B, K)."""
        likely, tokens = log_softmax.topk(min(self.most, log_softmax.shape[-1]))
        before = pad(likely.exp().cumsum(-1)[:, :-1], (1, 0))
        place = torch.arange(likely.shape[-1], device=likely.device)
        kept = (before < self.top_p) | (place < self.least)
        tokens = torch.where(kept, tokens, tokens[:, :1])[:, : int(kept.sum(-1).max())]
        ends = torch.tensor(self.policy.eos_ids, device=tokens.device).expand(len(tokens), -1)
        return torch.cat([tokens, ends], dim=-1).int()


def only(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """`logits` (..., V), -inf outside of `allowed` (..., K); as they are where that is null."""
    if allowed is None:
        return logits
    outside = torch.ones(logits.shape, dtype=torch.bool, device=logits.device)
    outside = outside.scatter(-1, allowed.clamp(min=0).long(), False)
    return logits.masked_fill(outside & (allowed[..., :1] >= 0), float("-inf"))


def recorded(sets: Sequence[Tensor], drawn: Tensor) -> Tensor:
    """The `sets` (B, K of each) of the last tokens as one (B, C, K), where the tokens were `drawn` (B, C) bool."""
    width = max(tokens.shape[-1] for tokens in sets)
    found = torch.stack([_as_wide(tokens, width) for tokens in sets], dim=1)
    found = pad(found, (0, 0, drawn.shape[1] - len(sets), 0), value=-1)
    return torch.where(drawn[..., None], found, -1)


def joined(parts: Sequence[Tensor | None], rows: Sequence[int], length: int) -> Tensor | None:
    """Sets (B, C, K) of several rollouts of so many `rows` under each other, as of `length` tokens; null where none of
    them was restricted."""
    width = max((part.shape[-1] for part in parts if part is not None), default=0)
    if width == 0:
        return None
    device = next(part.device for part in parts if part is not None)
    found = [
        torch.full((n, 0, 1), -1, device=device).int() if p is None else p for p, n in zip(parts, rows, strict=True)
    ]
    return torch.cat([pad(_as_wide(part, width), (0, 0, 0, length - part.shape[1]), value=-1) for part in found])


def _as_wide(tokens: Tensor, width: int) -> Tensor:
    return torch.cat([tokens, tokens[..., :1].expand(*tokens.shape[:-1], width - tokens.shape[-1])], dim=-1)
