"""Prompts to rewarded denoising."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from diffusion.policy import DiffusionPolicy
from diffusion.prompts import Asked
from diffusion.sampling import SamplingConfig, draw
from mmrl.order import Shuffled
from mmrl.runtime import Runtime
from mmrl.types import Collector, Policy, RewardFunction, Rollout, Samples


@dataclass(frozen=True)
class RolloutConfig:
    """`prompts` a step over all processes, and `group` pictures of each."""

    prompts: int = 8
    group: int = 8

    def __post_init__(self) -> None:
        for name in ("prompts", "group"):
            if vars(self)[name] < 1:
                raise ValueError(f"rollout.{name} is {vars(self)[name]}: give 1 or more")


class PictureCollector(Collector):
    """Draws a group of pictures of each prompt and rewards them. The reward falls on the last step, whether it is a
    decision or not."""

    def __init__(
        self,
        prompts: Sequence[Asked],
        reward: RewardFunction,
        config: RolloutConfig,
        sampling: SamplingConfig,
        runtime: Runtime,
    ) -> None:
        if config.prompts % runtime.world or config.prompts < runtime.world:
            raise ValueError(
                f"rollout.prompts is {config.prompts} on {runtime.world} processes: give a multiple of {runtime.world}"
            )
        self.prompts, self.reward, self.config = prompts, reward, config
        self.sampling, self.runtime = sampling, runtime
        self._order = Shuffled(len(prompts), runtime, "prompts")

    def collect(self, policy: Policy, generator: torch.Generator) -> Rollout:
        assert isinstance(policy, DiffusionPolicy)
        taken = self._order.take(self.config.prompts)
        places = range(self.runtime.rank, len(taken), self.runtime.world)
        chosen = [self.prompts[taken[place]] for place in places]
        drawn = draw(policy, [asked.prompt for asked in chosen], self.config.group, self.sampling, generator)
        asked = [one for one in chosen for _ in range(self.config.group)]
        scores = self.reward(as_samples(asked, drawn.pictures))
        device = drawn.logprobs.device
        alive = scores.applicable.to(device)[:, None].expand_as(drawn.mask)
        rewards = torch.zeros_like(drawn.logprobs)
        rewards[:, -1] = scores.values.to(device)
        return Rollout(
            transitions=drawn.transitions,
            logprobs=drawn.logprobs,
            mask=drawn.mask & alive,
            alive=alive,
            rewards=rewards,
            discounts=torch.ones_like(rewards),
            group_ids=torch.tensor(list(places), device=device).repeat_interleave(self.config.group),
            reward_parts={name: part.values.to(device) for name, part in scores.parts.items()},
            applicable={name: part.applicable.to(device) for name, part in scores.parts.items()},
            decision_size=1 if policy.config.logprob_reduction == "mean" else drawn.dimensions,
        )

    def state_dict(self) -> dict[str, object]:
        return {"drawn": self._order.drawn}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self._order.drawn = int(str(state["drawn"]))


def as_samples(asked: Sequence[Asked], pictures: Sequence[object]) -> Samples:
    """What rewards and metrics read: pictures with the columns of their prompts."""
    names = {name: None for one in asked for name in one.columns}
    columns: dict[str, Sequence[object]] = {name: [one.columns.get(name) for one in asked] for name in names}
    columns["prompt"] = [one.prompt for one in asked]
    return Samples(pictures, columns, [one.id for one in asked])
