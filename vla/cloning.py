"""A new small policy, cloned from demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import nn
from tqdm import tqdm

from mmrl.heads import initialise
from vla.demonstrations import Frames, statistics
from vla.embedded import SmallFlowConfig, SmallFlowPolicy


@dataclass(frozen=True)
class CloningConfig:
    """`steps` of AdamW on `rows` frames each, along a cosine; `horizon` actions of a chunk, `denoise_steps` of the
    integration, and the sizes of the perceptron. `floor` is the least standard deviation of a state's feature."""

    steps: int = 800
    rows: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-4
    horizon: int = 4
    denoise_steps: int = 4
    width: int = 128
    depth: int = 3
    floor: float = 0.02

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rows < 1 or self.lr <= 0:
            raise ValueError(f"cloning has steps {self.steps}, rows {self.rows} and lr {self.lr}: give more than 0")


def clone(frames: Frames, config: CloningConfig, generator: torch.Generator, folder: Path, progress: bool) -> float:
    """Train a new policy on `frames` and write it, with its processors, as lerobot does; returns the last loss."""
    policy = new_policy(frames, config, generator)
    before, after = make_pre_post_processors(policy.config, dataset_stats=statistics(frames, config.floor))
    states = before({OBS_STATE: frames.states})[OBS_STATE]
    optimizer = torch.optim.AdamW(policy.parameters(), config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    value = 0.0
    for _ in tqdm(range(config.steps), disable=not progress, unit="step"):
        rows = torch.randint(len(states), (config.rows,), generator=generator)
        chunks = frames.chunks[rows]
        noise = torch.randn(chunks.shape, generator=generator)
        time = torch.rand(len(rows), generator=generator) ** (1 / 1.5) * 0.999 + 0.001  # Beta(1.5, 1)
        loss = policy.loss(states[rows], chunks, frames.pad[rows], noise, time)
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


def new_policy(frames: Frames, config: CloningConfig, generator: torch.Generator) -> SmallFlowPolicy:
    """Random weights, drawn from `generator`."""
    features = {
        OBS_STATE: PolicyFeature(FeatureType.STATE, (frames.states.shape[1],)),
        ACTION: PolicyFeature(FeatureType.ACTION, (frames.chunks.shape[2],)),
    }
    sizes = SmallFlowConfig(
        input_features={OBS_STATE: features[OBS_STATE]},
        output_features={ACTION: features[ACTION]},
        chunk_size=config.horizon,
        n_action_steps=config.horizon,
        num_inference_steps=config.denoise_steps,
        width=config.width,
        depth=config.depth,
        push_to_hub=False,
    )
    policy = SmallFlowPolicy(sizes)
    initialise(policy, generator)
    return policy
