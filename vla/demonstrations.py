"""Demonstrations as a LeRobotDataset of version 3, so that lerobot's own tools can clone from them too.

Of one task or of several, each episode with the sentence of its task. Experts read states, which a robot that sees
pictures does not have: then the actions of an episode are taken once more, from the same seed and in a new scene, where
pictures are drawn, and what is seen there is kept if that succeeds too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor
from torch.nn.functional import pad

from mmrl.recipes import find_asset
from vla.experts import Expert
from vla.sim.base import SimulationConfig, Simulator, TaskConfig
from vla.sim.start import start

SEED = "seed"
SEED_FEATURE: dict[str, dict[str, Any]] = {SEED: {"dtype": "int64", "shape": (1,), "names": None}}
"""Of an episode's initial state, in each of its frames: with it `mmrl check` can play the episode again."""
AT_ONCE = 16
"""Environments that demonstrate together, at most."""
Counts = int | tuple[int, ...]


@dataclass(frozen=True)
class Scripted:
    """How demonstrations are made: the expert's successes from the initial states of `first_seed` and on; where there
    are several tasks, an expert for each, in their order. `noise` is the standard deviation of what is added to an
    action that is executed; recorded is what the expert meant."""

    expert: Expert | tuple[Expert, ...]
    first_seed: int = 0
    noise: float = 0.0

    @property
    def experts(self) -> tuple[Expert, ...]:
        """One a task."""
        return self.expert if isinstance(self.expert, tuple) else (self.expert,)


@dataclass(frozen=True)
class DemonstrationsConfig:
    """A folder of a LeRobotDataset, made by `script` where it is not there. `episodes` of each task are read, the first
    ones: a number, or one for each task in order; null means all."""

    folder: str
    episodes: Counts | None = None
    script: Scripted | None = None

    def __post_init__(self) -> None:
        counts = self.episodes if isinstance(self.episodes, tuple) else (self.episodes,)
        if not counts or any(count is not None and count < 1 for count in counts):
            raise ValueError(f"demonstrations.episodes is {self.episodes}: give 1 or more, or null for all")


@dataclass(frozen=True)
class Episode:
    """One demonstration of E steps."""

    states: Tensor  # (E, S)
    actions: Tensor  # (E, A), as they were meant
    executed: Tensor  # (E, A)
    seed: int
    """Of its initial state."""
    images: Mapping[str, Tensor] = field(default_factory=dict)  # camera -> (E, 3, Y, X) uint8


@dataclass(frozen=True)
class Frames:
    """Every frame with the chunk of actions that follows it."""

    states: Tensor  # (F, S)
    chunks: Tensor  # (F, H, A); the last action again where the episode is over
    pad: Tensor  # (F, H) bool: it is over
    episodes: int
    sentences: tuple[str, ...] = ()  # F
    images: Mapping[str, Tensor] = field(default_factory=dict)  # feature of lerobot -> (F, 3, Y, X) uint8


def ensure(
    config: DemonstrationsConfig,
    env: TaskConfig | tuple[TaskConfig, ...],
    generator: torch.Generator,
    simulation: SimulationConfig | None = None,
) -> Path:
    """The folder of `config`; demonstrations are made if there are none, as `simulation` observes.

    Raises:
        FileNotFoundError: there are none, and nothing says how to make them.
        ValueError: the script or `episodes` are not of as many tasks as there are, or an expert fails.
    """
    shipped, folder = Path(find_asset(config.folder)), Path(config.folder)
    if (shipped / "meta" / "info.json").is_file():
        return shipped
    if config.script is None:
        raise FileNotFoundError(f"demonstrations.folder {folder} holds no LeRobotDataset: give one, or a `script`")
    if config.episodes is None:
        raise ValueError("demonstrations.episodes is null and there are none yet: say how many are to be made")
    tasks = env if isinstance(env, tuple) else (env,)
    counts = spread(config.episodes, len(tasks))
    if len(config.script.experts) != len(tasks):
        raise ValueError(
            f"demonstrations.script.expert is of {len(config.script.experts)} tasks and env of {len(tasks)}: give an "
            "expert for each task, in the same order"
        )
    made, rate = [], 0
    for task, expert, count in zip(tasks, config.script.experts, counts, strict=True):
        script = replace(config.script, expert=expert)
        episodes, rate = demonstrate(task, script, count, generator, simulation or SimulationConfig())
        made.append(episodes)
    write(folder, tasks, made, rate)
    return folder


