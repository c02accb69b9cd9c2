"""What the tests of renderers share: renderers, or the reason that they cannot run; a listener that nothing may reach."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from rewards.render import Limits, Rendered, Renderer, SandboxError
from rewards.render.pages import find_browser
from rewards.render.sandbox import find_bubblewrap

TIGHT = Limits(cpu_seconds=2, wall_seconds=8, memory_mb=700, files_mb=8, max_pixels=500_000)
BAR = "import matplotlib.pyplot as plt\nplt.figure(figsize=(2, 1.5))\nplt.bar(['a', 'b'], [{}, 2])\n"
DISC = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4" cy="4" r="{}" fill="red"/></svg>'
BOX = "<div style='width:{}px;height:40px;background:green'>text</div>"


def need_bubblewrap() -> None:
    with suppress_missing():
        find_bubblewrap()


def need_browser() -> None:
    need_bubblewrap()
    with suppress_missing():
        find_browser()


@contextmanager
def suppress_missing() -> Iterator[None]:
    try:
        yield
    except SandboxError as error:
        pytest.skip(str(error))


@contextmanager
def bounded() -> Iterator[None]:
    """Soft limits that all processes of the sandboxes inherit, should theirs not hold: 3 GB of memory to a process, 512 MB
    to a file, and for other users than root 4,000 processes."""
    sizes = {resource.RLIMIT_DATA: 3 << 30, resource.RLIMIT_FSIZE: 512 << 20, resource.RLIMIT_NPROC: 4000}
    before = {name: resource.getrlimit(name) for name in sizes}
    try:
        for name, size in sizes.items():
            _, hard = before[name]
            resource.setrlimit(name, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
        yield
    finally:
        for name, limits in before.items():
            resource.setrlimit(name, limits)


class Listener:
    """TCP and UDP at one port of 127.0.0.1, where nothing may arrive."""

    def __init__(self) -> None:
        self.tcp, self.udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
        self.tcp.bind(("127.0.0.1", 0))
        self.port = self.tcp.getsockname()[1]
        self.udp.bind(("127.0.0.1", self.port))
        self.tcp.listen()
        self.tcp.setblocking(False)
        self.udp.setblocking(False)

    def heard(self) -> bool:
        with suppress(BlockingIOError):
            self.tcp.accept()
            return True
        with suppress(BlockingIOError):
            self.udp.recv(10)
            return True
        return False

    def close(self) -> None:
        self.tcp.close()
        self.udp.close()


def one(renderer: Renderer, program: str) -> Rendered:
    (result,) = renderer.render([program])
    assert (result.picture is None) == (result.failure is not None)
    assert "\n" not in result.message
    return result
