"""What happens between a run and the person who watches it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls `stop`, so that the step can end and be saved; the second is Python's own."""

    def first(number: int, frame: object) -> None:
        stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tqdm.write("stopping after this step; Ctrl-C again to stop at once")

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield
        return
    previous = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
