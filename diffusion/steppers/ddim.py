"""DDIM as a policy (DDPO, arXiv 2305.13301; Song et al., arXiv 2010.02502, equations 12 and 16).

sigma = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a');  mean = sqrt(a') clean + sqrt(1 - a' - sigma^2) eps
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from diffusion.steppers.base import Stepper, Table, alphas, clean_of, kind_code, refuse, spread


@dataclass(frozen=True)
class DDIM(Stepper):
    """`noise` is eta: 1 is DDPM's variance, 0 the deterministic sampler."""

    def table(self, scheduler: SchedulerMixin) -> dict[str, Tensor]:
        refuse(scheduler, clip_sample=False, thresholding=False)
        known = alphas(scheduler)
        stride = scheduler.config.num_train_timesteps // len(scheduler.timesteps)
        steps = scheduler.timesteps.cpu().long()
        before = steps - stride
        last = scheduler.final_alpha_cumprod.to(known)
        alpha_next = torch.where(before >= 0, known[before.clamp(min=0)], last)
        kinds = ("epsilon", "sample", "v_prediction").index(kind_code(scheduler))
        return {"alpha": known[steps], "alpha_next": alpha_next, "kind": torch.full_like(alpha_next, kinds)}

    def distribution(self, output: Tensor, x: Tensor, row: Table, noisy: Tensor) -> tuple[Tensor, Tensor]:
        kind = ("epsilon", "sample", "v_prediction")[int(row["kind"][0])]
        at = spread({**row, "eta": self.noise * noisy.double()}, x)
        alpha, following = at["alpha"], at["alpha_next"]
        clean = clean_of(output, x, alpha, kind)
        eps = (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        std = at["eta"] * ((1 - following) / (1 - alpha) * (1 - alpha / following)).clamp(min=0).sqrt()
        mean = following.sqrt() * clean + (1 - following - std.square()).clamp(min=0).sqrt() * eps
        return mean, std
