"""What a process and all below it use, read from /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rewards.render.sandbox import SandboxError


@dataclass(frozen=True)
class Watch:
    """What all processes of a worker may use together for one program."""

    cpu_seconds: float
    memory_mb: float


def require_children() -> None:
    """Make sure that processes can be found.

    Raises:
        SandboxError: this kernel does not list the children of a process.
    """
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        raise SandboxError(
            "the browser's memory could not be bounded: mount /proc of a kernel with CONFIG_PROC_CHILDREN"
        )


def tree_of(pid: int) -> Iterator[int]:
    """The process and all below it, as far as they still exist."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree_of(int(child))


def usage_of(pid: int) -> tuple[float, float]:
    """CPU-seconds so far, those of children that ended too, and MB of memory that is no file's, of a process and all
    below it."""
    ticks, pages = 0, 0
    for each in tree_of(pid):
        with contextlib.suppress(OSError, ValueError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            _, resident, shared, *_ = Path(f"/proc/{each}/statm").read_text().split()
            ticks += sum(int(number) for number in fields[11:15])
            pages += int(resident) - int(shared)
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
