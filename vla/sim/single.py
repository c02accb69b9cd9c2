"""One environment in this process, arrays in and out: the task's own step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vla.sim.base import SimulationConfig, TaskConfig, TaskSpec
from vla.sim.native import build, flag, moves, observed, picture, pictures, spec_of, without_contacts

Array = NDArray[np.float32]
Pictures = Mapping[str, NDArray[np.uint8]]
"""Camera -> (3, Y, X)."""


@dataclass(frozen=True)
class Seen:
    """What one robot observes."""

    state: Array  # (S,)
    images: Pictures = field(default_factory=dict)


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
        """Take one step; `action` (A,). What is seen has no pictures: `look` draws them where they are wanted."""

    def look(self) -> Pictures:
        """What the cameras see now; nothing where the state is observed."""

    def render(self) -> NDArray[np.uint8]:
        """A picture (3, Y, X) for people to look at."""


class Official:
    """ManiSkill's own `reset` and `step`. A picture takes five times as long as a step, so that it is drawn only where
    somebody looks: at the start of an episode and at the end of a chunk."""

    def __init__(self, task: TaskConfig, config: SimulationConfig) -> None:
        self.env, self.options = build(task, config), {"reconfigure": True} if config.rebuild else {}
        self.spec = spec_of(task, self.env, observed(self.env.reset(seed=0)[0]))
        self._draw = self.env._get_obs_sensor_data
        self.env._get_obs_sensor_data = lambda *_: {}

    def reset(self, seed: int) -> Seen:
        with without_contacts(self.env):
            found = self.env.reset(seed=seed, options=self.options)[0]
        return Seen(observed(found).state[0].numpy(), self.look())

    def step(self, action: Array) -> Step:
        found, reward, _, _, info = self.env.step(moves(self.env, torch.from_numpy(action)[None]))
        success, failed = (bool(flag(info, name, 1)) for name in ("success", "fail"))
        return Step(Seen(observed(found).state[0].numpy()), float(reward), success, failed)

    def look(self) -> Pictures:
        if not self.spec.cameras:
            return {}
        # ManiSkill's tensor of one row shares memory with nothing that the next picture changes.
        return {name: image[0].numpy() for name, image in pictures(self._draw()).items()}

    def render(self) -> NDArray[np.uint8]:
        return picture(self.env)[0].numpy()
