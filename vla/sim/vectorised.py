"""ManiSkill's own vectorised environment: N of one task in this process, on the GPU.

Never run by us on a GPU. What is tested is this file over `physx_cpu` with its one environment, and the protocol.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vla.sim.base import Chunk, Observations, SimulationConfig, SimulationError, Simulator, TaskConfig
from vla.sim.native import build, flag, moves, observed, picture, spec_of
from vla.sim.tasks import module_of


class Vectorised(Simulator):
    """All environments step together: one whose episode is over steps on, and what it does is not recorded."""

    def __init__(self, tasks: Sequence[TaskConfig], config: SimulationConfig) -> None:
        if len(tasks) != 1:
            raise SimulationError(f"simulation.backend physx_cuda takes one task, not {len(tasks)}: use physx_cpu")
        module_of(tasks[0])
        self.config, self._env = config, build(tasks[0], config, config.copies)
        self.task_index = torch.zeros(config.copies, dtype=torch.long)
        views = observed(self._env.reset(seed=list(range(config.copies)))[0])
        self.tasks = (spec_of(tasks[0], self._env, views),)
        self._views = replace(views, instructions=self.instructions)
        self._taken = torch.zeros(config.copies, dtype=torch.long, device=self._env.device)
        self._over = torch.ones(config.copies, dtype=torch.bool, device=self._env.device)

    def reset(self, env_index: Tensor, seeds: Tensor) -> Observations:
        """Here the states are drawn together, by torch, from the seeds of the whole call: the same call gives the same
        states, and rows with equal seeds are given the state of the first of them."""
        rows, chosen = env_index.to(self._env.device), seeds.tolist()
        if not len(rows):
            return self._views
        every = [chosen[0]] * len(self)
        for row, seed in zip(env_index.tolist(), chosen, strict=True):
            every[row] = seed
        self._env.reset(seed=every, options={"env_idx": rows})
        first = torch.tensor([chosen.index(seed) for seed in chosen], device=rows.device)
        state = self._env.get_state()[rows[first]]
        found, _ = self._env.reset(options={"env_idx": rows, "reset_to_env_states": {"env_states": state}})
        new, begun = replace(observed(found), instructions=self.instructions), torch.zeros_like(self._over)
        begun[rows] = True
        self._views = new.where(begun, self._views)
        self._taken[rows], self._over[rows] = 0, False
        return self._views

    def chunk_step(self, actions: Tensor, then: Tensor | None = None) -> Chunk:
        self.check_actions(actions)
        began, count, horizon = time.perf_counter(), len(self), actions.shape[1]
        given = actions.to(self._env.device, torch.float32)
        rewards = torch.zeros(count, horizon, device=given.device)
        success, alive, ends, cut = (
            torch.zeros(count, horizon, dtype=torch.bool, device=given.device) for _ in range(4)
        )
        broken = torch.zeros_like(self._over)
        for h in range(horizon):
            acting = ~self._over
            found, reward, _, _, info = self._env.step(moves(self._env, given[:, h]))
            views = replace(observed(found), instructions=self.instructions)
            lost = acting & ~(torch.isfinite(views.state).all(-1) & torch.isfinite(reward))
            acting, broken = acting & ~lost, broken | lost
            self._views, self._taken = views.where(acting, self._views), self._taken + acting
            rewards[:, h] = torch.where(acting, reward.float(), 0.0)
            right, wrong = (flag(info, name, count).to(given.device) for name in ("success", "fail"))
            success[:, h], alive[:, h] = acting & right, acting
            ends[:, h] = acting & (right | wrong) & self.config.terminate
            cut[:, h] = acting & ~ends[:, h] & (self._taken >= self.tasks[0].max_steps)
            self._over = self._over | ends[:, h] | cut[:, h] | lost
        final, over = self._views, self._over.clone()
        kept = ~broken[:, None]
        chunk = Chunk(
            final, final, rewards * kept, success & kept, alive & kept,
            ends.any(-1) & ~broken, cut.any(-1) & ~broken, broken, time.perf_counter() - began,
        )  # fmt: skip
        if then is None:
            return chunk
        rows = over.nonzero()[:, 0].cpu()
        return replace(chunk, observations=self.reset(rows, then.cpu()[rows]))

    def render(self, env_index: Tensor) -> Tensor:
        self.check_render()
        return picture(self._env)[env_index.to(self._env.device)]

    def close(self) -> None:
        self._env.close()
