"""How long a reward may take: one that hangs would hold a run for ever, and say nothing."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class LateError(RuntimeError):
    """There was no answer in time."""


class _Bell(BaseException):
    """Not an Exception, so that code which takes every error for a score of 0 does not swallow it."""


@contextmanager
def at_most(seconds: float | None) -> Iterator[None]:
    """Interrupt what is done inside after so many seconds of wall clock: whatever Python waits for, not a call into C
    that never comes back. It does nothing outside of the main thread, nor where an earlier alarm is set already.

    Raises:
        LateError: it took longer.
    """
    before = signal.getitimer(signal.ITIMER_REAL)[0]
    if seconds is None or threading.current_thread() is not threading.main_thread() or 0 < before <= seconds:
        yield
        return

    def ring(*_: object) -> None:
        raise _Bell

    began, handler = time.monotonic(), signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Bell:
        raise LateError(f"gave no answer in {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if before > 0:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, before - (time.monotonic() - began)))
