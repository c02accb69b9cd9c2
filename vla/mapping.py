"""Which of a simulator's cameras and numbers a policy's features are: the key `observe` of a vla config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lerobot.configs.types import FeatureType, PolicyFeature
from torch import Tensor

from vla.sim.base import Observations, Simulator

NUMBERS = (FeatureType.STATE, FeatureType.ENV)
EMPTY_CAMERA = "empty_camera"
"""In the names of features that lerobot fills itself."""


@dataclass(frozen=True)
class Source:
    """Where one feature of a policy comes from: a `camera`, or the numbers `start` up to `stop` of the state, counted
    within a named `part` of it (such as qpos) if one is given; null: its beginning, its end."""

    camera: str | None = None
    part: str | None = None
    start: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        numbers = (self.part, self.start, self.stop)
        if (self.camera is None) == (numbers == (None, None, None)):
            raise ValueError(
                f"a source under `observe` has camera {self.camera!r} and part, start, stop {numbers}: give a camera, "
                "or numbers of the state"
            )
        if (self.start or 0) < 0 or (self.stop is not None and self.stop <= (self.start or 0)):
            raise ValueError(f"a source under `observe` goes from {self.start} to {self.stop}: give 0 <= start < stop")


Observe = dict[str, Source | None]
"""Feature of the policy -> its source; null leaves a camera of the policy out. Features that are not named are
matched as if there were no `observe`."""


class ActionsError(ValueError):
    """A policy and a controller that have not the same number of actions."""


@dataclass(frozen=True)
class Told:
    """What a simulator tells: the tasks' names, cameras, the numbers of a state and its named parts."""

    name: str
    cameras: tuple[str, ...]
    state_size: int
    parts: Mapping[str, tuple[int, int]]

    @staticmethod
    def of(simulator: Simulator) -> Told:
        """Where tasks differ, cameras and parts are those that all have alike, and the state is the longest."""
        first, *others = simulator.tasks
        cameras = [name for name in first.cameras if all(name in task.cameras for task in others)]
        parts = {
            name: part
            for name, part in first.parts.items()
            if all(task.parts.get(name) == part for task in others)
        }  # fmt: skip
        size = max(task.state_size for task in simulator.tasks)
        return Told(", ".join(dict.fromkeys(task.id for task in simulator.tasks)), tuple(cameras), size, parts)

    def __str__(self) -> str:
        named = ", ".join(f"{name} {first}:{last}" for name, (first, last) in self.parts.items())
        return f"{self.state_size}{f' ({named})' if named else ''}"


@dataclass(frozen=True)
class Wiring:
    """Every feature with its source."""

    cameras: Mapping[str, str]  # feature -> camera
    numbers: Mapping[str, tuple[int, int]]  # feature -> the first number of the state, and the one after the last

    def __call__(self, seen: Observations) -> dict[str, object]:
        """What a preprocessor of lerobot takes: images (n, 3, Y, X) from 0 to 1, numbers (n, S), and the task."""
        images = {feature: seen.images[camera].float() / 255 for feature, camera in self.cameras.items()}
        numbers: dict[str, Tensor] = {
            feature: seen.state[:, first:last] for feature, (first, last) in self.numbers.items()
        }
        return {**images, **numbers, "task": list(seen.instructions)}


def wire(features: Mapping[str, PolicyFeature], told: Told, observe: Observe | None) -> Wiring:
    """The sources of a policy's `features`: those that `observe` names, and others where names or sizes leave no doubt.

    Raises:
        ValueError: a feature has no source, or one of another size; both sides are named.
    """
    wanted, chosen = read_by(features), observe or {}
    unknown = [name for name in chosen if name not in wanted]
    if unknown:
        raise ValueError(
            f"observe names {unknown[0]!r}, and the policy reads {', '.join(wanted)}: use one of these names"
        )
    visual = [name for name, feature in wanted.items() if feature.type is FeatureType.VISUAL]
    left_out = [name for name, source in chosen.items() if source is None]
    if not set(left_out) <= set(visual):
        wrong = next(name for name in left_out if name not in visual)
        raise ValueError(f"observe.{wrong} is null: only cameras can be left out, so give numbers of the state")
    seen = [name for name in visual if name not in left_out]
    cameras = {name: _camera(name, chosen.get(name), told, alone=len(seen) == 1) for name in seen}
    if visual and not cameras:
        raise ValueError(f"observe leaves out every camera of the policy ({', '.join(visual)}): give it one or more")
    others = [name for name in wanted if name not in visual]
    numbers = {name: _numbers(name, wanted[name].shape[0], chosen.get(name), told) for name in others}
    return Wiring(cameras, numbers)


def read_by(features: Mapping[str, PolicyFeature]) -> dict[str, PolicyFeature]:
    """Those that a policy reads of a simulator: cameras that lerobot leaves empty and words are none."""
    return {
        name: feature
        for name, feature in features.items()
        if feature.type in (FeatureType.VISUAL, *NUMBERS) and EMPTY_CAMERA not in name
    }


def check_actions(action_size: int, simulator: Simulator) -> None:
    """Raises:
    ActionsError: the policy and the controller have not the same number of actions.
    """
    if action_size != simulator.action_size:
        task = max(simulator.tasks, key=lambda task: task.action_size)
        raise ActionsError(
            f"the policy gives {action_size} actions and the controller of {task.id} takes {task.action_size}: "
            "set env.control to the one that it was trained with"
        )


def _camera(name: str, source: Source | None, told: Told, alone: bool) -> str:
    """The camera of a feature."""
    if source is None:
        same = [camera for camera in told.cameras if camera == name.rsplit(".", 1)[-1]]
        found = same or (list(told.cameras) if alone and len(told.cameras) == 1 else [])
    else:
        found = [camera for camera in told.cameras if camera == source.camera]
    if found:
        return found[0]
    if not told.cameras:
        raise ValueError(
            f"the policy reads the camera {name} and {told.name} shows none: set simulation.observe to images"
        )
    asked = "" if source is None or source.camera is None else f" from {source.camera!r}"
    raise ValueError(
        f"the policy reads the camera {name}{asked} and {told.name} has {', '.join(told.cameras)}: say which under "
        f"`observe`, such as {{{name}: {{camera: {told.cameras[0]}}}}}, or null to do without it"
    )


def _numbers(name: str, size: int, source: Source | None, told: Told) -> tuple[int, int]:
    """The numbers of a feature."""
    first, last = 0, told.state_size
    if source is not None:
        if source.camera is not None:
            raise ValueError(f"observe.{name} is the camera {source.camera!r}, and the policy reads {size} numbers")
        if source.part is not None and source.part not in told.parts:
            raise ValueError(
                f"observe.{name} names the part {source.part!r} of the state, and {told.name} tells {told}: use one of "
                "these names, or start and stop alone"
            )
        low, high = told.parts[source.part] if source.part is not None else (first, last)
        first = low + (source.start or 0)
        last = high if source.stop is None else low + source.stop
        if last > high:
            raise ValueError(f"observe.{name} ends at {source.stop}, and there are {high - low} numbers: {told}")
    if last - first == size:
        return first, last
    given = "the task tells" if source is None else f"observe.{name} gives {last - first} of"
    raise ValueError(
        f"the policy reads a state of {size} numbers and {given} {told}: say which under `observe`, such as {{{name}: "
        f"{{start: 0, stop: {size}}}}}; if none fit, it was made for another task, robot or simulation.observe"
    )
