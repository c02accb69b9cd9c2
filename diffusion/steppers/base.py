"""What a stepper is: from the denoiser's output to the Gaussian that the next latent is drawn from."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin
from torch import Tensor

Table = Mapping[str, Tensor]
"""Name -> (K,) or (n,): numbers of each step, from the scheduler, in float64."""


class UnknownScheduler(ValueError):
    """A scheduler, or one of its settings, that no stepper speaks for."""


@dataclass(frozen=True)
class Stepper(abc.ABC):
    """A sampler as a policy. `noise` scales its randomness where the sampler leaves that free."""

    noise: float = 1.0
    ode_without_noise = True
    """Whether the step stays a sampler of the same model when its randomness is taken out."""

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"the stepper's noise is {self.noise}: give 0 or more")

    @abc.abstractmethod
    def table(self, scheduler: SchedulerMixin) -> dict[str, Tensor]:
        """What `distribution` needs of the K steps that the scheduler was set to.

        Raises:
            UnknownScheduler: the scheduler does something that this stepper does not.
        """

    @abc.abstractmethod
    def distribution(self, output: Tensor, x: Tensor, row: Table, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (n, ...) and standard deviation (n, 1, ...) of the next latent, from the denoiser's output after
        guidance (n, ...), the latent x (n, ...), the table's numbers (n,) and which rows have noise (n,) bool. A
        standard deviation of 0 means that there is no decision."""


def spread(row: Table, like: Tensor) -> dict[str, Tensor]:
    """The numbers (n,) as (n, 1, ...) in the type of `like` (n, ...)."""
    shape = (-1, *([1] * (like.ndim - 1)))
    return {name: values.to(like).reshape(shape) for name, values in row.items()}


def refuse(scheduler: SchedulerMixin, **unwanted: object) -> None:
    """Raises UnknownScheduler if a setting of the scheduler is one of the unwanted values' keys with another value."""
    for name, harmless in unwanted.items():
        found = scheduler.config.get(name, harmless)
        if found != harmless:
            raise UnknownScheduler(
                f"{type(scheduler).__name__} has {name}={found!r}, which would change what the Gaussian drew: "
                f"set it to {harmless!r} in the pipeline's scheduler config"
            )


def clean_of(output: Tensor, x: Tensor, alpha: Tensor, kind: str) -> Tensor:
    """The clean latent that `output` stands for, at x = sqrt(alpha) clean + sqrt(1 - alpha) noise."""
    if kind == "epsilon":
        return (x - (1 - alpha).sqrt() * output) / alpha.sqrt()
    if kind == "sample":
        return output
    if kind == "v_prediction":
        return alpha.sqrt() * x - (1 - alpha).sqrt() * output
    raise UnknownScheduler(f"prediction_type {kind!r} is none of epsilon, sample and v_prediction")


def kind_code(scheduler: SchedulerMixin) -> str:
    """The scheduler's prediction_type."""
    return str(scheduler.config.get("prediction_type", "epsilon"))


def alphas(scheduler: SchedulerMixin) -> Tensor:
    """Cumulative alphas of its training steps, in float64."""
    found: Tensor = scheduler.alphas_cumprod.to(torch.float64).cpu()
    return found
