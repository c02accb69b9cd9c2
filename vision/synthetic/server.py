"""The data server: a process of its own that makes pictures while the trainer trains.

Whoever posts never waits: a thread holds the connection, and the process behind it may be slow, hang or die. A process
that is lost is started again; what it had not answered is asked again, with the same seed, so that every request is
answered exactly once.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from vision.synthetic.records import Generator, Request, Result
from vision.synthetic.validity import Check, made

TICK_SECONDS = 0.1
"""How often the supervisor looks whether there is work, and whether the process lives."""


ENDED = "it ended while it started"


class ServerError(RuntimeError):
    """The data server cannot start; says why."""


class KilledError(ServerError):
    """It was killed while it started."""


@dataclass(frozen=True)
class ServerConfig:
    """Of the process. `queue` requests wait at most: one more, and the oldest is dropped. `batch` are made together.
    One that takes more than `hang_s` for a batch is taken to hang, and started again; a batch over which `tries`
    processes are lost is refused. `start_s` is how long loading a generator may take."""

    queue: int = 64
    batch: int = 8
    hang_s: float = 120.0
    start_s: float = 300.0
    tries: int = 3

    def __post_init__(self) -> None:
        for name in ("queue", "batch", "hang_s", "start_s", "tries"):
            if not vars(self)[name] > 0:
                raise ValueError(f"synthetic.server.{name} is {vars(self)[name]}: give more than 0")


@dataclass
class Tally:
    """What has gone wrong so far."""

    dropped: int = 0
    """For want of room in the queue."""
    restarts: int = 0


@dataclass(eq=False)
class _Process:
    """The running process, as the supervisor sees it."""

    process: Any  # of a spawn context: typed so by no stub
    channel: Connection
    cpu_s: float = 0.0

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.channel.close()


@dataclass(eq=False)
class DataServer:
    """Takes requests and gives results, neither ever waiting; supervises the process that makes them.

    Raises:
        ServerError: the generator cannot be loaded, when it is started the first time.
    """

    generator: Generator
    checks: Sequence[Check]
    config: ServerConfig = field(default_factory=ServerConfig)

    def __post_init__(self) -> None:
        self.tally = Tally()
        self._lock = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._making: list[Request] = []
        self._results: deque[Result] = deque()
        self._closing = False
        self._past_cpu_s = 0.0
        self._process = self._first()
        self._thread = threading.Thread(target=self._supervise, name="data server", daemon=True)
        self._thread.start()

    # ---- for the trainer --------------------------------------------------------------------------------

    def post(self, requests: Sequence[Request], keep: bool = False) -> list[Request]:
        """Queue requests; returns those that had to make room and will not be answered: none with `keep`."""
        with self._lock:
            self._waiting.extend(requests)
            dropped = []
            while len(self._waiting) > self.config.queue and not keep:
                dropped.append(self._waiting.popleft())
            self.tally.dropped += len(dropped)
            self._lock.notify_all()
        return dropped

    def take(self, wait_s: float = 0.0) -> list[Result]:
        """All results that are ready, in the order in which their requests were posted. With `wait_s` those of every
        request are waited for, at most so many seconds."""
        with self._lock:
            if wait_s > 0:
                self._lock.wait_for(lambda: not self._waiting and not self._making, wait_s)
            found = sorted(self._results, key=lambda result: result.request.number)
            self._results.clear()
        return found

    @property
    def depth(self) -> int:
        """Requests that are waiting or being made."""
        with self._lock:
            return len(self._waiting) + len(self._making)

    @property
    def pid(self) -> int:
        """Of the process that is running."""
        return int(self._process.process.pid)

    def cpu_s(self) -> float:
        """CPU seconds of the processes so far, as far as they have told."""
        return self._past_cpu_s + self._process.cpu_s

    def close(self) -> None:
        """End the process; what is unanswered stays so."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        self._thread.join()
        self._process.kill()

    # ---- the supervisor ---------------------------------------------------------------------------------

    def _first(self) -> _Process:
        """A process that is killed while it starts, by the kernel for its memory say, has `tries` in all."""
        for _ in range(self.config.tries - 1):
            try:
                return self._started()
            except KilledError:
                continue
        return self._started()

    def _started(self) -> _Process:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self.generator, tuple(self.checks))
        # a daemon ends with the trainer, and at the end of the pipe should that be killed
        process = context.Process(target=serve, args=arguments, daemon=True, name="mmrl data server")
        process.start()
        theirs.close()  # so that its end is the end of the pipe
        found = _Process(process, ours)
        try:
            said = ours.recv() if ours.poll(self.config.start_s) else f"it said nothing for {self.config.start_s:.0f} s"
        except (EOFError, OSError):
            said = ENDED
            process.join(TICK_SECONDS)
        if said != "ready":
            killed = said == ENDED and not process.is_alive() and process.exitcode == -signal.SIGKILL
            found.kill()
            raise (KilledError if killed else ServerError)(
                f"synthetic.generator {type(self.generator).__name__} could not be started: {said}"
            )
        return found

    def _supervise(self) -> None:
        tries = 0
        while True:
            with self._lock:
                if not self._making:
                    self._lock.wait_for(lambda: self._waiting or self._closing, TICK_SECONDS)
                    count = min(self.config.batch, len(self._waiting))
                    self._making = [self._waiting.popleft() for _ in range(count)]
                if self._closing:
                    return
                batch = list(self._making)
            if not batch and self._process.process.is_alive():
                continue
            results = self._ask(batch) if batch else None
            if results is None:
                tries = tries + 1 if batch else 0
                if not self._again():
                    return
                if tries < self.config.tries or not batch:
                    continue
                reason = f"{tries} processes were lost over it"
                results = [Result(request, None, reason=reason, broken=True) for request in batch]
            tries = 0
            with self._lock:
                self._making = []
                self._results.extend(results)
                self._lock.notify_all()

    def _ask(self, batch: list[Request]) -> list[Result] | None:
        """What the process makes of a batch; None if it is lost over it."""
        channel, deadline = self._process.channel, time.monotonic() + self.config.hang_s
        try:
            channel.send(batch)
            while not channel.poll(TICK_SECONDS):
                if time.monotonic() > deadline or self._closing:
                    return None
            results, self._process.cpu_s = channel.recv()
            return list(results)
        except (EOFError, OSError):
            return None

    def _again(self) -> bool:
        """A new process in place of the lost one; False if everything is to end. Training goes on meanwhile."""
        pause = 1.0
        while not self._closing:
            self._process.kill()
            self._past_cpu_s, self._process.cpu_s = self.cpu_s(), 0.0
            try:
                self._process = self._started()
                self.tally.restarts += 1
                return True
            except ServerError as error:
                warnings.warn(f"{error}; training goes on with real data, next try in {pause:.0f} s", stacklevel=2)
                with self._lock:
                    self._lock.wait_for(lambda: self._closing, pause)
                pause = min(60.0, 2 * pause)
        return False


def serve(channel: Connection, generator: Generator, checks: Sequence[Check]) -> None:
    """The process: load the generator, then answer batches until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's; it closes the pipe when it goes
    try:
        generator.prepare()
    except Exception as error:
        channel.send(f"{type(error).__name__}: {error}")
        return
    try:
        channel.send("ready")
        while True:
            batch: list[Request] = channel.recv()
            channel.send((_answers(generator, checks, batch), time.process_time()))
    except (EOFError, OSError):
        return


def _answers(generator: Generator, checks: Sequence[Check], batch: list[Request]) -> list[Result]:
    """One that makes the generator raise is refused alone."""
    try:
        return made(generator, checks, batch)
    except Exception as error:
        if len(batch) == 1:
            return [Result(batch[0], None, reason=f"{type(error).__name__}: {error}", broken=True)]
        return [result for request in batch for result in _answers(generator, checks, [request])]
