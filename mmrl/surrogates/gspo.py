"""Group sequence policy optimisation, arXiv 2507.18071, eq. 7 and 12-14.

log s_i = mean_t (log pi - log pi_old);   L = max(-A s_i, -A clip(s_i, 1 - clip_low, 1 + clip_high))

Written per decision with log s_{i,t} = sg(log s_i) + log pi_t - sg(log pi_t), whose gradient is the
sequence form's under `mmrl.aggregates.SequenceMean`, and only under it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.algorithm import Stats, Surrogate
from mmrl.masked import masked_mean
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Batch


@dataclass(frozen=True)
class GSPO(Surrogate):
    """PPO's clip on the geometric mean ratio of a whole trajectory."""

    clip_low: float = 3e-4
    clip_high: float = 4e-4
    whole_trajectories = True

    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        per_step = log_ratio(logprobs, batch.old_logprobs, batch.mask)
        sequence = masked_mean(per_step, batch.mask, dim=-1)[:, None].detach()
        current = torch.where(batch.mask, logprobs, 0.0)
        ratio = (sequence + current - current.detach()).exp()
        clipped = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        loss = torch.maximum(-batch.advantages * ratio, -batch.advantages * clipped)
        return loss, {
            "clip_frac_low": ((ratio < 1.0 - self.clip_low) & (batch.advantages < 0)).float(),
            "clip_frac_high": ((ratio > 1.0 + self.clip_high) & (batch.advantages > 0)).float(),
        }
