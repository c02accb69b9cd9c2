"""A new small policy, cloned from demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor, nn
from tqdm import tqdm

from mmrl.heads import initialise
from vla.demonstrations import Frames, statistics
from vla.embedded import SmallFlowConfig, SmallFlowPolicy
from vla.embedded.encoders import UNKNOWN, WORDS_FROM
from vla.embedded.processor_small_flow import words_of


@dataclass(frozen=True)
class CloningConfig:
    """`steps` of AdamW on `rows` frames each, along a cosine; `horizon` actions of a chunk, `denoise_steps` of the
    integration, and the sizes of the perceptron. `floor` is the least standard deviation of a state's feature. With
    `language` it is told the sentences of the demonstrations, whose words are its vocabulary; `forget` is the share of
    them that is replaced by the token of unknown words. It sees the pictures that the demonstrations have."""

    steps: int = 800
    rows: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-4
    horizon: int = 4
    denoise_steps: int = 4
    width: int = 128
    depth: int = 3
    floor: float = 0.02
    language: bool = False
    forget: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rows < 1 or self.lr <= 0:
            raise ValueError(f"cloning has steps {self.steps}, rows {self.rows} and lr {self.lr}: give more than 0")
        if not 0 <= self.forget < 1:
            raise ValueError(f"cloning.forget is {self.forget}: give a share from 0 to less than 1")


def clone(frames: Frames, config: CloningConfig, generator: torch.Generator, folder: Path, progress: bool) -> float:
    """Train a new policy on `frames` and write it, with its processors, as lerobot does; returns the last loss."""
    policy = new_policy(frames, config, generator)
    before, after = make_pre_post_processors(policy.config, dataset_stats=statistics(frames, config.floor))
    inputs = before({OBS_STATE: frames.states, "task": list(frames.sentences)})
    optimizer = torch.optim.AdamW(policy.parameters(), config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    value = 0.0
    for _ in tqdm(range(config.steps), disable=not progress, unit="step"):
        rows = torch.randint(len(frames.states), (config.rows,), generator=generator)
        chunks = frames.chunks[rows]
        noise = torch.randn(chunks.shape, generator=generator)
        time = torch.rand(len(rows), generator=generator) ** (1 / 1.5) * 0.999 + 0.001  # Beta(1.5, 1)
        batch = {OBS_STATE: inputs[OBS_STATE][rows]}
        batch |= {name: pictures[rows].float() / 255 for name, pictures in frames.images.items()}
        if config.language:
            batch[OBS_LANGUAGE_TOKENS] = forgotten(inputs[OBS_LANGUAGE_TOKENS][rows], config.forget, generator)
        loss = policy.loss(batch, chunks, frames.pad[rows], noise, time)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        value = float(loss.detach())
    policy.eval()
    policy.save_pretrained(folder)
    before.save_pretrained(folder)
    after.save_pretrained(folder)
    return value


def forgotten(tokens: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Tokens (n, L), a `share` of the words replaced by the one of unknown words."""
    drawn = torch.rand(tokens.shape, generator=generator) < share
    return tokens.masked_fill(drawn & (tokens >= WORDS_FROM), UNKNOWN)


def new_policy(frames: Frames, config: CloningConfig, generator: torch.Generator) -> SmallFlowPolicy:
    """Random weights, drawn from `generator`."""
    pictures = {
        name: PolicyFeature(FeatureType.VISUAL, tuple(images.shape[1:])) for name, images in frames.images.items()
    }
    words = sorted({word for sentence in set(frames.sentences) for word in words_of(sentence)})
    sizes = SmallFlowConfig(
        input_features={OBS_STATE: PolicyFeature(FeatureType.STATE, (frames.states.shape[1],)), **pictures},
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (frames.chunks.shape[2],))},
        chunk_size=config.horizon,
        n_action_steps=config.horizon,
        num_inference_steps=config.denoise_steps,
        width=config.width,
        depth=config.depth,
        vocabulary=words if config.language else [],
        push_to_hub=False,
    )
    policy = SmallFlowPolicy(sizes)
    initialise(policy, generator)
    return policy
