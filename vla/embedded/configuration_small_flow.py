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
    """A residual perceptron from a state, a sentence, pictures and a noisy action chunk to a velocity. There is a
    sentence where there is a vocabulary, and a picture for each visual feature. Actions are not normalised: those of
    ManiSkill's controllers are from -1 to 1."""

    chunk_size: int = 4
    n_action_steps: int = 4
    num_inference_steps: int = 4
    width: int = 128
    depth: int = 3
    time_size: int = 32
    state_limit: float = 5.0
    """Normalised states are clipped here: few demonstrations know little of how far a feature can go."""
    vocabulary: list[str] = field(default_factory=list)
    """The words it knows, in lower case; none: it is told nothing."""
    max_words: int = 16
    """Of a sentence; what is beyond is not read."""
    sentence_size: int = 32
    picture_size: int = 64
    """Numbers that a sentence and a picture become."""
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.IDENTITY,
            "VISUAL": NormalizationMode.IDENTITY,
        }
    )
    device: str | None = "cpu"
    optimizer_lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_action_steps > self.chunk_size:
            raise ValueError(f"n_action_steps is {self.n_action_steps}: a chunk has {self.chunk_size}")
        if self.max_words < 1:
            raise ValueError(f"max_words is {self.max_words}: give 1 or more")

    def validate_features(self) -> None:
        """Raises:
        ValueError: there is no state to read or no action to predict, or a picture that cannot be halved three times.
        """
        if self.robot_state_feature is None or self.action_feature is None:
            raise ValueError(f"small_flow needs the features {OBS_STATE} and {ACTION}")
        for name, feature in self.image_features.items():
            if len(feature.shape) != 3 or feature.shape[1] % 8 or feature.shape[2] % 8:
                raise ValueError(f"feature {name} has shape {tuple(feature.shape)}: give (3, Y, X), multiples of 8")

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
