"""The small policy (`vla.embedded`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from lerobot.utils.constants import OBS_IMAGES, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor
from torch.nn.functional import pad

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
        self.hidden_size, self.noise_outputs = config.width, self.chunk[0] * self.chunk[1]
        self.feature_size, self.state_size = self.model.prefix_size, config.robot_state_feature.shape[0]

    def inputs(self, observations: Observations) -> Inputs:
        """A policy that is told what to do knows several tasks, and fills up shorter states with zeros."""
        told, missing = self.model.sentence is not None, self.state_size - observations.state.shape[1]
        if missing < 0 or (missing and not told):
            raise ValueError(
                f"the policy reads a state of {self.state_size} numbers and the task tells "
                f"{observations.state.shape[1]}: it was made for another task, robot or simulation.observe"
            )
        batch: dict[str, Any] = {OBS_STATE: pad(observations.state, (0, missing)), **self._pictures(observations)}
        if told:
            batch["task"] = list(observations.instructions)
        found = self.processors[0](batch)
        return {name: found[name] for name in (OBS_STATE, *self.model.cameras, *([OBS_LANGUAGE_TOKENS] * told))}

    def _pictures(self, observations: Observations) -> dict[str, Tensor]:
        """Those that the policy reads (n, C, Y, X), from 0 to 1 as lerobot has them."""
        found = {}
        for name, feature in self.policy.config.image_features.items():
            picture = observations.images.get(name.removeprefix(f"{OBS_IMAGES}."))
            if picture is None or picture.shape[1:] != torch.Size(feature.shape):
                seen = "there is none" if picture is None else f"it is {tuple(picture.shape[1:])}"
                raise ValueError(
                    f"the policy reads a picture {name} of shape {tuple(feature.shape)} and {seen}: set "
                    f"simulation.observe to images and simulation.image_size to {feature.shape[1]}"
                )
            found[name] = picture.float() / 255
        return found

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
