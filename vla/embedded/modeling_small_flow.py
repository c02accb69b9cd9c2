"""A small flow-matching policy over states, sentences and pictures, in lerobot's convention (that of openpi):
x_t = t noise + (1 - t) action, v = noise - action, from t = 1 down to 0."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping

import torch
from lerobot.policies.common.flow_matching import euler_integrate, sample_noise, sample_time_beta
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor, nn
from torch.nn.functional import mse_loss, silu

from vla.embedded.configuration_small_flow import SmallFlowConfig
from vla.embedded.encoders import PictureEncoder, SentenceEncoder


class SmallFlow(nn.Module):
    """v(what is observed, x_t, t), and what it was read from."""

    def __init__(self, config: SmallFlowConfig) -> None:
        super().__init__()
        config.validate_features()
        assert config.robot_state_feature is not None
        assert config.action_feature is not None
        self.limit, self.time_size = config.state_limit, config.time_size
        self.chunk = (config.chunk_size, config.action_feature.shape[0])  # H, A
        self.cameras = tuple(config.image_features)
        self.prefix_size = config.robot_state_feature.shape[0] + len(self.cameras) * config.picture_size
        self.sentence = None
        if config.vocabulary:
            self.sentence = SentenceEncoder(len(config.vocabulary), config.max_words + 1, config.sentence_size)
            self.prefix_size += config.sentence_size
        self.pictures = nn.ModuleList(
            PictureEncoder(feature.shape, config.picture_size) for feature in config.image_features.values()
        )
        self.first = nn.Linear(self.prefix_size + math.prod(self.chunk) + config.time_size, config.width)
        self.blocks = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.depth))
        self.action_out_proj = nn.Linear(config.width, math.prod(self.chunk))

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What is observed (n, prefix_size), once a chunk: the state, then the sentence, then the pictures. The batch
        as the preprocessor leaves it: states (n, S), tokens (n, L), pictures (n, C, Y, X) from 0 to 1."""
        parts = [batch[OBS_STATE].clamp(-self.limit, self.limit)]
        if self.sentence is not None:
            parts.append(self.sentence(batch[OBS_LANGUAGE_TOKENS]))
        parts += [encoder(batch[name]) for name, encoder in zip(self.cameras, self.pictures, strict=True)]
        return torch.cat(parts, -1)

    def forward(self, prefix: Tensor, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity (n, H, A) and hidden numbers (n, W), of what `encode` made (n, prefix_size), x_t (n, H, A) and time
        (n,)."""
        hidden = self.first(torch.cat([prefix, x_t.flatten(1), embedding(time, self.time_size)], -1))
        for block in self.blocks:
            hidden = hidden + block(silu(hidden))
        hidden = silu(hidden)
        return self.action_out_proj(hidden).unflatten(-1, self.chunk), hidden


def embedding(time: Tensor, size: int) -> Tensor:
    """Sines and cosines (n, size) of time (n,), with periods from 0.04 to 4."""
    periods = torch.logspace(math.log10(0.04), math.log10(4.0), size // 2, device=time.device)
    angles = 2 * math.pi * time[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], -1)


class SmallFlowPolicy(PreTrainedPolicy):
    """lerobot's interface to it. Batches are as its preprocessor leaves them: observation.state (n, S),
    observation.language.tokens (n, L) and pictures (n, C, Y, X) where it reads them, action (n, H, A)."""

    config_class = SmallFlowConfig
    name = "small_flow"
    config: SmallFlowConfig

    def __init__(self, config: SmallFlowConfig, **_: object) -> None:
        super().__init__(config)
        self.model = SmallFlow(config)
        self.reset()

    def get_optim_params(self) -> Iterator[nn.Parameter]:
        return self.parameters()

    def reset(self) -> None:
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The loss of flow matching, with time from Beta(1.5, 1) as openpi has it."""
        actions = batch[ACTION]
        noise = sample_noise(actions.shape, actions.device)
        time = sample_time_beta(len(actions), actions.device, alpha=1.5, beta=1.0, scale=0.999, offset=0.001)
        pad = batch.get("action_is_pad", torch.zeros_like(actions[..., 0], dtype=torch.bool))
        loss = self.loss(batch, actions, pad, noise, time)
        return loss, {"loss": float(loss.detach())}

    def loss(self, batch: Mapping[str, Tensor], actions: Tensor, pad: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Mean squared error of the velocity on actions (n, H, A) that are no padding (n, H)."""
        at = time[:, None, None]
        velocity, _ = self.model(self.model.encode(batch), at * noise + (1 - at) * actions, time)
        error = mse_loss(velocity, noise - actions, reduction="none").mean(-1)
        return error[~pad].mean()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """A chunk (n, H, A) by lerobot's own integration, from `noise` if it is given."""
        prefix = self.model.encode(batch)
        noise = sample_noise((len(prefix), *self.model.chunk), prefix.device) if noise is None else noise
        found: Tensor = euler_integrate(
            lambda x_t, time: self.model(prefix, x_t, time)[0], noise, self.config.num_inference_steps
        )
        return found

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        if not self._queue:
            chunk = self.predict_action_chunk(batch, noise)[:, : self.config.n_action_steps]
            self._queue.extend(chunk.transpose(0, 1))
        return self._queue.popleft()
