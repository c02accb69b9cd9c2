"""What a simulator is to the rest of the domain: N environments behind one call a chunk, torch in and torch out.

Letters: N environments (rows), H actions of a chunk, A action dimensions, S numbers of a state, Y and X pixels.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor


class SimulationError(RuntimeError):
    """A simulation that cannot go on, or never could, in one sentence."""


@dataclass(frozen=True)
class TaskConfig:
    """One task, and how a robot is driven in it. `options` go to the task's own constructor (its variants). `name` is
    what its figures are called where there are several tasks; null: the id."""

    id: str
    """As registered, such as PushCube-v1: ManiSkill's, or one of your own that a module under `imports:` registers."""
    instruction: str | None = None
    """What the robot is told; null: the words of the id."""
    control: str | None = "pd_ee_delta_pos"
    """Which of the robot's own controllers reads the actions; null: its first."""
    reward: Literal["sparse", "dense", "normalized_dense"] = "sparse"
    """sparse needs nothing of a task but `evaluate()["success"]`: 1 at a success."""
    max_steps: int | None = None
    """Environment steps of an episode; null: what the task is registered with."""
    options: dict[str, object] = field(default_factory=dict)
    name: str | None = None

    @property
    def label(self) -> str:
        """What its figures are called."""
        return self.name or self.id

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps of task {self.id} is {self.max_steps}: give 1 or more")

    def sentence(self) -> str:
        """What the robot is told."""
        if self.instruction is not None:
            return self.instruction
        name = self.id.rsplit("-v", 1)[0]
        words = "".join(f" {c.lower()}" if c.isupper() else c for c in name.replace("-", " "))
        return " ".join(words.split())


@dataclass(frozen=True)
class SimulationConfig:
    """How tasks are simulated. Each task gets `copies` environments; rows stand in order of the tasks."""

    copies: int = 8
    """Environments of each task."""
    backend: Literal["physx_cpu", "physx_cuda"] = "physx_cpu"
    """physx_cpu: worker processes; physx_cuda: ManiSkill's own, all environments of the one task in this process."""
    workers: int | None = None
    """Processes of physx_cpu; null: one a core that this process may use."""
    observe: Literal["state", "images"] = "state"
    """state: all that the task tells, its objects included; images: its cameras, and what the robot feels of itself."""
    image_size: int | None = None
    """Pixels of a side; null: the cameras' own."""
    video_size: int | None = None
    """Pixels of a side of what `render` draws; null: only what is observed is drawn, and states need no Vulkan."""
    step: Literal["auto", "official"] = "auto"
    """auto: the fast path where there is one and the state is observed, the task's own step elsewhere."""
    terminate: bool = True
    """Whether an episode ends at a success or a failure; if not it goes on up to its last step."""
    rebuild: bool = False
    """Whether every episode begins in a new scene, 0.2 CPU seconds each, so that it depends on nothing but its seed and
    actions. Otherwise the last digits of a contact depend on what the scene has seen before (`physx_cpu` alone)."""
    ring: int = 1
    """Parts that each worker's environments are divided into: some step while the policy looks at others. 1: all step,
    then all are looked at (`physx_cpu` alone)."""
    restarts: int = 3
    """How often the workers may be started again in all, after dying."""
    patience_s: float = 300.0
    """Seconds after which a worker that does not answer counts as dead. A first picture takes half a minute."""

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise ValueError(f"simulation.copies is {self.copies}: give 1 or more")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"simulation.workers is {self.workers}: give 1 or more, or null")
        if self.ring < 1:
            raise ValueError(f"simulation.ring is {self.ring}: give 1 (none), or 2 to 4 parts of a worker")
        if self.ring > 1 and self.backend == "physx_cuda":
            raise ValueError(
                f"simulation.ring is {self.ring} with backend physx_cuda, whose environments all step at once: set "
                "ring to 1"
            )
        if self.restarts < 0 or self.patience_s <= 0:
            raise ValueError(
                f"simulation.restarts is {self.restarts} and simulation.patience_s is {self.patience_s}: give 0 or "
                "more, and more than 0 seconds"
            )

    @property
    def draws(self) -> bool:
        """Whether a Vulkan driver is needed."""
        return self.observe == "images" or self.video_size is not None


