"""Episodes as a LeRobotDataset of version 3: what was observed, done and reached at every environment step.

Beside lerobot's own features each frame holds the `seed` of its episode's initial state, from which `mmrl check` plays
it again, and `next.reward` and `next.success` of its step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor

from vla.demonstrations import SEED, SEED_FEATURE
from vla.rollouts import Begun, Watcher
from vla.sim.base import Chunk, Observations, Simulator

REWARD, SUCCESS = "next.reward", "next.success"


@dataclass(frozen=True)
class RecordConfig:
    """What `mmrl rollout` keeps of its `rollout.episodes` episodes. `dataset`: a LeRobotDataset in the folder `dataset`
    of its output. `explore`: with the noise of training; if not, by the flow's ODE, as evaluation does."""

    dataset: bool = False
    explore: bool = True


@dataclass(frozen=True)
class Recorded:
    """One episode of L steps."""

    states: Tensor  # (L, S)
    images: Mapping[str, Tensor]  # camera -> (L, 3, Y, X) uint8
    actions: Tensor  # (L, A), as they were given to the controller, which may clip them
    rewards: Tensor  # (L,)
    success: Tensor  # (L,) bool
    instruction: str
    seed: int


@dataclass
class Trace(Watcher):
    """Keeps all of it in memory."""

    seen: list[Observations] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)

    def began(self, simulator: Simulator) -> None:
        return

    def stepped(self, simulator: Simulator, seen: Observations, actions: Tensor, chunk: Chunk) -> None:
        self.seen.append(seen)
        self.actions.append(actions)
        self.chunks.append(chunk)

    def episodes(self, begun: Begun, instructions: Sequence[str]) -> Iterator[Recorded]:
        """All B in order, but for those that were lost."""
        alive, rewards, success, broken = (
            torch.stack([vars(chunk)[name] for chunk in self.chunks], 1).flatten(1)
            for name in ("alive", "rewards", "success", "broken")
        )
        for row, seed in enumerate(begun.seeds):
            steps = alive[row].nonzero()[:, 0].tolist()
            if bool(broken[row].any()) or not steps:
                continue
            yield Recorded(
                torch.stack([self.seen[step].state[row] for step in steps]).cpu(),
                {
                    name: torch.stack([self.seen[step].images[name][row] for step in steps]).cpu()
                    for name in self.seen[0].images
                },
                torch.stack([self.actions[step][row] for step in steps]).cpu(),
                rewards[row, steps].cpu(), success[row, steps].cpu(), instructions[row], seed,
            )  # fmt: skip


def write(folder: Path, episodes: Sequence[Recorded], rate: int) -> None:
    """A new LeRobotDataset of `episodes` at a control frequency.

    Raises:
        FileExistsError: there is something already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: name another folder with --output, or remove it")
    first = episodes[0]
    features: dict[str, dict[str, Any]] = {
        name: {"dtype": "float32", "shape": (size,), "names": [f"{name.split('.')[-1]}_{i}" for i in range(size)]}
        for name, size in ((OBS_STATE, first.states.shape[1]), (ACTION, first.actions.shape[1]))
    }
    for name, images in first.images.items():
        shape = tuple(images.shape[1:])
        features[f"{OBS_IMAGES}.{name}"] = {"dtype": "image", "shape": shape, "names": ["channels", "height", "width"]}
    features[REWARD] = {"dtype": "float32", "shape": (1,), "names": None}
    features[SUCCESS] = {"dtype": "bool", "shape": (1,), "names": None}
    dataset = LeRobotDataset.create(folder.name, rate, features | SEED_FEATURE, root=folder, use_videos=False)
    with quietly():
        for episode in episodes:
            for step in range(len(episode.states)):
                dataset.add_frame(_frame(episode, step))
            dataset.save_episode()
        dataset.finalize()


@contextmanager
def quietly() -> Iterator[None]:
    """Without a progress bar an episode."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _frame(episode: Recorded, step: int) -> dict[str, Any]:
    return {
        OBS_STATE: episode.states[step].numpy(),
        ACTION: episode.actions[step].numpy(),
        REWARD: episode.rewards[step : step + 1].numpy().astype(np.float32),
        SUCCESS: episode.success[step : step + 1].numpy(),
        SEED: np.array([episode.seed]),
        "task": episode.instruction,
        **{f"{OBS_IMAGES}.{name}": images[step].numpy() for name, images in episode.images.items()},
    }
