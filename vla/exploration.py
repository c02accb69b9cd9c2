"""How a deterministic flow becomes a policy with a density: the two ways of pi_RL, arXiv 2510.25889, section 4.

x_t = t noise + (1 - t) action, velocity v = noise - action, from t = 1 to 0 in K steps of 1/K.

Flow-SDE: the flow's own SDE (`mmrl.flow_sde`) with diffusion s_t = a sqrt(t / (1 - min(t, 1 - 1/K))).
Flow-Noise: x_{t'} ~ N(x + v (t' - t), sigma^2) at every step, sigma from a network.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmrl.flow_sde import flow_sde_step


def time_of(number: int, steps: int) -> float:
    """t before step `number` of K, in lerobot's own arithmetic."""
    return 1.0 + number * (-1.0 / steps)


def ode_step(x_t: Tensor, velocity: Tensor, steps: int) -> Tensor:
    """What follows x_t (n, H, A) without noise, likewise."""
    return x_t + (-1.0 / steps) * velocity


class Exploration(abc.ABC):
    """Which denoise steps are stochastic, and their Gaussians."""

    learns_noise: bool = False
    """Whether there is a noise head, from which `std` of `step` comes."""
    counts_start: bool = False
    """Whether log N(x_1; 0, I) belongs to the log-likelihood of a chain."""
    steps: Literal["one", "last", "all"] = "all"
    """Which denoise steps of a chunk are stochastic."""

    @abc.abstractmethod
    def stochastic(self, shape: tuple[int, ...], steps: int, generator: torch.Generator) -> Tensor:
        """Which of K steps are drawn with noise: bool (*shape, K)."""

    @abc.abstractmethod
    def step(self, x_t: Tensor, velocity: Tensor, number: int, steps: int, std: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, both (n, H, A), of what follows x_t (n, H, A) at step `number` of K."""


@dataclass(frozen=True)
class FlowSDE(Exploration):
    """`noise` is a. With `steps: one` a single step of each chunk is stochastic, drawn anew for each row and chunk, and
    the others follow the ODE (the hybrid sampling of the paper): one forward pass a chunk in the update. With
    `ignore_last` it is never the last."""

    noise: float = 0.5
    steps: Literal["one", "all"] = "one"
    ignore_last: bool = False

    def __post_init__(self) -> None:
        if self.noise <= 0:
            raise ValueError(f"FlowSDE.noise is {self.noise}: give more than 0, or there is no density; 0.5 is usual")

    def stochastic(self, shape: tuple[int, ...], steps: int, generator: torch.Generator) -> Tensor:
        count = max(1, steps - self.ignore_last)
        number = torch.arange(steps, device=generator.device)
        if self.steps == "all":
            return (number < count).expand(*shape, steps).clone()
        drawn = torch.randint(count, shape, generator=generator, device=generator.device)
        return drawn[..., None] == number

    def step(self, x_t: Tensor, velocity: Tensor, number: int, steps: int, std: Tensor | None) -> tuple[Tensor, Tensor]:
        t, after = (x_t.new_tensor(time_of(number + i, steps)) for i in (0, 1))
        diffusion = self.noise * (t / (1 - t.clamp(max=1 - 1 / steps))).sqrt()
        mean, deviation = flow_sde_step(x_t, velocity, t, after, diffusion)
        return mean, deviation.expand_as(x_t)


@dataclass(frozen=True)
class FlowNoise(Exploration):
    """Standard deviations are from `low` to `high`, at first their geometric mean. With `steps: all` every step is
    stochastic, and a chain has its exact joint log-likelihood. With `steps: last` only the last is, and the likelihood
    is that of the action given what the flow came to before it: a cloned flow takes back most of what is added earlier,
    so that those terms tell little of the action, and add their variance to the ratio."""

    low: float = 0.08
    high: float = 0.16
    steps: Literal["last", "all"] = "all"
    learns_noise = True
    counts_start = True

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"FlowNoise has low {self.low} and high {self.high}: give 0 < low <= high")

    def stochastic(self, shape: tuple[int, ...], steps: int, generator: torch.Generator) -> Tensor:
        number = torch.arange(steps, device=generator.device)
        return (number >= (steps - 1 if self.steps == "last" else 0)).expand(*shape, steps).clone()

    def step(self, x_t: Tensor, velocity: Tensor, number: int, steps: int, std: Tensor | None) -> tuple[Tensor, Tensor]:
        assert std is not None
        return ode_step(x_t, velocity, steps), self.scaled(std)

    def scaled(self, raw: Tensor) -> Tensor:
        """Standard deviations of what a network gives: log std is between its bounds along tanh."""
        low, high = math.log(self.low), math.log(self.high)
        return (low + (high - low) * 0.5 * (raw.tanh() + 1)).exp()
