"""One worker process, as the process that started it sees it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import wait

from torch import Tensor

from vla.sim.worker import Act, Job, serve


class Worker:
    """One process and the rows it simulates."""

    def __init__(self, rows: Tensor, job: Job, settings: Mapping[str, str]) -> None:
        self.rows, self.job, self.settings = rows, job, settings
        self.owes: deque[tuple[int, Act]] = deque()
        """Parts whose chunk it was given and has not answered, in order."""
        self.start()

    def start(self) -> None:
        """Start a process; it answers with its specs when it is ready."""
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, self.job), daemon=True)
        with _environment({"OMP_NUM_THREADS": "1", **self.settings}):
            self.process.start()
        theirs.close()

    def send(self, message: object) -> None:
        """Send, or let the next `receive` notice that nobody is there."""
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return

    def receive(self, deadline: float) -> object:
        """The answer, or None if the process is dead or silent until `deadline`, in which case it is ended."""
        ready = wait([self.connection, self.process.sentinel], max(0.0, deadline - time.monotonic()))
        try:
            if self.connection in ready or self.connection.poll():
                return self.connection.recv()
        except (EOFError, ConnectionResetError):
            pass
        self.kill()
        return None

    def kill(self) -> None:
        """End the process now."""
        self.process.kill()
        self.process.join()
        self.connection.close()


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """These variables for a process that is started inside."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
