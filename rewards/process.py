"""Scores of steps as rewards that cannot be farmed by more steps: Clip and Delta (arXiv 2410.15115, section 4).

A step that looks good is paid each time it is taken, so that a policy learns to take more of them. Clip leaves
penalties alone: min(r_k - eta, 0). Delta pays r_k - r_{k+1}, so that what is still to come after step k sums to r_k
whatever the number of steps: the current score less the *next* one, which is not the improvement, and needs a discount
of 1. The last step, which has the outcome, gets none. Both: clip first."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor


class StepShape(abc.ABC):
    """A change of the scores of steps."""

    @abc.abstractmethod
    def __call__(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Rewards (B, K) of scores (B, K); `mask` (B, K) bool says which steps exist: the first ones of each row."""


@dataclass(frozen=True)
class Clip(StepShape):
    """min(r - eta, 0). Most clipped scores should be 0: the quantile of 0.2 of the scores is a start."""

    eta: float = 0.5

    def __call__(self, scores: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, (scores - self.eta).clamp(max=0.0), 0.0)


@dataclass(frozen=True)
class Delta(StepShape):
    """r_k - r_{k+1} up to the last but two, r_{K-1} for the last but one, 0 for the last."""

    def __call__(self, scores: Tensor, mask: Tensor) -> Tensor:
        length = mask.sum(-1, keepdim=True)
        place = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        inner = torch.where(place < length - 1, scores, 0.0)  # the last step of a row counts as none
        following = torch.cat([inner[:, 1:], torch.zeros_like(inner[:, :1])], dim=1)
        return inner - following


@dataclass(frozen=True)
class ProcessReward:
    """alpha x shaped scores at each step, and the outcome at the last one. `shapes` are applied in turn; none of them
    is the raw sum, which can be farmed."""

    alpha: float = 0.02
    shapes: tuple[StepShape, ...] = (Clip(), Delta())

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise ValueError(f"alpha is {self.alpha}: give 0 or more")

    def __call__(self, scores: Tensor, mask: Tensor, outcome: Tensor) -> dict[str, Tensor]:
        """`reward` (B, K) and its named parts `process` and `outcome`, from scores (B, K), a mask of steps (B, K) and
        outcomes (B,).

        Raises:
            ValueError: a row has no step, or steps that are not its first ones.
        """
        if not bool(mask.any(-1).all()) or bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise ValueError("the mask of steps must be True for the first steps of each row, one or more")
        shaped = torch.where(mask, scores, 0.0)
        for shape in self.shapes:
            shaped = shape(shaped, mask)
        ends = torch.zeros_like(shaped).scatter(1, mask.sum(-1, keepdim=True) - 1, outcome[:, None].to(shaped.dtype))
        return {"reward": self.alpha * shaped + ends, "process": self.alpha * shaped, "outcome": ends}
