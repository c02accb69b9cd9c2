"""Rectified flows as policies: Flow-GRPO's stochastic differential equation (arXiv 2505.05470), and few-step sampling,
the flow's analogue of consistency sampling: N((1 - t') clean, t'^2 I)."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import SchedulerMixin
from torch import Tensor

from diffusion.steppers.base import Stepper, Table, UnknownScheduler, refuse, spread
from mmrl.flow_sde import flow_grpo_diffusion, flow_sde_step


def _times(scheduler: SchedulerMixin) -> dict[str, Tensor]:
    refuse(scheduler, invert_sigmas=False)
    sigmas = scheduler.sigmas.double().cpu()
    if float(sigmas[0]) > 1 or float(sigmas[-1]) != 0:
        raise UnknownScheduler(f"{type(scheduler).__name__} does not go from noise at 1 to the picture at 0")
    return {"t": sigmas[:-1], "t_next": sigmas[1:]}


@dataclass(frozen=True)
class FlowSDE(Stepper):
    """`noise` is Flow-GRPO's a. The last step has none: it would be seen in the picture."""

    noise: float = 0.7

    def table(self, scheduler: SchedulerMixin) -> dict[str, Tensor]:
        found = _times(scheduler)
        within = found["t"][found["t"] < 1]
        first = within[0] if len(within) else found["t"][0] * 0.98
        free = flow_grpo_diffusion(found["t"], first, self.noise)
        return {**found, "diffusion": free * (found["t_next"] > 0)}

    def distribution(self, output: Tensor, x: Tensor, row: Table, noisy: Tensor) -> tuple[Tensor, Tensor]:
        at = spread({**row, "diffusion": row["diffusion"] * noisy}, x)
        return flow_sde_step(x, output, at["t"], at["t_next"], at["diffusion"])


@dataclass(frozen=True)
class FewStepFlow(Stepper):
    """For distilled few-step flows. `noise` has to be 1."""

    ode_without_noise = False

    def table(self, scheduler: SchedulerMixin) -> dict[str, Tensor]:
        return _times(scheduler)

    def distribution(self, output: Tensor, x: Tensor, row: Table, noisy: Tensor) -> tuple[Tensor, Tensor]:
        at = spread(row, x)
        return (1 - at["t_next"]) * (x - at["t"] * output), at["t_next"]
