"""Ancestral Euler sampling in sigma space as a policy (Karras et al., arXiv 2206.00364, as k-diffusion has it).

up^2 = eta^2 s'^2 (s^2 - s'^2) / s^2;  down^2 = s'^2 - up^2;  mean = x + (x - clean) / s (down - s)
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import SchedulerMixin
from torch import Tensor

from diffusion.steppers.base import Stepper, Table, UnknownScheduler, kind_code, refuse, spread


@dataclass(frozen=True)
class EulerAncestral(Stepper):
    """`noise` is eta."""

    def table(self, scheduler: SchedulerMixin) -> dict[str, Tensor]:
        refuse(scheduler, thresholding=False)
        if kind_code(scheduler) != "epsilon":
            raise UnknownScheduler(f"EulerAncestral replays epsilon prediction, not {kind_code(scheduler)!r}")
        sigmas = scheduler.sigmas.double().cpu()
        return {"sigma": sigmas[:-1], "sigma_next": sigmas[1:]}

    def distribution(self, output: Tensor, x: Tensor, row: Table, noisy: Tensor) -> tuple[Tensor, Tensor]:
        at = spread({**row, "eta": self.noise * noisy.double()}, x)
        sigma, following = at["sigma"], at["sigma_next"]
        largest = following * (sigma.square() - following.square()).clamp(min=0).sqrt() / sigma
        up = (at["eta"] * largest).minimum(following)
        down = (following.square() - up.square()).clamp(min=0).sqrt()
        return x + output * (down - sigma), up
