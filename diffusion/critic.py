"""What a critic of denoising reads of a state."""

from __future__ import annotations

import torch
from torch import Tensor

OF_A_CHANNEL = 4


def feature_count(channels: int) -> int:
    """Numbers of `features` for latents of so many channels."""
    return OF_A_CHANNEL * channels + 1


def features(x: Tensor, prediction: Tensor, progress: Tensor) -> Tensor:
    """Features (n, F) of n states: per channel the mean and the deviation of the noisy latent x (n, ...) and of the
    denoiser's prediction for it (n, ...), after guidance, and the share of the steps that is behind (n,).

    The prediction is there anyway, and is what the model makes of latent, time and prompt: the prompt is in it, which
    could not be read itself without knowing under which names this kind of model is told of it. Statistics of channels
    are the same few numbers for every size of picture, for UNets and for transformers, where hidden layers are not.
    They do not say where something is in the picture: V knows its kind, not its layout.

    Raises:
        ValueError: the latents have no channels.
    """
    read = [number for part in (x, prediction) for number in _moments(part.float())]
    return torch.cat([*read, progress[:, None].to(x).float()], dim=-1)


def _moments(latent: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (n, C) of latents (n, C, ..., X), or of tokens (n, L, C) into which a picture was packed."""
    if latent.ndim < 3:
        raise ValueError(f"policy.critic reads latents of channels and places, and these are {tuple(latent.shape)}")
    by_channel = latent.transpose(1, 2) if latent.ndim == 3 else latent.flatten(2)
    return by_channel.mean(-1), by_channel.std(-1, correction=0)
