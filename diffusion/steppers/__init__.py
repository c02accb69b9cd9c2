"""Samplers as policies, and which of them speaks for which scheduler of diffusers."""

from diffusers import SchedulerMixin

from diffusion.steppers.base import Stepper, Table, UnknownScheduler
from diffusion.steppers.ddim import DDIM
from diffusion.steppers.euler_ancestral import EulerAncestral
from diffusion.steppers.flow import FewStepFlow, FlowSDE
from diffusion.steppers.lcm import LCM

__all__ = [
    "DDIM",
    "LCM",
    "EulerAncestral",
    "FewStepFlow",
    "FlowSDE",
    "Stepper",
    "Table",
    "UnknownScheduler",
    "stepper_for",
]

BY_SCHEDULER: dict[str, Stepper] = {
    "DDIMScheduler": DDIM(),
    "LCMScheduler": LCM(),
    "EulerDiscreteScheduler": EulerAncestral(),
    "EulerAncestralDiscreteScheduler": EulerAncestral(),
    "FlowMatchEulerDiscreteScheduler": FlowSDE(),
}


def stepper_for(scheduler: SchedulerMixin) -> Stepper:
    """The stepper of a scheduler.

    Raises:
        UnknownScheduler: there is none; names those that there are.
    """
    name = type(scheduler).__name__
    if name not in BY_SCHEDULER:
        raise UnknownScheduler(
            f"the pipeline's scheduler is {name}, for which there is no stepper: give the pipeline one of "
            f"{', '.join(BY_SCHEDULER)}, or write a diffusion.steppers.Stepper"
        )
    return BY_SCHEDULER[name]
