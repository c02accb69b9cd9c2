"""Demonstrations played again in the task, open-loop: whether their actions mean here what they meant in the data.

That needs the initial states, which a LeRobotDataset does not hold. Those that `mmrl warmup` and `mmrl rollout` write
have the seed of each episode in its frames (`vla.demonstrations.SEED`); others are not replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor

from vla.demonstrations import SEED
from vla.sim.base import Observations, SimulationConfig, SimulationError, TaskConfig
from vla.sim.start import start

AT_ONCE, PIECE, TRIED = 16, 50, 4
"""Environments that replay together, steps a message, and demonstrations that are tried under other controllers."""
SAME, FAITHFUL = 1e-3, 0.5
"""Initial states that differ by less are the same; share of demonstrations that must succeed again."""


@dataclass(frozen=True)
class Shown:
    """One demonstration of L steps."""

    states: Tensor  # (L, S)
    actions: Tensor  # (L, A)
    instruction: str
    seed: int | None
    images: Mapping[str, Tensor]  # camera -> (3, Y, X) uint8: of the first frame


@dataclass(frozen=True)
class Replayed:
    """What became of n demonstrations."""

    succeeded: int
    count: int
    action_size: int
    """Of the controller; where the demonstrations have another, none was played."""
    control_hz: int
    controls: tuple[str, ...]
    """All controllers of the robot."""
    apart: float | None
    """Largest difference of an initial state from the recorded one; None where the states are of another kind."""
    seen: Observations  # n, the initial observations


def read(folder: Path, count: int) -> tuple[list[Shown], int]:
    """The first `count` episodes, or all where there are fewer, and their frequency."""
    dataset = LeRobotDataset(folder.name, root=folder)
    columns = [name for name in (OBS_STATE, ACTION, SEED, "episode_index") if name in dataset.hf_dataset.column_names]
    table = dataset.hf_dataset.select_columns(columns).with_format("torch")[:]
    found = []
    for number in range(min(count, dataset.num_episodes)):
        rows = (table["episode_index"] == number).nonzero()[:, 0]
        first = dataset[int(rows[0])]
        images = {
            name.removeprefix(f"{OBS_IMAGES}."): (first[name] * 255).round().to(torch.uint8)
            for name in dataset.meta.camera_keys
        }
        states = table[OBS_STATE][rows] if OBS_STATE in columns else torch.zeros(len(rows), 0)
        seed = int(table[SEED][rows[0]]) if SEED in columns else None
        found.append(Shown(states, table[ACTION][rows], first["task"], seed, images))
    return found, dataset.fps


def replay(task: TaskConfig, simulation: SimulationConfig, shown: Sequence[Shown]) -> Replayed:
    """Every demonstration from its own initial state. Those of another number of actions than the controller's do not
    succeed."""
    longest = max(len(one.actions) for one in shown)
    task = replace(task, max_steps=longest)
    own = replace(simulation, copies=min(AT_ONCE, len(shown)), backend="physx_cpu", rebuild=True)
    success, apart, views = 0, list[float](), list[Observations]()
    with start([task], own) as simulator:
        spec = simulator.tasks[0]
        for first in range(0, len(shown), own.copies):
            part = shown[first : first + own.copies]
            rows = torch.arange(len(part))
            seen = simulator.reset(rows, torch.tensor([one.seed for one in part]))
            mask = torch.arange(own.copies) < len(part)
            views.append(seen.rows(mask, seen.state.device))
            for row, one in enumerate(part):
                if one.states.shape[1] == seen.state.shape[1]:
                    apart.append(float((seen.state[row] - one.states[0]).abs().max()))
            if part[0].actions.shape[1] == spec.action_size:
                actions = torch.zeros(own.copies, longest, spec.action_size)
                for row, one in enumerate(part):
                    actions[row, : len(one.actions)] = one.actions
                    actions[row, len(one.actions) :] = one.actions[-1]
                parts = [simulator.chunk_step(piece).success for piece in actions.split(PIECE, 1)]
                reached = torch.cat(parts, 1)
                success += sum(bool(reached[row, : len(one.actions)].any()) for row, one in enumerate(part))
    state = torch.cat([view.state for view in views])
    images = {name: torch.cat([view.images[name] for view in views]) for name in views[0].images}
    seen = Observations(state, images, (task.sentence(),) * len(shown))
    return Replayed(
        success, len(shown), spec.action_size, spec.control_hz, spec.controls, max(apart, default=None), seen
    )


def others(
    task: TaskConfig, simulation: SimulationConfig, shown: Sequence[Shown], controls: Sequence[str]
) -> dict[str, Replayed]:
    """The first demonstrations under each other controller of the robot."""
    own, found = replace(simulation, observe="state", video_size=None), dict[str, Replayed]()
    for control in controls:
        if control != task.control:
            try:
                found[control] = replay(replace(task, control=control), own, shown[:TRIED])
            except SimulationError:  # a controller that this task cannot be built with
                continue
    return found


def of_tasks(shown: Sequence[Shown], tasks: Sequence[TaskConfig]) -> list[tuple[TaskConfig, list[Shown]]]:
    """Each demonstration with the task that has its sentence, or else with the first."""
    sentences = [task.sentence() for task in tasks]
    found: dict[int, list[Shown]] = {}
    for one in shown:
        number = sentences.index(one.instruction) if one.instruction in sentences else 0
        found.setdefault(number, []).append(one)
    return [(tasks[number], mine) for number, mine in found.items()]


def line_of(task: TaskConfig, simulation: SimulationConfig, shown: Sequence[Shown], found: Replayed, rate: int) -> str:
    """How the demonstrations went, at `rate` Hz in the data; what to look for where fewer than half succeed."""
    control = task.control or next(iter(found.controls), "its own controller")
    said = (
        f"{found.count} of your demonstrations, actions straight into {task.label} ({control}, {found.control_hz} Hz): "
        f"{found.succeeded} succeed"
    )
    if found.succeeded >= FAITHFUL * found.count:
        return f"{said}   OK"
    said += "   NOT WHAT THEY WERE"
    if found.apart is not None and found.apart > SAME:
        return (
            f"{said}: the initial states of their seeds are others here (by up to {found.apart:.2g}): another task, "
            "robot or version of it than the data's"
        )
    tried = others(task, simulation, shown, found.controls)
    own = shown[0].actions.shape[1]
    fits = {name: f"{again.succeeded} of {again.count}" for name, again in tried.items() if again.action_size == own}
    reasons = []
    if own != found.action_size:
        reasons.append(f"they have {own} numbers and {control} takes {found.action_size}")
    if rate != found.control_hz:
        reasons.append(f"the data are at {rate} Hz")
    if fits:
        reasons.append("tried " + ", ".join(f"{name}: {result}" for name, result in fits.items()))
    return (
        f"{said}: your actions do not mean here what they meant in the data: control mode (`env.control`), frequency "
        f"or order of the joints{''.join(f'; {reason}' for reason in reasons)}"
    )
