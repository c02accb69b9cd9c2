"""Sizes of the small flow-matching policy, as lerobot keeps them."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim import AdamWConfig
from lerobot.utils.constants import ACTION, OBS_STATE


@PreTrainedConfig.register_subclass("small_flow")
@dataclass
class SmallFlowConfig(PreTrainedConfig):
    """A residual perceptron from a state and a noisy action chunk to a velocity. Actions are not normalised: those of
    ManiSkill's controllers are from -1 to 1."""

    chunk_size: int = 4
    n_action_steps: int = 4
    num_inference_steps: int = 4
    width: int = 128
    depth: int = 3
    time_size: int = 32
    state_limit: float = 5.0
    """Normalised states are clipped here: few demonstrations know little of how far a feature can go."""
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {"STATE": NormalizationMode.MEAN_STD, "ACTION": NormalizationMode.IDENTITY}
    )
    device: str | None = "cpu"
    optimizer_lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_action_steps > self.chunk_size:
            raise ValueError(f"n_action_steps is {self.n_action_steps}: a chunk has {self.chunk_size}")

    def validate_features(self) -> None:
        """Raises:
        ValueError: there is no state to read or no action to predict.
        """
        if self.robot_state_feature is None or self.action_feature is None:
            raise ValueError(f"small_flow needs the features {OBS_STATE} and {ACTION}")

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(lr=self.optimizer_lr)

    def get_scheduler_preset(self) -> None:
        return None
