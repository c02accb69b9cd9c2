"""The small policy over states (`vla.embedded`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from vla.adapters.base import Adapter, Inputs, Prefix
from vla.embedded import SmallFlowPolicy
from vla.sim.base import Observations


@dataclass(frozen=True)
class StatePrefix(Prefix):
    """The normalised state itself."""

    state: Tensor  # (n, S)

    def rows(self, index: Tensor) -> Self:
        return type(self)(self.state[index])


class SmallAdapter(Adapter):
    """One hidden vector a chunk; the critic reads the normalised state."""

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
        self.feature_size = config.robot_state_feature.shape[0]

    def inputs(self, observations: Observations) -> Inputs:
        state = self.processors[0](self.read(observations))[OBS_STATE]
        return {OBS_STATE: state.to(observations.state.device)}

    def prefix(self, inputs: Inputs) -> StatePrefix:
        return StatePrefix(inputs[OBS_STATE])

    def velocity(self, prefix: Prefix, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(prefix, StatePrefix)
        found: tuple[Tensor, Tensor] = self.model(prefix.state, x_t, time)
        return found

    def features(self, inputs: Inputs, prefix: Prefix) -> Tensor:
        limit = self.policy.config.state_limit
        return inputs[OBS_STATE].clamp(-limit, limit)

    def actions(self, chunk: Tensor) -> Tensor:
        found: Tensor = self.processors[1](chunk[:, : self.execute])
        return found
