"""Sandboxed workers that programs are handed to, one at a time each; a worker that is lost is replaced."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import IO

from rewards.render.inside.fork_server import ready_frame
from rewards.render.inside.frames import LENGTH, Answer, BadFrame, Failure, frame_length, unpacked
from rewards.render.sandbox import SandboxError
from rewards.render.usage import Watch, usage_of

START_SECONDS = 300.0
"""How long a worker may take until it is ready, on a busy machine."""
TICK_SECONDS = 0.05
"""How often the memory of workers that need it is looked at."""
READ_BYTES = 1 << 20
STARTS = 3
"""How often a worker that is killed while it starts is started again, until one is ready."""
KILLED = (-9, 128 + 9)
"""What a process that was killed ends with, and bubblewrap whose child was."""


@dataclass(eq=False)
class Worker:
    """One sandboxed process and what it is busy with: the index of a program, -1 while it starts, or nothing."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    errors: IO[bytes]
    deadline: float
    task: int | None = -1
    spent: float = 0.0
    """CPU-seconds before this program."""
    data: bytearray = field(default_factory=bytearray)

    @classmethod
    def started(cls, command: Sequence[str]) -> Worker:
        """A worker whose standard input is the other end of `channel`."""
        ours, theirs = socket.socketpair()
        errors = tempfile.TemporaryFile()  # noqa: SIM115 kill() closes it
        with theirs:
            process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=errors, env={})
        return cls(process, ours, errors, time.monotonic() + START_SECONDS)

    def send(self, task: int, program: bytes, seconds: float) -> None:
        """Hand over a program, to be answered within `seconds`.

        Raises:
            OSError: the worker is gone.
        """
        self.task, self.deadline = task, time.monotonic() + seconds
        self.channel.settimeout(seconds)
        self.channel.sendall(LENGTH.pack(len(program)) + program)

    def kill(self) -> None:
        """End it and all in its sandbox."""
        self.process.kill()  # bubblewrap's child dies with it, and all of the PID namespace with that
        self.process.wait()
        self.channel.close()
        self.errors.close()

    def complaint(self) -> str:
        """The last line of what it said on its way out."""
        self.errors.seek(0)
        lines = self.errors.read()[-2000:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


@dataclass(eq=False)
class Pool:
    """At most `size` workers that `command` starts; `seconds` is how long one may be silent about a program.

    With a `watch`, all processes of a worker are bounded together, from outside.
    """

    command: Sequence[str]
    size: int
    seconds: float
    max_pixels: int
    watch: Watch | None = None
    lost: int = 0
    """Workers that had to be replaced so far."""

    def __post_init__(self) -> None:
        self._workers: list[Worker] = []
        self._owner = os.getpid()
        self._end = weakref.finalize(self, _kill_all, self._workers, self._owner)
        self._again: list[int] = []
        self._retried: set[int] = set()
        self._killed = 0

    @property
    def pids(self) -> list[int]:
        """The processes that are running, for measurements."""
        return [worker.process.pid for worker in self._workers]

    def run(self, programs: Sequence[bytes]) -> list[Answer]:
        """The answer to each program, in order. One whose worker ended has a second try with another.

        Raises:
            SandboxError: no worker can be started.
        """
        self._check_owner()
        answers: dict[int, Answer] = {}
        waiting = deque(range(len(programs)))
        self._again, self._retried = [], set()
        try:
            while len(answers) < len(programs):
                self._fill(len(programs) - len(answers))
                self._hand_out(waiting, programs)
                answers.update(self._collected())
                waiting.extend(self._again)
                self._again = []
        except BaseException:
            self.close()  # what is half done belongs to nobody
            raise
        return [answers[index] for index in range(len(programs))]

    def close(self) -> None:
        """End all workers."""
        _kill_all(self._workers, os.getpid())

    def _check_owner(self) -> None:
        """A forked copy of this process must not read what the workers answer to the original."""
        if self._owner != os.getpid():
            self._end.detach()
            self._workers = []
            self._owner = os.getpid()
            self._end = weakref.finalize(self, _kill_all, self._workers, self._owner)

    def _fill(self, wanted: int) -> None:
        for worker in [w for w in self._workers if w.task is None and w.process.poll() is not None]:
            self._drop(worker)
        while len(self._workers) < min(self.size, wanted):
            self._workers.append(Worker.started(self.command))

    def _drop(self, worker: Worker) -> None:
        worker.kill()
        self._workers.remove(worker)
        self.lost += 1

    def _hand_out(self, waiting: deque[int], programs: Sequence[bytes]) -> None:
        for worker in [w for w in self._workers if w.task is None]:
            if not waiting:
                return
            task = waiting.popleft()
            try:
                worker.send(task, programs[task], self.seconds)
                worker.spent = usage_of(worker.process.pid)[0] if self.watch else 0.0
            except OSError:  # it died while idle: the program was not at fault
                waiting.appendleft(task)
                self._drop(worker)

    def _collected(self) -> dict[int, Answer]:
        """Answers that arrived, or that failed, in the meantime."""
        busy = [worker for worker in self._workers if worker.task is not None]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.channel, selectors.EVENT_READ, worker)
            patience = max(0.0, min((w.deadline for w in busy), default=0.0) - time.monotonic())
            starting = any(worker.task == -1 for worker in busy)
            ready = selector.select(min(patience, TICK_SECONDS) if self.watch or starting else patience)
        answers = {}
        for worker in [key.data for key, _ in ready]:
            task = worker.task
            if (answer := self._read(worker)) is not None and task is not None and task >= 0:
                answers[task] = answer
        for worker in [w for w in busy if w in self._workers and w.task is not None]:
            if (failed := self._overdue(worker)) is not None and worker.task is not None:
                answers[worker.task] = failed
        return answers

    def _read(self, worker: Worker) -> Answer | None:
        """What a worker says: None while it is not at its end, or when all it says is that it is ready."""
        try:
            piece = worker.channel.recv(READ_BYTES)
            worker.data += piece
            length = frame_length(worker.data, self.max_pixels)
            if piece and (length is None or len(worker.data) < length):
                return None
            answer = unpacked(worker.data, self.max_pixels)
        except (OSError, BadFrame):
            return self._lost(worker)
        if worker.task == -1 and not ready_frame(worker.data):
            return self._lost(worker)
        if self.watch and worker.task != -1:
            answer = replace(answer, cpu_seconds=max(0.0, usage_of(worker.process.pid)[0] - worker.spent))
        self._killed = 0
        worker.task = None
        worker.data.clear()
        return answer

    def _lost(self, worker: Worker) -> Answer | None:
        if worker.task == -1:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(5)
            if worker.process.returncode in KILLED and self._killed < STARTS:  # by the kernel for its memory, say
                self._killed += 1
                self._drop(worker)
                return None
            said = worker.complaint()
            raise SandboxError(f"a renderer did not start ({said}): model-written code runs nowhere else")
        self._drop(worker)
        if worker.task is not None and worker.task not in self._retried:
            self._retried.add(worker.task)
            self._again.append(worker.task)
            return None
        return Answer(Failure.CRASHED, "its worker ended twice, and was replaced")

    def _overdue(self, worker: Worker) -> Answer | None:
        """The failure of a program that takes too long or too much, whose worker is killed."""
        if (said := self._excess(worker)) is not None:
            self._drop(worker)
            return said
        if worker.task == -1 and worker.process.poll() is not None:  # what it had begun may hold the channel
            return self._lost(worker)
        if time.monotonic() < worker.deadline:
            return None
        if worker.task == -1:
            raise SandboxError(f"a renderer was not ready after {START_SECONDS:g} s: try again on a quieter machine")
        self._drop(worker)
        return Answer(Failure.TIMEOUT, f"it ran longer than {self.seconds:g} s")

    def _excess(self, worker: Worker) -> Answer | None:
        if self.watch is None or worker.task == -1:
            return None
        seconds, megabytes = usage_of(worker.process.pid)
        if megabytes > self.watch.memory_mb:
            return Answer(Failure.OUT_OF_MEMORY, f"it needs more than {self.watch.memory_mb:g} MB")
        if seconds - worker.spent > self.watch.cpu_seconds:
            return Answer(Failure.TIMEOUT, f"it used more than {self.watch.cpu_seconds:g} CPU-seconds")
        return None


def _kill_all(workers: list[Worker], owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked copy that ends: they are not its own
    while workers:
        workers.pop().kill()