def spread(episodes: Counts, tasks: int) -> tuple[int, ...]:
    """How many of each task.

    Raises:
        ValueError: there are numbers for more tasks or fewer.
    """
    counts = episodes if isinstance(episodes, tuple) else (episodes,) * tasks
    if len(counts) != tasks:
        raise ValueError(
            f"demonstrations.episodes is {list(counts)} for {tasks} tasks: give one number, or one for each task"
        )
    return counts


def demonstrate(
    task: TaskConfig,
    script: Scripted,
    count: int,
    generator: torch.Generator,
    simulation: SimulationConfig | None = None,
) -> tuple[list[Episode], int]:
    """`count` successful episodes in order of their seeds, and the control frequency.

    Raises:
        ValueError: fewer than one in ten episodes succeeds.
    """
    asked, together = simulation or SimulationConfig(), min(count, AT_ONCE)
    draws, few = asked.observe == "images", replace(asked, copies=together, workers=1, video_size=None)
    acts = replace(few, observe="state", rebuild=draws)
    found: list[Episode] = []
    seeing = start([task], replace(few, rebuild=True)) if draws else nullcontext()
    with start([task], acts) as simulator, seeing as seer:
        rate, tried = simulator.tasks[0].control_hz, 0
        while len(found) < count:
            if tried >= 10 * count + AT_ONCE:
                raise ValueError(f"{script.experts[0]} succeeded in {len(found)} of {tried} episodes of {task.id}")
            seeds = list(range(script.first_seed + tried, script.first_seed + tried + together))
            tried += together
            episodes = attempt(simulator, script, seeds, generator)
            found += episodes if seer is None else replay(seer, episodes)
    return found[:count], rate


def attempt(simulator: Simulator, script: Scripted, seeds: Sequence[int], generator: torch.Generator) -> list[Episode]:
    """What succeeded of an episode from each of `seeds`."""
    seen = simulator.reset(torch.arange(len(seeds)), torch.tensor(seeds))
    states, actions, executed, alive = [], [], [], []
    success = torch.zeros(len(seeds), dtype=torch.bool)
    for _ in range(simulator.tasks[0].max_steps):
        meant = script.experts[0](seen.state)
        taken = meant + torch.randn(meant.shape, generator=generator) * script.noise
        chunk = simulator.chunk_step(taken[:, None])
        states.append(seen.state)
        actions.append(meant)
        executed.append(taken)
        alive.append(chunk.alive[:, 0])
        success |= chunk.success[:, 0]
        seen = chunk.observations
    lived, parts = torch.stack(alive, 1), [torch.stack(found, 1) for found in (states, actions, executed)]
    return [Episode(*(part[row, lived[row]] for part in parts), seeds[row]) for row in success.nonzero()[:, 0].tolist()]


def replay(simulator: Simulator, episodes: Sequence[Episode]) -> list[Episode]:
    """The same actions from the same seeds where other things are observed; those episodes that succeed again."""
    if not episodes:
        return []
    rows = torch.arange(len(episodes))
    seen = simulator.reset(rows, torch.tensor([episode.seed for episode in episodes]))
    states, images, success = [], [], torch.zeros(len(simulator), dtype=torch.bool)
    longest = max(len(episode.executed) for episode in episodes)
    actions = torch.zeros(len(simulator), longest, simulator.action_size)
    for row, episode in enumerate(episodes):
        actions[row, : len(episode.executed)] = episode.executed
    for number in range(longest):
        states.append(seen.state)
        images.append(seen.images)
        chunk = simulator.chunk_step(actions[:, number : number + 1])
        success |= chunk.success[:, 0]
        seen = chunk.observations
    found = []
    for row in success[: len(episodes)].nonzero()[:, 0].tolist():
        steps = len(episodes[row].executed)
        views = {name: torch.stack([step[name][row] for step in images[:steps]]) for name in images[0]}
        found.append(replace(episodes[row], states=torch.stack(states[:steps])[:, row], images=views))
    return found


