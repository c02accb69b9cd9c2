"""One environment in this process, arrays in and out: the task's own step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vla.sim.base import Observations, SimulationConfig, TaskConfig, TaskSpec
from vla.sim.native import build, flag, moves, observed, picture, spec_of, without_contacts

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """What one robot observes."""

    state: Array  # (S,)
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)  # camera -> (3, Y, X)


@dataclass(frozen=True)
class Step:
    """One environment step."""

    seen: Seen
    reward: float
    success: bool
    failed: bool


class Environment(Protocol):
    """One environment of one task."""

    spec: TaskSpec

    def reset(self, seed: int) -> Seen:
        """Begin the episode of this seed."""

    def step(self, action: Array) -> Step:
        """Take one step; `action` (A,)."""

    def render(self) -> NDArray[np.uint8]:
        """A picture (3, Y, X) for people to look at."""


class Official:
    """ManiSkill's own `reset` and `step`."""

    def __init__(self, task: TaskConfig, config: SimulationConfig) -> None:
        self.env, self.options = build(task, config), {"reconfigure": True} if config.rebuild else {}
        self.spec = spec_of(task, self.env, observed(self.env.reset(seed=0)[0]))

    def reset(self, seed: int) -> Seen:
        with without_contacts(self.env):
            return _first(observed(self.env.reset(seed=seed, options=self.options)[0]))

    def step(self, action: Array) -> Step:
        found, reward, _, _, info = self.env.step(moves(self.env, torch.from_numpy(action)[None]))
        success, failed = (bool(flag(info, name, 1)) for name in ("success", "fail"))
        return Step(_first(observed(found)), float(reward), success, failed)

    def render(self) -> NDArray[np.uint8]:
        return picture(self.env)[0].numpy()


def _first(views: Observations) -> Seen:
    """Of ManiSkill's batch of one. Its CPU tensors share memory with nothing that the next step changes."""
    return Seen(views.state[0].numpy(), {name: image[0].numpy() for name, image in views.images.items()})
