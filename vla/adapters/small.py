"""The small policy (`vla.embedded`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from lerobot.utils.constants import OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from vla.adapters.base import Adapter, Inputs, Prefix
from vla.embedded import SmallFlowPolicy
from vla.sim.base import Observations


@dataclass(frozen=True)
class EncodedPrefix(Prefix):
    """The state, the sentence and the pictures as numbers."""

    numbers: Tensor  # (n, prefix_size)

    def rows(self, index: Tensor) -> Self:
        return type(self)(self.numbers[index])


class SmallAdapter(Adapter):
    """One hidden vector a chunk; the critic reads the prefix."""

    def __init__(
        self, policy: SmallFlowPolicy, processors: tuple[Any, Any], denoise_steps: int | None, execute: int | None
    ) -> None:
        super().__init__()
        config = policy.config
        assert config.robot_state_feature is not None
        self.policy, self.processors, self.model = policy, processors, policy.model
        self.chunk = policy.model.chunk
        self.action_size, self.execute = self.chunk[1], execute or config.n_action_steps
        if not 1 <= self.execute <= self.chunk[0]:
            raise ValueError(f"policy.execute is {self.execute}: this policy's chunks have {self.chunk[0]} actions")
        self.denoise_steps = denoise_steps or config.num_inference_steps
        config.n_action_steps, config.num_inference_steps = self.execute, self.denoise_steps  # for what is exported
        self.hidden_size, self.noise_outputs = config.width, self.chunk[0] * self.chunk[1]
        self.feature_size, self.state_size = self.model.prefix_size, config.robot_state_feature.shape[0]

    def inputs(self, observations: Observations) -> Inputs:
        found = self.processors[0](self.read(observations))
        told = [OBS_LANGUAGE_TOKENS] if self.model.sentence is not None else []
        device = observations.state.device
        return {name: found[name].to(device) for name in (OBS_STATE, *self.model.cameras, *told)}

    def widened(self, size: int) -> int:
        """A policy that is told what to do knows several tasks, and fills up shorter states with zeros."""
        return size if self.model.sentence is None else max(size, self.state_size)

    def read(self, seen: Observations) -> dict[str, Any]:
        batch = super().read(seen)
        for name, feature in self.policy.config.image_features.items():
            if name not in batch:
                raise ValueError(f"observe.{name} is null: this policy has no other way to see, so give it a camera")
            if batch[name].shape[1:] != torch.Size(feature.shape):
                raise ValueError(
                    f"the policy reads a picture {name} of shape {tuple(feature.shape)} and it is "
                    f"{tuple(batch[name].shape[1:])}: set simulation.image_size to {feature.shape[1]}"
                )
        return batch

    def prefix(self, inputs: Inputs) -> EncodedPrefix:
        return EncodedPrefix(self.model.encode(inputs))

    def velocity(self, prefix: Prefix, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(prefix, EncodedPrefix)
        found: tuple[Tensor, Tensor] = self.model(prefix.numbers, x_t, time)
        return found

    def features(self, inputs: Inputs, prefix: Prefix) -> Tensor:
        assert isinstance(prefix, EncodedPrefix)
        return prefix.numbers.detach()

    def actions(self, chunk: Tensor) -> Tensor:
        found: Tensor = self.processors[1](chunk[:, : self.execute])
        return found
