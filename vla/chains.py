"""The denoise loop as a chain of decisions: drawing it, and its density.

Letters: n rows, K steps, H and A of a chunk as it is denoised, h and a of what is executed of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmrl.gaussian import Reduction
from mmrl.statistics import Statistic, of_gaussian
from vla.exploration import Exploration, ode_step, time_of

Level = Literal["chunk", "action", "token"]
Field = Callable[[Tensor, int, Tensor], tuple[Tensor, Tensor | None]]
"""x_t (m, H, A), the step's number, and which of the n rows these are (m,) -> velocity (m, H, A), and what the noise
head says (m, H, A), if there is one."""


@dataclass(frozen=True)
class Counting:
    """How densities of a chain become log-probs of decisions.

    `level`: one log-prob a chunk, one for each of its actions, or one for each number. `decisions: chain`: all steps of
    a chain together (the joint likelihood); `step`: each denoise step is a decision of its own. `reduction` is over the
    terms of a chain (its stochastic steps, and the first noise for Flow-Noise): their sum is the likelihood, their
    mean is what RLinf trains with, under the name of joint log-prob; numbers within a level are always summed.
    """

    level: Level = "chunk"
    decisions: Literal["chain", "step"] = "chain"
    reduction: Reduction = "sum"

    def parts(self, executed: tuple[int, int]) -> int:
        """Decisions of one step or chain, where (h, a) are executed."""
        return {"chunk": 1, "action": executed[0], "token": executed[0] * executed[1]}[self.level]

    def per_chunk(self, steps: int, executed: tuple[int, int]) -> int:
        """D: decisions of one chunk."""
        return self.parts(executed) * (steps if self.decisions == "step" else 1)

    def dimensions(self, terms: int, executed: tuple[int, int]) -> int:
        """Numbers whose densities are summed in one log-prob; `terms` of a chain."""
        each = executed[0] * executed[1] // self.parts(executed)
        return each * (terms if self.decisions == "chain" and self.reduction == "sum" else 1)

    def logprobs(self, densities: Tensor, start: Tensor | None, stochastic: Tensor) -> Tensor:
        """Log-probs (n, D) of densities (n, K, h, a), 0 where a step is not stochastic, of the density of the first
        noise (n, h, a) if it counts, and of which steps are stochastic (n, K). Order: step, action, number."""
        if self.decisions == "chain":
            total, terms = densities.sum(1, keepdim=True), stochastic.sum(1)
            if start is not None:
                total, terms = total + start[:, None], terms + 1
            densities = total if self.reduction == "sum" else total / terms[:, None, None, None]
        keep = {"chunk": 2, "action": 3, "token": 4}[self.level]
        found = densities if keep == 4 else densities.flatten(keep).sum(-1)
        return found.flatten(1)


@dataclass(frozen=True)
class Chain:
    """n chains that were drawn."""

    states: Tensor  # (n, K+1, H, A), from noise to action
    densities: Tensor  # (n, K, H, A)


def draw(field: Field, noise: Tensor, stochastic: Tensor, exploration: Exploration) -> Chain:
    """Chains from noise (n, K+1, H, A), the first of it x_1 and the others the steps'; stochastic (n, K)."""
    n, steps = stochastic.shape
    every = torch.arange(n, device=noise.device)
    states, densities = [noise[:, 0]], []
    for number in range(steps):
        x = states[-1]
        velocity, raw = field(x, number, every)
        mean, std = exploration.step(x, velocity, number, steps, raw)
        here = stochastic[:, number, None, None]
        states.append(torch.where(here, mean + std * noise[:, number + 1], ode_step(x, velocity, steps)))
        densities.append(torch.where(here, log_normal(states[-1], mean, std), 0.0))
    return Chain(torch.stack(states, 1), torch.stack(densities, 1))


def density(
    field: Field, states: Tensor, stochastic: Tensor, exploration: Exploration, statistics: Sequence[Statistic] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """Densities (n, K, H, A) of recorded chains (n, K+1, H, A), with gradient, and statistics of their Gaussians; all 0
    where a step is not stochastic. Only stochastic steps are computed."""
    n, steps = stochastic.shape
    found: list[Tensor] = []
    told: dict[str, list[Tensor]] = {statistic.name: [] for statistic in statistics}
    for number in range(steps):
        rows = stochastic[:, number].nonzero()[:, 0]
        blank = states.new_zeros(n, *states.shape[2:])
        if not len(rows):
            for numbers in (found, *told.values()):
                numbers.append(blank)
            continue
        x, after = states[rows, number], states[rows, number + 1]
        velocity, raw = field(x, number, rows)
        mean, std = exploration.step(x, velocity, number, steps, raw)
        found.append(blank.index_put((rows,), log_normal(after, mean, std)))
        for name, numbers in of_gaussian(statistics, after, mean, std).items():
            told[name].append(blank.index_put((rows,), numbers))
    return torch.stack(found, 1), {name: torch.stack(numbers, 1) for name, numbers in told.items()}


def integrate(field: Field, noise: Tensor, steps: int) -> Tensor:
    """The flow's own end (n, H, A) from noise (n, H, A)."""
    every = torch.arange(len(noise), device=noise.device)
    x = noise
    for number in range(steps):
        x = ode_step(x, field(x, number, every)[0], steps)
    return x


def log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of each number."""
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)


def times(number: int, steps: int, like: Tensor) -> Tensor:
    """t (m,) before step `number`, as lerobot's loop makes it."""
    return torch.tensor(time_of(number, steps), dtype=torch.float32, device=like.device).expand(len(like))
