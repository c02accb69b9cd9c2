"""A robot without physics, for tests: a point that must reach the origin of a plane, and a small policy for it."""

from __future__ import annotations

from pathlib import Path

import torch

from mmrl.runtime import Runtime, RuntimeConfig
from vla.cloning import CloningConfig, clone
from vla.collector import EpisodeCollector, RewardConfig, RolloutConfig
from vla.demonstrations import Frames
from vla.policy import PolicyConfig, RobotPolicy
from vla.sim.base import Chunk, Observations, SimulationConfig, Simulator, TaskSpec


class Plane(Simulator):
    """The state is where a point is (2,) and a constant. An action moves it by a tenth; success within 0.35. A row of
    `lose` is lost at its second chunk."""

    def __init__(self, copies: int, max_steps: int = 10, terminate: bool = True, lose: int | None = None) -> None:
        self.config = SimulationConfig(copies=copies, terminate=terminate)
        self.tasks = (
            TaskSpec(
                "Plane-v1",
                "Plane-v1",
                "go home",
                (-1.0, -1.0),
                (1.0, 1.0),
                3,
                {},
                max_steps=max_steps,
                control_hz=20,
                fast=True,
            ),
        )
        self.task_index = torch.zeros(copies, dtype=torch.long)
        self.at, self.taken = torch.zeros(copies, 2), torch.zeros(copies, dtype=torch.long)
        self.over, self.lose, self.chunks = torch.ones(copies, dtype=torch.bool), lose, 0
        self.spent = 0.0

    def seen(self) -> Observations:
        return Observations(torch.cat([self.at, torch.ones(len(self), 1)], -1), instructions=self.instructions)

    def reset(self, env_index: torch.Tensor, seeds: torch.Tensor) -> Observations:
        for row, seed in zip(env_index.tolist(), seeds.tolist(), strict=True):
            self.at[row] = torch.rand(2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        self.taken[env_index], self.over[env_index], self.chunks = 0, False, 0
        return self.seen()

    def chunk_step(self, actions: torch.Tensor, then: torch.Tensor | None = None) -> Chunk:
        self.check_actions(actions)
        self.chunks, self.spent = self.chunks + 1, self.spent + 0.5
        count, horizon = actions.shape[:2]
        rewards = torch.zeros(count, horizon)
        success, alive, ended, cut = (torch.zeros(count, horizon, dtype=torch.bool) for _ in range(4))
        broken = torch.zeros(count, dtype=torch.bool)
        if self.lose is not None and self.chunks == 2:
            broken[self.lose] = ~self.over[self.lose]
            self.over[self.lose] = True
        for h in range(horizon):
            acting = ~self.over
            self.at = torch.where(acting[:, None], self.at + 0.1 * actions[:, h].clamp(-1, 1), self.at)
            self.taken += acting
            near = self.at.norm(dim=-1) < 0.35
            rewards[:, h] = torch.where(acting, 1 - self.at.norm(dim=-1), 0.0)
            success[:, h], alive[:, h] = acting & near, acting
            ended[:, h] = acting & near & self.config.terminate
            cut[:, h] = acting & ~ended[:, h] & (self.taken >= self.tasks[0].max_steps)
            self.over = self.over | ended[:, h] | cut[:, h]
        return Chunk(self.seen(), self.seen(), rewards, success, alive, ended.any(1), cut.any(1), broken, 0.0)

    def render(self, env_index: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def close(self) -> None:
        return

    def cpu_s(self) -> float:
        return self.spent


def make_policy(folder: Path, steps: int = 150, horizon: int = 3) -> Path:
    """A folder of lerobot with a policy that was shown a few ways home."""
    generator = torch.Generator().manual_seed(0)
    at = torch.rand(400, 2, generator=generator) * 2 - 1
    chunks = (-at / at.norm(dim=-1, keepdim=True))[:, None].expand(-1, horizon, -1).contiguous()
    pad = torch.zeros(400, horizon, dtype=torch.bool)
    pad[::7, -1] = True
    frames = Frames(torch.cat([at, torch.ones(400, 1)], -1), chunks, pad, 1)
    config = CloningConfig(steps=steps, rows=64, horizon=horizon, denoise_steps=4, width=24, depth=2)
    clone(frames, config, generator, folder, progress=False)
    return folder


def load(folder: Path, **settings: object) -> RobotPolicy:
    """With heads that say something: those of a new policy are zero at first."""
    policy = RobotPolicy.load(PolicyConfig(str(folder), **settings), torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.heads.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


def collector(simulator: Plane, group: int = 1, reward: RewardConfig | None = None) -> EpisodeCollector:
    runtime = Runtime(RuntimeConfig(device="cpu"), seed=0)
    return EpisodeCollector(simulator, RolloutConfig(len(simulator), group), reward or RewardConfig(), runtime)