def write(folder: Path, tasks: Sequence[TaskConfig], made: Sequence[Sequence[Episode]], rate: int) -> None:
    """A new LeRobotDataset of the episodes `made` of each task. Shorter states are filled up with zeros."""
    every = [episode for episodes in made for episode in episodes]
    size = max(episode.states.shape[1] for episode in every)
    features: dict[str, dict[str, Any]] = {
        name: {"dtype": "float32", "shape": (numbers,), "names": [f"{name.split('.')[-1]}_{i}" for i in range(numbers)]}
        for name, numbers in {OBS_STATE: size, ACTION: every[0].actions.shape[1]}.items()
    }
    features |= SEED_FEATURE
    for camera, images in every[0].images.items():
        shape, names = (*images.shape[2:], images.shape[1]), ["height", "width", "channels"]
        features[f"{OBS_IMAGES}.{camera}"] = {"dtype": "image", "shape": shape, "names": names}
    dataset = LeRobotDataset.create(folder.name, rate, features, root=folder, robot_type="panda", use_videos=False)
    for task, episodes in zip(tasks, made, strict=True):
        for episode in episodes:
            states = pad(episode.states, (0, size - episode.states.shape[1]))
            for step, (state, action) in enumerate(zip(states, episode.actions, strict=True)):
                views = {
                    f"{OBS_IMAGES}.{name}": images[step].movedim(0, -1).numpy()
                    for name, images in episode.images.items()
                }
                told = {"task": task.sentence(), SEED: np.array([episode.seed])}
                dataset.add_frame({OBS_STATE: state.numpy(), ACTION: action.numpy(), **views, **told})
            dataset.save_episode()
    dataset.finalize()


def read(folder: Path, count: Counts | None, horizon: int) -> Frames:
    """The frames of the first `count` episodes of each task, all in memory.

    Raises:
        ValueError: there are fewer.
    """
    dataset = LeRobotDataset(folder.name, root=folder)
    table = dataset.hf_dataset.select_columns([OBS_STATE, ACTION, "episode_index", "task_index"]).with_format("torch")[
        :
    ]
    states, actions, episode, task = (table[name] for name in (OBS_STATE, ACTION, "episode_index", "task_index"))
    kept = _first(folder, episode, task, count)
    states, actions, episode, task = states[kept], actions[kept], episode[kept], task[kept]
    ahead = torch.arange(len(states))[:, None] + torch.arange(horizon)
    lengths = episode.unique_consecutive(return_counts=True)[1]
    last = (lengths.cumsum(0) - 1).repeat_interleave(lengths)
    sentences = {int(number): str(name) for name, number in dataset.meta.tasks["task_index"].items()}
    pictures = dataset.hf_dataset.with_format(None).select(kept.nonzero()[:, 0].tolist())
    return Frames(
        states, actions[ahead.minimum(last[:, None])], ahead > last[:, None], len(lengths),
        tuple(sentences[number] for number in task.tolist()),
        {
            name: torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures[name]])).movedim(-1, 1)
            for name in dataset.meta.image_keys
        },
    )  # fmt: skip


def _first(folder: Path, episode: Tensor, task: Tensor, count: Counts | None) -> Tensor:
    """Which frames (F,) of episodes (F,) and tasks (F,) are among the first episodes of their task."""
    kept, numbers = torch.ones_like(episode, dtype=torch.bool), task.unique()
    if count is None:
        return kept
    for number, wanted in zip(numbers.tolist(), spread(count, len(numbers)), strict=True):
        there = episode[task == number].unique()
        if wanted > len(there):
            raise ValueError(f"demonstrations.episodes is {wanted}, and {folder} has {len(there)}")
        kept &= (task != number) | (episode <= there[wanted - 1])
    return kept


def statistics(frames: Frames, floor: float) -> dict[str, dict[str, Tensor]]:
    """What lerobot's processors normalise by. `floor` bounds standard deviations from below: a few demonstrations
    hardly move some features, which would otherwise be blown up."""
    return {
        OBS_STATE: {"mean": frames.states.mean(0), "std": frames.states.std(0).clamp(min=floor)},
        ACTION: {"mean": frames.chunks[:, 0].mean(0), "std": frames.chunks[:, 0].std(0).clamp(min=floor)},
    }
