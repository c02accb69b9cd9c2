"""A worker that has its drawing package loaded and forks a fresh child for every program.

A child is the only process of its PID namespace, has its own empty /tmp, and has given up everything that
rewards.render.inside.confine takes; nothing that it does outlives it. It writes one frame to a pipe. What it writes is
as untrusted as what it runs.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from rewards.render.inside import confine
from rewards.render.inside.frames import (
    LENGTHS,
    Answer,
    BadFrame,
    Failure,
    Refused,
    read_program,
    unpacked,
    write_all,
)

SOCKET = 0
"""The standard input is the socket to the one who asks."""
EXIT_SECONDS = 0.3
"""How long a child that has answered may take to end."""


@dataclass(frozen=True)
class Bounds:
    """The limits of one program, and the settings of what draws."""

    cpu_seconds: int
    wall_seconds: float
    memory_mb: int
    files_mb: int
    max_pixels: int
    settings: dict[str, object]


Draw = Callable[[bytes, Bounds], Answer]


def main() -> None:
    """Serve until the socket is closed: argv is the module that draws, and the bounds as JSON."""
    bounds = Bounds(**json.loads(sys.argv[2]))
    draw: Draw = importlib.import_module(f"rewards.render.inside.{sys.argv[1]}").draw
    confine.check(confine.libc.prctl(confine.PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
    gc.collect()
    gc.freeze()  # a child that collects would copy every page
    own = os.pidfd_open(os.getpid())
    write_all(SOCKET, Answer(Failure.EMPTY, "ready").packed())
    while True:
        try:
            program = read_program(SOCKET)
        except EOFError:
            return
        write_all(SOCKET, served(program, draw, bounds, own).packed())


def served(program: bytes, draw: Draw, bounds: Bounds, own: int) -> Answer:
    """What became of `program` in a child of its own; `own` is a pidfd of this process."""
    reader, writer = os.pipe()
    os.setns(own, os.CLONE_NEWPID)  # the namespace of the child before has died with it
    os.unshare(os.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        _child(program, draw, bounds, writer)
    os.close(writer)
    data, late = _collected(pid, reader, bounds)
    os.close(reader)
    os.kill(pid, signal.SIGKILL)  # still a zombie at least: nobody has waited for it
    _, status, usage = os.wait4(pid, 0)
    seconds = usage.ru_utime + usage.ru_stime
    try:
        answer = unpacked(data, bounds.max_pixels)
    except BadFrame:
        answer = _unanswered(status, seconds, late, bounds)
    return Answer(answer.failure, answer.message, answer.height, answer.width, answer.pixels, seconds)


def _collected(pid: int, reader: int, bounds: Bounds) -> tuple[bytearray, bool]:
    """What the child wrote, as far as an answer can be long, and whether it was too late."""
    deadline, data, longest = time.monotonic() + bounds.wall_seconds, bytearray(), 3 * bounds.max_pixels + 8192
    while len(data) <= longest:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return data, True
        piece = os.read(reader, 1 << 20)
        if not piece:
            break
        data += piece
    ended = os.pidfd_open(pid)
    select.select([ended], [], [], EXIT_SECONDS)  # its own exit tells more than our kill
    os.close(ended)
    return data, False


def _unanswered(status: int, seconds: float, late: bool, bounds: Bounds) -> Answer:
    """The failure of a child that wrote no answer."""
    if late:
        return Answer(Failure.TIMEOUT, f"it ran longer than {bounds.wall_seconds:g} s")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        # The kernel's count for the limit runs ahead of what it reports, by a tenth and more where others run too.
        if number == signal.SIGXCPU or (number == signal.SIGKILL and seconds > 0.8 * bounds.cpu_seconds):
            return Answer(Failure.TIMEOUT, f"it used more than {bounds.cpu_seconds} CPU-seconds")
        if number == signal.SIGKILL:
            return Answer(Failure.OUT_OF_MEMORY, "it was killed, as the kernel does when memory is short")
        return Answer(Failure.CRASHED, f"it ended by {signal.Signals(number).name}")
    return Answer(Failure.CRASHED, f"it ended with exit code {os.waitstatus_to_exitcode(status)} and no picture")


def _child(program: bytes, draw: Draw, bounds: Bounds, writer: int) -> None:
    """Confine this process, draw, answer and end; never returns."""
    try:
        try:
            _confined(bounds, writer)
        except OSError as error:
            answer = Answer(Failure.CRASHED, f"the sandbox could not be closed: {error}")
        else:
            answer = attempted(program, draw, bounds)
        write_all(writer, answer.packed())
    finally:
        os._exit(0)


def _confined(bounds: Bounds, writer: int) -> None:
    os.setsid()  # kill(0) reaches its process group whatever the PID namespace
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, writer)
    os.closerange(writer + 1, 1024)
    confine.fresh_folder(bounds.files_mb)
    os.environ.clear()
    sys.argv = [""]
    confine.limit(bounds.cpu_seconds, bounds.memory_mb, bounds.files_mb)
    confine.drop_everything()


def attempted(program: bytes, draw: Draw, bounds: Bounds) -> Answer:
    """The answer of `draw`, whatever it raises."""
    try:
        answer = draw(program, bounds)
    except Refused as refused:
        return Answer(refused.failure, str(refused))
    except MemoryError:
        return Answer(Failure.OUT_OF_MEMORY, f"it needs more than {bounds.memory_mb} MB")
    except BaseException as error:  # whatever a program can raise
        return Answer(Failure.ERROR, f"{type(error).__name__}: {str(error)[:300]}")
    first = answer.pixels[:3]
    if answer.failure is None and answer.pixels == first * (len(answer.pixels) // 3):
        return Answer(Failure.EMPTY, "all pixels are alike")
    return answer


def ready_frame(data: bytes | bytearray) -> bool:
    """Whether `data` is what a worker says when it is ready."""
    return len(data) >= LENGTHS.size and unpacked(data, 0).message == "ready"


if __name__ == "__main__":
    main()
