"""A worker process: several environments of one core, one message a chunk."""

from __future__ import annotations

import importlib
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from queue import Queue
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from vla.sim.base import SimulationConfig, SimulationError, TaskConfig, TaskSpec

if TYPE_CHECKING:  # ManiSkill comes after visuals are left out
    from vla.sim.single import Step

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Job:
    """What one worker is started with."""

    config: SimulationConfig
    tasks: Sequence[TaskConfig]  # n, one a row of this worker
    modules: Sequence[str]
    """Those that register the tasks."""


@dataclass(frozen=True)
class Reset:
    """Begin episodes."""

    rows: Sequence[int]  # of this worker
    seeds: Sequence[int]


@dataclass(frozen=True)
class Act:
    """Take a chunk of steps."""

    actions: Floats  # (n, H, A)
    then: Sequence[int] | None  # n seeds
    rows: Sequence[int] | None = None  # n of this worker; null: all


@dataclass(frozen=True)
class Draw:
    """Draw the scenes."""

    rows: Sequence[int]  # of this worker


@dataclass(frozen=True)
class Views:
    """What n robots observe."""

    state: Floats  # (n, S)
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)  # camera -> (n, 3, Y, X)


@dataclass(frozen=True)
class Acted:
    """`vla.sim.base.Chunk` of n rows, in arrays."""

    views: Views
    final: Views
    rewards: Floats  # (n, H)
    success: Flags  # (n, H)
    alive: Flags  # (n, H)
    terminated: Flags  # (n,)
    truncated: Flags  # (n,)
    broken: Flags  # (n,)
    seconds: float


class Rows:
    """n environments and where each is in its episode."""

    def __init__(self, job: Job) -> None:
        from vla.sim.fast import make  # likewise

        self._make, self._job = make, job
        self._envs = [make(task, job.config) for task in job.tasks]
        self._taken = [0] * len(self._envs)
        self._over = np.ones(len(self._envs), bool)
        self._broken = np.zeros(len(self._envs), bool)
        self._width = max(env.spec.state_size for env in self._envs)
        self._seen = [env.reset(0) for env in self._envs]

    @property
    def specs(self) -> list[TaskSpec]:
        """One a row."""
        return [env.spec for env in self._envs]

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> Views:
        """Begin the episodes of `seeds` in `rows`; views of all n rows."""
        for row, seed in zip(rows, seeds, strict=True):
            if self._broken[row]:
                self._envs[row] = self._make(self._job.tasks[row], self._job.config)
            self._seen[row] = self._envs[row].reset(seed)
            self._taken[row], self._over[row], self._broken[row] = 0, False, False
        return self._views(range(len(self._envs)))

    def act(self, actions: Floats, then: Sequence[int] | None, rows: Sequence[int] | None = None) -> Acted:
        """Take the steps `actions` (n, H, A) in `rows`, all of them if null."""
        rows = range(len(self._envs)) if rows is None else rows
        began, before = time.perf_counter(), self._broken.copy()
        rewards = np.zeros(actions.shape[:2], np.float32)
        success, alive = np.zeros(actions.shape[:2], bool), np.zeros(actions.shape[:2], bool)
        terminated, truncated = np.zeros(len(actions), bool), np.zeros(len(actions), bool)
        for place, row in enumerate(rows):
            if self._over[row]:
                continue
            steps, terminated[place], truncated[place] = self._play(row, actions[place])
            if steps:
                self._seen[row] = replace(steps[-1].seen, images=self._envs[row].look())
            for h, step in enumerate(steps):
                rewards[place, h], success[place, h], alive[place, h] = step.reward, step.success, True
        final, broken = self._views(rows), (self._broken & ~before)[list(rows)]
        if then is not None:
            over = [(row, seed) for row, seed in zip(rows, then, strict=True) if self._over[row]]
            self.reset([row for row, _ in over], [seed for _, seed in over])
        seconds = time.perf_counter() - began
        return Acted(self._views(rows), final, rewards, success, alive, terminated, truncated, broken, seconds)

    def _play(self, row: int, actions: Floats) -> tuple[list[Step], bool, bool]:
        """The steps that one environment takes of a chunk (H, A), whether they end in success or failure, and whether
        the last step of the episode was among them. No step of a chunk in which the physics was lost."""
        env, steps = self._envs[row], []
        for action in actions[:, : self._envs[row].spec.action_size]:
            step = env.step(action)
            if not (np.isfinite(step.seen.state).all() and np.isfinite(step.reward)):
                self._broken[row] = self._over[row] = True
                return [], False, False
            steps.append(step)
            self._taken[row] += 1
            terminated = self._job.config.terminate and (step.success or step.failed)
            self._over[row] = terminated or self._taken[row] >= env.spec.max_steps
            if self._over[row]:
                return steps, terminated, not terminated
        return steps, False, False

    def draw(self, rows: Sequence[int]) -> NDArray[np.uint8]:
        """Pictures (len(rows), 3, Y, X) for people to look at."""
        pictures = [self._envs[row].render() for row in rows]
        return np.stack(pictures) if pictures else np.zeros((0, 3, 1, 1), np.uint8)

    def _views(self, rows: Sequence[int]) -> Views:
        found = [self._seen[row] for row in rows]
        state = np.zeros((len(found), self._width), np.float32)
        for place, seen in enumerate(found):
            state[place, : len(seen.state)] = seen.state
        return Views(state, {name: np.stack([seen.images[name] for seen in found]) for name in self._seen[0].images})


def prepare(job: Job) -> None:
    """What a process does before it has environments."""
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    if not job.config.draws:
        from vla.sim.novisual import leave_out_visuals

        leave_out_visuals()
    for module in job.modules:
        importlib.import_module(module)


def _listen(connection: Connection, inbox: Queue[object]) -> None:
    """Take messages in while others are worked on: of a ring several are under way, and two that only send to each
    other would wait for ever."""
    try:
        while (message := connection.recv()) is not None:
            inbox.put(message)
    except (EOFError, OSError):
        pass
    inbox.put(None)


def serve(connection: Connection, job: Job) -> None:
    """Answer until the other end closes or says None. What goes wrong is sent as a sentence, once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started us tells us when to stop
    try:
        prepare(job)
        rows = Rows(job)
        connection.send(rows.specs)
        inbox: Queue[object] = Queue()
        Thread(target=_listen, args=(connection, inbox), daemon=True).start()
        while (message := inbox.get()) is not None:
            match message:
                case Reset():
                    connection.send(rows.reset(message.rows, message.seeds))
                case Act():
                    connection.send(rows.act(message.actions, message.then, message.rows))
                case Draw():
                    connection.send(rows.draw(message.rows))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except SimulationError as error:
        connection.send(error)
    except Exception as error:
        connection.send(SimulationError(f"a simulation failed: {type(error).__name__}: {error}"))
