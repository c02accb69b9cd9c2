"""Multistep consistency sampling as a policy (RLCM, arXiv 2404.03673, section 4): the noise that is put back is the
exploration. f = c_skip x + c_out clean; the next latent is N(sqrt(a') f, (1 - a') I), and the last f is no action."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from diffusion.steppers.base import Stepper, Table, alphas, clean_of, kind_code, refuse, spread


@dataclass(frozen=True)
class LCM(Stepper):
    """`noise` has to be 1: there is nothing free in it."""

    ode_without_noise = False

    def __post_init__(self) -> None:
        if self.noise != 1:
            raise ValueError(f"LCM's noise is {self.noise}, and its randomness is part of the sampler: leave it at 1")

    def table(self, scheduler: SchedulerMixin) -> dict[str, Tensor]:
        refuse(scheduler, clip_sample=False, thresholding=False)
        known, steps = alphas(scheduler), scheduler.timesteps.cpu().long()
        scalings = [scheduler.get_scalings_for_boundary_condition_discrete(step) for step in steps]
        skip, out = (torch.tensor([float(s[i]) for s in scalings], dtype=torch.float64) for i in range(2))
        following = torch.cat([known[steps[1:]], torch.ones(1, dtype=torch.float64)])  # the last: f itself
        kinds = ("epsilon", "sample", "v_prediction").index(kind_code(scheduler))
        return {
            "alpha": known[steps], "alpha_next": following, "skip": skip, "out": out,
            "kind": torch.full_like(following, kinds),
        }  # fmt: skip

    def distribution(self, output: Tensor, x: Tensor, row: Table, noisy: Tensor) -> tuple[Tensor, Tensor]:
        kind = ("epsilon", "sample", "v_prediction")[int(row["kind"][0])]
        at = spread(row, x)
        denoised = at["out"] * clean_of(output, x, at["alpha"], kind) + at["skip"] * x
        following = at["alpha_next"]
        return following.sqrt() * denoised, (1 - following).sqrt()
