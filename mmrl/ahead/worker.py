"""A process of its own that draws: it builds the experiment again, and is started again when it is lost.

What passes over the pipe is from processes that this one started. The trainer keeps where the collector stood after
every rollout, so that a process in the place of a lost one goes on from there and draws the same.
"""

from __future__ import annotations

import multiprocessing
import pickle
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.ahead.source import Here, Place, Source
from mmrl.ahead.stream import Sample
from mmrl.ahead.weights import WeightStore

if TYPE_CHECKING:
    from mmrl.parts import Parts
    from mmrl.runtime import Runtime

TICK_SECONDS = 0.1
"""How often is looked whether the process lives."""


class WorkerError(RuntimeError):
    """A process that draws could not be started, or was lost too often; says why."""


@dataclass(frozen=True)
class Recipe:
    """What builds a run again elsewhere: its resolved config, and the policy that a fork started from."""

    config: Path
    overrides: tuple[str, ...] = ()
    start: Path | None = None

    def build(self, source: int, sources: int) -> tuple[Parts, Runtime, int, int]:
        """The parts for the share `source` of `sources`; with train.resample and update.micro_rows."""
        from mmrl.config import load  # in the worker alone: the config knows the experiment, which knows this module
        from mmrl.runtime import Runtime

        experiment = load(str(self.config), self.overrides).experiment
        runtime = Runtime.of_share(experiment.runtime, experiment.seed, source, sources)
        parts = experiment.build(runtime, self.start)
        experiment.begin(parts, runtime, self.config.parent)
        parts.to(runtime.device)
        parts.ask_policy()
        return parts, runtime, experiment.train.resample, experiment.train.update.micro_rows


@dataclass(frozen=True)
class _Asked:
    number: int
    version: int
    place: Place | None
    """Where to go on from, of the first that a process is asked for."""


@dataclass(frozen=True)
class _Given:
    sample: Sample
    place: Place
    cpu_s: float


class Elsewhere(Source):
    """Draws the share `source` of `sources` in a process of its own, with weights out of `store`.

    Raises:
        WorkerError: of `place` and `draw`: the process cannot be started, or is lost again and again.
    """

    def __init__(self, recipe: Recipe, store: WeightStore, source: int, sources: int, tries: int) -> None:
        self.recipe, self.store, self.source, self.sources, self.tries = recipe, store, source, sources, tries
        self.restarts = 0
        self._cpu_s = 0.0
        self._closing = False
        self._process: Any = None
        self._place: Place | None = None
        self._fresh = False
        """Whether it stands elsewhere than the process in front of it has been told."""

    def launch(self) -> None:
        if self._process is None:
            self._process, self._channel = self._launched()

    def place(self) -> Place:
        self.launch()
        if self._place is None:
            self._place = self._ready()
        return self._place

    def go_on_from(self, place: Place) -> None:
        """Draw the next rollout from there."""
        self._place, self._fresh = place, True

    @property
    def pid(self) -> int:
        """Of the process that draws."""
        return int(self._process.pid)

    def draw(self, number: int, version: int) -> Sample:
        for _ in range(self.tries):
            place = self.place()
            given = self._ask(_Asked(number, version, place if self._fresh else None))
            if isinstance(given, _Given):
                self._place, self._cpu_s, self._fresh = given.place, given.cpu_s, False
                return given.sample
            if isinstance(given, Exception):
                raise given
            if self._closing:
                break
            self._again()
        raise WorkerError(
            f"{self.tries} processes were lost over rollout {number}: look for what kills them (memory?), then --resume"
        )

    def _ask(self, asked: _Asked) -> _Given | Exception | None:
        """The rollout, or what it raised; None if the process is lost over it."""
        try:
            _write(self._channel, asked)
            while not self._channel.poll(TICK_SECONDS):
                if self._closing:
                    return None
            given: _Given | Exception = _read(self._channel)
            return given
        except (EOFError, OSError):
            return None

    def _again(self) -> None:
        self._end()
        self._cpu_s = 0.0  # of one that has ended the trainer knows
        self._process, self._channel = self._launched()
        self._ready()
        self._fresh = True
        self.restarts += 1

    def _launched(self) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self.recipe, self.store.reader(), self.source, self.sources)
        process = context.Process(target=serve, args=arguments, name="mmrl collector")
        process.start()
        theirs.close()  # so that its end is the end of the pipe
        return process, ours

    def _ready(self) -> Place:
        """Where the process stands, which it says once it has built everything."""
        try:
            while not self._channel.poll(TICK_SECONDS):
                if self._closing:
                    raise EOFError
            said = _read(self._channel)
        except (EOFError, OSError):
            said = "it ended while it started"
        if isinstance(said, Place):
            return said
        self._end()
        raise WorkerError(f"a process that collects (train.ahead.processes) could not be started: {said}")

    def cpu_s(self) -> float:
        return self._cpu_s

    def stop(self) -> None:
        self._closing = True

    def close(self) -> None:
        if self._process is not None:
            self._end()

    def _end(self) -> None:
        self._channel.close()  # which it takes as the end, simulators and all
        self._process.join(5.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def serve(channel: Connection, recipe: Recipe, weights: Callable[[], WeightStore], source: int, sources: int) -> None:
    """The process: build, then draw whatever is asked for until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's
    try:
        parts, runtime, resample, micro_rows = recipe.build(source, sources)
        here = Here(parts, parts.policy, weights(), resample, micro_rows, runtime, source)
        _write(channel, here.place())
    except Exception as error:
        _write(channel, _told(error))
        return
    try:
        while True:
            asked: _Asked = _read(channel)
            try:
                if asked.place is not None:
                    here.go_on_from(asked.place)
                given = _Given(here.draw(asked.number, asked.version), here.place(), _cpu_s(here))
                _write(channel, given)
            except (EOFError, OSError):
                return
            except Exception as error:
                _write(channel, _told(error))
    except (EOFError, OSError):
        return


def _cpu_s(here: Here) -> float:
    """Of this process and all below it."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime + here.cpu_s()


def _told(error: Exception) -> Exception:
    """The error itself where it survives the way, else its words."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _write(channel: Connection, what: object) -> None:
    """By value: `Connection.send` would hand tensors over as shared memory of a process that may be gone."""
    channel.send_bytes(pickle.dumps(what))


def _read(channel: Connection) -> Any:
    return pickle.loads(channel.recv_bytes())  # noqa: S301  # from a process that this one started, or its parent
