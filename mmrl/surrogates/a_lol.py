"""A-LoL, arXiv 2305.14718, eq. 4: a whole trajectory is one action, and only what beats its prompt is learnt from.

L = - sg(clip(prod_t pi / ref, 1 - clip, 1 + clip)) max(A, 0) log pi, at each decision

The ratio is to the reference, which is the policy that the data is of. With `aggregates.ConstantLength(length=1)` the
loss is the paper's sum over decisions. Its A = R - V_ref(s) can be any advantage; with a group its mean stands for
V_ref. Over long trajectories the product nearly always meets its clip.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.algorithm import Stats, Surrogate
from mmrl.masked import masked_sum
from mmrl.surrogates.ratio import MAX_LOG_RATIO, log_ratio
from mmrl.types import Batch


@dataclass(frozen=True)
class ALoL(Surrogate):
    """Weighted likelihood of what was better than expected."""

    clip: float = 0.9
    whole_trajectories = True
    needs_reference = True

    def __post_init__(self) -> None:
        if not 0 <= self.clip <= 1:
            raise ValueError(f"ALoL.clip is {self.clip}: give 0 (no ratio) to 1, 0.9 is usual")

    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        if batch.ref_logprobs is None:
            raise ValueError("ALoL needs Rollout.ref_logprobs: give the trainer a reference policy")
        moved = masked_sum(log_ratio(logprobs, batch.ref_logprobs, batch.mask), batch.mask, dim=-1)
        ratio = moved.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()[:, None].expand_as(logprobs)
        weight = ratio.clamp(1.0 - self.clip, 1.0 + self.clip)
        return -weight * batch.advantages.clamp(min=0.0) * logprobs, {
            "clip_frac_low": (ratio < 1.0 - self.clip).float(),
            "clip_frac_high": (ratio > 1.0 + self.clip).float(),
        }
