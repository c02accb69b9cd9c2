"""Episodes to rewarded decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.runtime import Runtime
from mmrl.types import Collector, Policy, Rollout
from vla.policy import RobotPolicy
from vla.rollouts import Begun, Played, chunks_of, play
from vla.sim.base import Simulator
from vla.transitions import ChunkTransitions

FIRST_TRAINING_SEED = 2**20
"""Seeds below are for demonstrations and held-out episodes."""


@dataclass(frozen=True)
class RolloutConfig:
    """`episodes` a step and process, shared out evenly over the tasks, `group` of them from the same initial state (for
    group-relative advantages)."""

    episodes: int = 40
    group: int = 1

    def __post_init__(self) -> None:
        if self.group < 1 or self.episodes < 1 or self.episodes % self.group:
            raise ValueError(
                f"rollout.episodes is {self.episodes} and rollout.group is {self.group}: give a multiple of the group"
            )

    def copies(self, tasks: int) -> int:
        """Episodes of each task.

        Raises:
            ValueError: they cannot be shared out in whole groups.
        """
        if self.episodes % (self.group * tasks):
            raise ValueError(
                f"rollout.episodes is {self.episodes} for {tasks} tasks in groups of {self.group}: give a multiple of "
                f"{self.group * tasks}"
            )
        return self.episodes // tasks


@dataclass(frozen=True)
class RewardConfig:
    """Of a chunk: `success` at the first success of an episode, `dense` times the task's own reward, summed over its
    steps, and `relative` times what that reward has risen by since the chunk before (from 0 at the start). Differences
    add up to the last value, so that there is nothing to gain by not finishing (RLinf's use_rel_reward). The latter two
    need `env.reward: normalized_dense`. `discount` is gamma from one chunk to the next."""

    success: float = 1.0
    dense: float = 0.0
    relative: float = 0.0
    discount: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1:
            raise ValueError(f"reward.discount is {self.discount}: give more than 0 and at most 1")

    def of(self, steps: Tensor, success: Tensor, alive: Tensor) -> Tensor:
        """Rewards (B, E) of what steps (B, E, h) gave, where they succeeded (B, E, h) and were taken (B, E, h)."""
        count, chunks, size = steps.shape
        reached = success.flatten(1)
        first = (reached & (reached.cumsum(1) == 1)).view(count, chunks, size).any(-1)
        taken = alive.sum(-1)
        last = steps.gather(2, (taken - 1).clamp(min=0)[..., None])[..., 0]
        before = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], 1)
        risen = torch.where(taken > 0, last - before, 0.0)
        return self.success * first + self.dense * (steps * alive).sum(-1) + self.relative * risen


class EpisodeCollector(Collector):
    """Plays one episode in each environment of a simulator. Its only position is that of the generator."""

    def __init__(self, simulator: Simulator, config: RolloutConfig, reward: RewardConfig, runtime: Runtime) -> None:
        self.simulator, self.config, self.reward, self.runtime = simulator, config, reward, runtime

    def collect(self, policy: Policy, generator: torch.Generator) -> Rollout:
        assert isinstance(policy, RobotPolicy)
        begun = self.begin(policy, generator)
        return self.decisions(policy, play(policy, self.simulator, begun), begun.stochastic)

    def begin(self, policy: RobotPolicy, generator: torch.Generator) -> Begun:
        """Initial states and noise of the next episodes."""
        adapter, groups = policy.adapter, self.config.episodes // self.config.group
        seeds = torch.randint(FIRST_TRAINING_SEED, 2**31, (groups,), generator=generator, device=generator.device)
        shape = (self.config.episodes, chunks_of(self.simulator, adapter.execute))
        noise = torch.randn(
            *shape, adapter.denoise_steps + 1, *adapter.chunk, generator=generator, device=generator.device
        )
        stochastic = policy.config.exploration.stochastic(shape, adapter.denoise_steps, generator)
        return Begun(seeds.repeat_interleave(self.config.group).tolist(), noise, stochastic)

    def decisions(self, policy: RobotPolicy, played: Played, stochastic: Tensor) -> Rollout:
        """Decisions in order of chunk, denoise step, action and number; a chunk's reward is at its last one."""
        size, device = policy.decisions_per_chunk, policy.device
        broken, chunks = played.of("broken").any(1), len(played.chunks)
        began = torch.stack(played.began, 1) & ~broken[:, None]  # (B, E)
        steps, success, taken = (played.of(name) for name in ("rewards", "success", "alive"))
        rewards = self.reward.of(steps, success, taken)
        terminated, truncated = (played.of(name).any(1) for name in ("terminated", "truncated"))
        last = torch.arange(size) == size - 1
        discounts = torch.where(played.of("terminated"), 0.0, self.reward.discount)

        def at_the_end(numbers: Tensor, elsewhere: float) -> Tensor:
            """(B, E) -> (B, T)."""
            return torch.where(last, numbers[..., None], elsewhere).flatten(1).to(device)

        alive = began[..., None].expand(-1, -1, size)
        trained = alive & self._trained(policy, stochastic[:, :chunks].cpu(), taken)
        values = torch.stack(played.values, 1)[..., None].expand(-1, -1, size).flatten(1)
        assert played.final is not None
        every = torch.ones_like(broken)
        final = policy.value(played.final.rows(every, policy.device))
        has_critic = policy.config.critic is not None
        groups = torch.arange(self.config.episodes // self.config.group) + self.runtime.rank * self.config.episodes
        once = success.flatten(1).any(1)
        parts = {"success": once.float(), "steps": taken.flatten(1).sum(1).float()}
        applicable = dict.fromkeys(parts, ~broken)
        if len(self.simulator.tasks) > 1:
            for number, task in enumerate(self.simulator.tasks):
                parts[f"success/{task.label}"] = once.float()
                applicable[f"success/{task.label}"] = ~broken & (self.simulator.task_index == number)
        return Rollout(
            transitions=ChunkTransitions(
                {name: torch.stack(found, 1) for name, found in played.inputs.items()},
                torch.stack(played.chains, 1), stochastic[:, :chunks].to(device), began.to(device),
            ),
            logprobs=torch.stack(played.logprobs, 1).flatten(1),
            mask=trained.flatten(1).to(device),
            alive=alive.flatten(1).to(device),
            rewards=at_the_end(rewards, 0.0),
            discounts=at_the_end(discounts, 1.0),
            group_ids=groups.repeat_interleave(self.config.group).to(device),
            values=values if has_critic else None,
            last_value=torch.where((truncated & ~terminated).to(device), final, 0.0) if has_critic else None,
            chain_ends=last.expand_as(alive).flatten(1).to(device),
            reward_parts={name: part.to(device) for name, part in parts.items()},
            applicable={name: flags.to(device) for name, flags in applicable.items()},
            decision_size=policy.decision_size,
        )  # fmt: skip

    @staticmethod
    def _trained(policy: RobotPolicy, stochastic: Tensor, taken: Tensor) -> Tensor:
        """Which decisions (B, E, D) have a density and, where a chunk has several, were executed."""
        counting, a = policy.counting, policy.adapter.action_size
        noisy = stochastic if counting.decisions == "step" else stochastic.any(-1, keepdim=True)
        parts = {"chunk": torch.ones_like(taken[..., :1]), "action": taken, "token": taken.repeat_interleave(a, -1)}
        return (noisy[..., None] & parts[counting.level][..., None, :]).flatten(2)

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        return

    def cpu_s(self) -> float:
        return self.simulator.cpu_s()
