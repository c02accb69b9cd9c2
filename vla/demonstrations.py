"""Demonstrations as a LeRobotDataset of version 3, so that lerobot's own tools can clone from them too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from mmrl.recipes import find_asset
from vla.experts import Expert
from vla.sim.base import SimulationConfig, TaskConfig
from vla.sim.start import start

SEED = "seed"
SEED_FEATURE: dict[str, dict[str, Any]] = {SEED: {"dtype": "int64", "shape": (1,), "names": None}}
"""Of an episode's initial state, in each of its frames: with it `mmrl check` can play the episode again."""
AT_ONCE = 16
"""Environments that demonstrate together."""


@dataclass(frozen=True)
class Scripted:
    """How demonstrations are made: the expert's successes from the initial states of `first_seed` and on. `noise` is
    the standard deviation of what is added to an action that is executed; recorded is what the expert meant."""

    expert: Expert
    first_seed: int = 0
    noise: float = 0.0


@dataclass(frozen=True)
class DemonstrationsConfig:
    """A folder of a LeRobotDataset, made by `script` where it is not there. `episodes` are read, the first ones; null
    means all."""

    folder: str
    episodes: int | None = None
    script: Scripted | None = None

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(f"demonstrations.episodes is {self.episodes}: give 1 or more, or null for all")


@dataclass(frozen=True)
class Episode:
    """One demonstration."""

    states: Tensor  # (E, S)
    actions: Tensor  # (E, A)
    seed: int
    """Of its initial state."""


@dataclass(frozen=True)
class Frames:
    """Every frame with the chunk of actions that follows it."""

    states: Tensor  # (F, S)
    chunks: Tensor  # (F, H, A); the last action again where the episode is over
    pad: Tensor  # (F, H) bool: it is over
    episodes: int


def ensure(config: DemonstrationsConfig, task: TaskConfig, generator: torch.Generator) -> Path:
    """The folder of `config`; demonstrations are made if there are none.

    Raises:
        FileNotFoundError: there are none, and nothing says how to make them.
    """
    shipped, folder = Path(find_asset(config.folder)), Path(config.folder)
    if (shipped / "meta" / "info.json").is_file():
        return shipped
    if config.script is None:
        raise FileNotFoundError(f"demonstrations.folder {folder} holds no LeRobotDataset: give one, or a `script`")
    if config.episodes is None:
        raise ValueError("demonstrations.episodes is null: say how many the script is to make")
    episodes, rate = demonstrate(task, config.script, config.episodes, generator)
    write(folder, task, episodes, rate)
    return folder


def demonstrate(
    task: TaskConfig, script: Scripted, count: int, generator: torch.Generator
) -> tuple[list[Episode], int]:
    """`count` successful episodes in order of their seeds, and the control frequency.

    Raises:
        ValueError: fewer than one in ten episodes succeeds.
    """
    found: list[Episode] = []
    with start([task], SimulationConfig(copies=AT_ONCE, workers=1)) as simulator:
        rate, tried = simulator.tasks[0].control_hz, 0
        while len(found) < count:
            if tried >= 10 * count + AT_ONCE:
                raise ValueError(f"{script.expert} succeeded in {len(found)} of {tried} episodes of {task.id}")
            seeds = torch.arange(AT_ONCE) + script.first_seed + tried
            seen, tried = simulator.reset(torch.arange(AT_ONCE), seeds), tried + AT_ONCE
            states, actions, alive, success = [], [], [], torch.zeros(AT_ONCE, dtype=torch.bool)
            for _ in range(simulator.tasks[0].max_steps):
                meant = script.expert(seen.state)
                noise = torch.randn(meant.shape, generator=generator) * script.noise
                chunk = simulator.chunk_step((meant + noise)[:, None])
                states.append(seen.state)
                actions.append(meant)
                alive.append(chunk.alive[:, 0])
                success |= chunk.success[:, 0]
                seen = chunk.observations
            lived = torch.stack(alive, 1)
            for row in success.nonzero()[:, 0].tolist():
                kept = lived[row]
                shown = torch.stack(states, 1)[row, kept], torch.stack(actions, 1)[row, kept]
                found.append(Episode(*shown, int(seeds[row])))
    return found[:count], rate


def write(folder: Path, task: TaskConfig, episodes: Sequence[Episode], rate: int) -> None:
    """A new LeRobotDataset."""
    shapes = {OBS_STATE: episodes[0].states.shape[1], ACTION: episodes[0].actions.shape[1]}
    features = {
        name: {"dtype": "float32", "shape": (size,), "names": [f"{name.split('.')[-1]}_{i}" for i in range(size)]}
        for name, size in shapes.items()
    }
    features |= SEED_FEATURE
    dataset = LeRobotDataset.create(folder.name, rate, features, root=folder, robot_type="panda", use_videos=False)
    for episode in episodes:
        for state, action in zip(episode.states, episode.actions, strict=True):
            seed = {SEED: np.array([episode.seed])}
            dataset.add_frame({OBS_STATE: state.numpy(), ACTION: action.numpy(), "task": task.sentence(), **seed})
        dataset.save_episode()
    dataset.finalize()


def read(folder: Path, count: int | None, horizon: int) -> Frames:
    """The frames of the first `count` episodes, all in memory.

    Raises:
        ValueError: there are fewer.
    """
    dataset = LeRobotDataset(folder.name, root=folder)
    if count is not None and count > dataset.num_episodes:
        raise ValueError(f"demonstrations.episodes is {count}, and {folder} has {dataset.num_episodes}")
    table = dataset.hf_dataset.with_format("torch")[:]
    states, actions, episode = table[OBS_STATE], table[ACTION], table["episode_index"]
    kept = episode < (dataset.num_episodes if count is None else count)
    states, actions, episode = states[kept], actions[kept], episode[kept]
    ahead = torch.arange(len(states))[:, None] + torch.arange(horizon)
    last = torch.tensor([int((episode == number).nonzero()[-1]) for number in episode])
    return Frames(states, actions[ahead.minimum(last[:, None])], ahead > last[:, None], int(episode[-1]) + 1)


def statistics(frames: Frames, floor: float) -> dict[str, dict[str, Tensor]]:
    """What lerobot's processors normalise by. `floor` bounds standard deviations from below: a few demonstrations
    hardly move some features, which would otherwise be blown up."""
    return {
        OBS_STATE: {"mean": frames.states.mean(0), "std": frames.states.std(0).clamp(min=floor)},
        ACTION: {"mean": frames.chunks[:, 0].mean(0), "std": frames.chunks[:, 0].std(0).clamp(min=floor)},
    }
