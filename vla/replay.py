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
from vla.sim.base import Observations, SimulationConfig, SimulationError, Simulator, TaskConfig
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
    task = replace(task, max_steps=max(len(one.actions) for one in shown))
    own = replace(simulation, copies=min(AT_ONCE, len(shown)), backend="physx_cpu", rebuild=True)
    succeeded, views = list[bool](), list[Observations]()
    with start([task], own) as simulator:
        spec = simulator.tasks[0]
        for first in range(0, len(shown), own.copies):
            part = shown[first : first + own.copies]
            rows = torch.arange(len(part))
            seen = simulator.reset(rows, torch.tensor([one.seed for one in part]))
            views.append(seen.rows(torch.arange(own.copies) < len(part), seen.state.device))
            succeeded += _step(simulator, rows, part) if part[0].actions.shape[1] == spec.action_size else []
    state = torch.cat([view.state for view in views])
    images = {name: torch.cat([view.images[name] for view in views]) for name in views[0].images}
    alike = [row for row, one in enumerate(shown) if one.states.shape[1] == state.shape[1]]
    apart = max((float((state[row] - shown[row].states[0]).abs().max()) for row in alike), default=None)
    seen = Observations(state, images, (task.sentence(),) * len(shown))
    return Replayed(sum(succeeded), len(shown), spec.action_size, spec.control_hz, spec.controls, apart, seen)


def others(
    task: TaskConfig, simulation: SimulationConfig, shown: Sequence[Shown], controls: Sequence[str]
) -> dict[str, int]:
    """How many of the first demonstrations succeed under each other controller that takes as many numbers; none where
    they cannot all be built."""
    part, longest = shown[:TRIED], max(len(one.actions) for one in shown[:TRIED])
    tried = [replace(task, control=name, max_steps=longest, name=name) for name in controls if name != task.control]
    own = replace(simulation, copies=len(part), backend="physx_cpu", observe="state", video_size=None)
    if not tried:
        return {}
    try:
        with start(tried, own) as simulator:
            size = part[0].actions.shape[1]
            fits = [number for number, spec in enumerate(simulator.tasks) if spec.action_size == size]
            rows = torch.tensor([number * len(part) + row for number in fits for row in range(len(part))])
            if not fits:
                return {}
            simulator.reset(rows, torch.tensor([one.seed for one in part] * len(fits)))
            reached = _step(simulator, rows, [*part] * len(fits))
    except SimulationError:
        return {}
    return {tried[number].label: sum(reached[i * len(part) : (i + 1) * len(part)]) for i, number in enumerate(fits)}


def _step(simulator: Simulator, rows: Tensor, shown: Sequence[Shown]) -> list[bool]:
    """Take the actions of `shown` in the environments `rows`, which have begun: whether each succeeds within its own
    length. The last action is repeated after that."""
    longest = max(len(one.actions) for one in shown)
    actions = torch.zeros(len(simulator), longest, simulator.action_size)
    for row, one in zip(rows.tolist(), shown, strict=True):
        taken, size = one.actions.shape
        actions[row, :taken, :size] = one.actions
        actions[row, taken:, :size] = one.actions[-1]
    reached = torch.cat([simulator.chunk_step(piece).success for piece in actions.split(PIECE, 1)], 1)
    return [bool(reached[row, : len(one.actions)].any()) for row, one in zip(rows.tolist(), shown, strict=True)]


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
    reasons = []
    if own != found.action_size:
        reasons.append(f"they have {own} numbers and {control} takes {found.action_size}")
    if rate != found.control_hz:
        reasons.append(f"the data are at {rate} Hz")
    if tried:
        count = min(TRIED, len(shown))
        reasons.append("tried " + ", ".join(f"{name}: {number} of {count}" for name, number in tried.items()))
    return (
        f"{said}: your actions do not mean here what they meant in the data: control mode (`env.control`), frequency "
        f"or order of the joints{''.join(f'; {reason}' for reason in reasons)}"
    )