@dataclass(frozen=True)
class TaskSpec:
    """What a task turned out to be once it was built."""

    id: str
    label: str
    instruction: str
    action_low: tuple[float, ...]  # A of this task
    action_high: tuple[float, ...]
    state_size: int  # S of this task
    cameras: Mapping[str, tuple[int, int]]  # name -> Y, X; none where the state is observed
    max_steps: int
    control_hz: int
    fast: bool
    """Whether the fast path takes its steps."""
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of the state, by the names that the task gives them: the first number, and the one after the last."""
    controls: tuple[str, ...] = ()
    """All controllers of its robot; none are named where there are several robots."""

    @property
    def action_size(self) -> int:
        """A of this task."""
        return len(self.action_low)


@dataclass(frozen=True)
class Observations:
    """What N robots observe, and what they are told to do. Where tasks differ, states are filled up with zeros to the
    longest."""

    state: Tensor  # (N, S) float32
    images: Mapping[str, Tensor] = field(default_factory=dict)  # camera -> (N, 3, Y, X) uint8
    instructions: tuple[str, ...] = ()  # N

    def __len__(self) -> int:
        return self.state.shape[0]

    @staticmethod
    def joined(parts: Sequence[Observations]) -> Observations:
        """Rows of several, under each other."""
        images = {name: torch.cat([part.images[name] for part in parts]) for name in parts[0].images}
        told = tuple(sentence for part in parts for sentence in part.instructions)
        return Observations(torch.cat([part.state for part in parts]), images, told)

    def of(self, index: Tensor) -> Observations:
        """The rows `index` (n,)."""
        images = {name: image[index] for name, image in self.images.items()}
        return Observations(self.state[index], images, tuple(self.instructions[row] for row in index.tolist()))

    def where(self, mask: Tensor, other: Observations) -> Observations:
        """These rows where `mask` (N,) is True, the `other` ones elsewhere."""
        images = {
            name: torch.where(mask[:, None, None, None], image, other.images[name])
            for name, image in self.images.items()
        }
        return Observations(torch.where(mask[:, None], self.state, other.state), images, self.instructions)

    def rows(self, mask: Tensor, device: torch.device) -> Observations:
        """Those of `mask` (N,), on a device."""
        images = {name: image[mask].to(device) for name, image in self.images.items()}
        told = tuple(sentence for sentence, kept in zip(self.instructions, mask.tolist(), strict=True) if kept)
        return Observations(self.state[mask].to(device), images, told)


@dataclass(frozen=True)
class Chunk:
    """What N environments made of a chunk of H actions each.

    An episode that ends within a chunk does not see the rest of it: `alive` says which steps were taken. A row whose
    episode had already ended takes none, and its observation stays.
    """

    observations: Observations  # N, after the chunk; of the next episode where one was begun
    final: Observations  # N, after the last step that was taken
    rewards: Tensor  # (N, H) float32, 0 where not alive
    success: Tensor  # (N, H) bool, False where not alive
    alive: Tensor  # (N, H) bool
    terminated: Tensor  # (N,) bool: ended in this chunk, by success or failure
    truncated: Tensor  # (N,) bool: ended in this chunk, by its last step
    broken: Tensor  # (N,) bool: lost in this chunk (its worker died, its physics is not finite); count no step of it
    simulation_s: float
    """Wall seconds of the slowest worker in its environments; the rest of the call is transfer."""

    @staticmethod
    def joined(parts: Sequence[Chunk]) -> Chunk:
        """Rows of several, under each other."""
        tensors = {name: torch.cat([vars(part)[name] for part in parts]) for name in PER_ROW}
        observations, final = (
            Observations.joined([vars(part)[name] for part in parts]) for name in ("observations", "final")
        )
        return Chunk(observations, final, **tensors, simulation_s=max(part.simulation_s for part in parts))

    def of(self, index: Tensor) -> Chunk:
        """The rows `index` (n,)."""
        tensors = {name: vars(self)[name][index] for name in PER_ROW}
        return replace(self, observations=self.observations.of(index), final=self.final.of(index), **tensors)

    def nothing(self) -> Chunk:
        """A chunk after it in which no episode runs."""
        zeros = {name: torch.zeros_like(vars(self)[name]) for name in PER_ROW}
        return replace(self, observations=self.final, **zeros, simulation_s=0.0)


PER_ROW = ("rewards", "success", "alive", "terminated", "truncated", "broken")
"""Tensors of a chunk."""


class Simulator(abc.ABC):
    """N environments. Use as a context manager, or call `close`."""

    config: SimulationConfig
    tasks: tuple[TaskSpec, ...]
    task_index: Tensor  # (N,) long, into `tasks`
    _done: list[tuple[int, Chunk]]

    @abc.abstractmethod
    def reset(self, env_index: Tensor, seeds: Tensor) -> Observations:
        """Begin an episode in the environments `env_index` (n,) from the initial states of `seeds` (n,): the same seed
        of the same task is the same state. Returns the observations of all N.

        Raises:
            SimulationError: a worker could not be kept alive.
        """

    @abc.abstractmethod
    def chunk_step(self, actions: Tensor, then: Tensor | None = None) -> Chunk:
        """Take the steps `actions` (N, H, A) in order; A is of the task with most, the rest is not read. Where an
        episode ends and `then` (N,) is given, the next one begins from that seed. Actions beyond a controller's
        bounds are clipped, as ManiSkill does.

        Raises:
            ValueError: actions that are not finite or not (N, H, A).
            SimulationError: a worker could not be kept alive.
        """

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The environments (n,) of each part that can step by itself."""
        return (torch.arange(len(self)),)

    def begin_chunk(self, part: int, actions: Tensor) -> None:
        """Have the environments of a part, which are at rest, take the steps `actions` (n, H, A).

        Raises:
            ValueError: as of `chunk_step`.
        """
        self._done = [(part, self.chunk_step(actions))]

    def arrived(self) -> list[tuple[int, Chunk]]:
        """The parts that have come to rest, and what became of each (n); waits for one. Some part must be stepping.

        Raises:
            SimulationError: a worker could not be kept alive.
        """
        done, self._done = self._done, []
        return done

    @abc.abstractmethod
    def render(self, env_index: Tensor) -> Tensor:
        """Pictures (n, 3, Y, X) uint8 of the environments `env_index` (n,) for people to look at.

        Raises:
            ValueError: `simulation.video_size` is null.
            SimulationError: a worker could not be kept alive.
        """

    def cpu_s(self) -> float:
        """CPU seconds that processes of its own have used so far."""
        return 0.0

    def memory_mb(self) -> float:
        """Memory that processes of its own hold now."""
        return 0.0

    @abc.abstractmethod
    def close(self) -> None:
        """Free everything; twice is fine."""

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.task_index)

    @property
    def instructions(self) -> tuple[str, ...]:
        """What each of the N robots is told."""
        return tuple(self.tasks[number].instruction for number in self.task_index.tolist())

    @property
    def action_size(self) -> int:
        """A, of the task with most."""
        return max(task.action_size for task in self.tasks)

    def check_render(self) -> None:
        """Raises:
        ValueError: nothing is drawn.
        """
        if self.config.video_size is None:
            raise ValueError("simulation.video_size is null, so that nothing is drawn: give it pixels, such as 256")

    def check_actions(self, actions: Tensor, count: int | None = None) -> None:
        """For `count` environments, all of them if null.

        Raises:
            ValueError: actions that are not finite or not (N, H, A).
        """
        count = len(self) if count is None else count
        if actions.ndim != 3 or actions.shape[0] != count or actions.shape[2] != self.action_size:
            raise ValueError(
                f"actions have shape {tuple(actions.shape)}: {count} environments with up to {self.action_size} "
                f"action dimensions take ({count}, H, {self.action_size})"
            )
        if not bool(torch.isfinite(actions).all()):
            row = int((~torch.isfinite(actions)).flatten(1).any(-1).nonzero()[0])
            raise ValueError(f"the actions of environment {row} are not finite: find what produced them")
