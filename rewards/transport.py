"""Calls over HTTP: one deadline a call, retries with growing pauses, and a bounded number of calls at a time.

Judges, teachers and generation servers are all asked through here.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx

PASSING = frozenset({408, 409, 425, 429})
"""Client errors that pass by themselves; those of the server (500 and above) are taken to."""
LONGEST_PAUSE_S, LONGEST_RETRY_AFTER_S = 60.0, 300.0


@dataclass(frozen=True)
class Attempt[T]:
    """How one call ended: with a value, or the reason why there is none and the seconds that the server asks to wait.

    `outcome`: answered, timeout, connection, status (5xx and those that pass), garbled (not what such a server says),
    refused (4xx), interrupted, or stopped before it was made."""

    outcome: str
    value: T | None = None
    reason: str = ""
    pause_s: float = 0.0
    status: int = 0
    said: str = ""  # what a server that failed said itself


@dataclass(frozen=True)
class Patience:
    """A call that fails is tried `retries` times more (null: any number), and until `wait_s` seconds after it failed
    first (null: any time), after pauses of `pause_s`, twice that, and so on up to `longest_s`."""

    pause_s: float
    retries: int | None = None
    wait_s: float | None = None
    longest_s: float = LONGEST_PAUSE_S

    def pause(self, attempt: int, mark: bytes) -> float:
        """After the failed `attempt`, from 0: not all callers at once, and the same in every run of a `mark`."""
        jitter = 0.5 + mark[attempt % len(mark)] / 255
        return min(self.pause_s * 2.0 ** min(attempt, 60), self.longest_s) * jitter


def connect(key: str, timeout_s: float, concurrency: int) -> httpx.Client:
    """Connections to a server, with its `key` if it has one."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(headers=headers, timeout=timeout_s, limits=httpx.Limits(max_connections=concurrency + 1))


def call(client: httpx.Client, method: str, url: str, timeout_s: float, body: object = None) -> Attempt[bytes]:
    """One call, which ends within about `timeout_s` however slowly its answer trickles in."""
    import httpx

    deadline = time.monotonic() + timeout_s
    try:
        with client.stream(method, url, json=body, timeout=timeout_s) as response:
            parts = []
            for part in response.iter_bytes():
                parts.append(part)
                if time.monotonic() > deadline:  # httpx limits each read only
                    raise httpx.ReadTimeout("the answer came too slowly")
    except httpx.TimeoutException:
        return Attempt("timeout", reason=f"no answer within {timeout_s:g} s")
    except httpx.HTTPError as error:
        return Attempt("connection", reason=f"{type(error).__name__}: {error}")
    content, status = b"".join(parts), response.status_code
    said = content.decode("utf-8", "replace")[:300]
    if status >= 500 or status in PASSING:
        pause_s = _seconds(response.headers.get("retry-after", ""))
        return Attempt("status", None, f"HTTP {status}", pause_s, status, said)
    if status != 200:
        return Attempt("refused", None, f"HTTP {status} ({said})", 0.0, status, said)
    return Attempt("answered", content, status=status)


def read[T](attempt: Attempt[bytes], reader: Callable[[Any], T]) -> Attempt[T]:
    """`attempt` with what `reader` makes of the JSON of its answer; garbled where that cannot be made."""
    if attempt.outcome != "answered" or attempt.value is None:
        return Attempt(attempt.outcome, None, attempt.reason, attempt.pause_s, attempt.status, attempt.said)
    try:
        return Attempt("answered", reader(json.loads(attempt.value)), status=attempt.status)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return Attempt("garbled", reason=f"not an answer of an OpenAI-compatible server: {attempt.value[:200]!r}")


def insist[T](
    once: Callable[[], Attempt[T]],
    patience: Patience,
    mark: bytes,
    stop: threading.Event,
    failed: Callable[[int, str, float], None],
) -> Attempt[T]:
    """The first attempt that is answered or refused, or the last one that `patience` allows. `failed` hears of each
    other: how many there were, why, and the seconds until the next. Nothing is begun once `stop` is set."""
    failing_since: float | None = None
    for attempt in itertools.count():
        if stop.is_set():
            return Attempt("stopped", reason="another call failed")
        ended = once()
        if ended.outcome in ("answered", "refused") or attempt == patience.retries:
            return ended
        pause, now = max(patience.pause(attempt, mark), ended.pause_s), time.monotonic()
        failing_since = now if failing_since is None else failing_since
        if patience.wait_s is not None and now - failing_since + pause > patience.wait_s:
            return ended
        failed(attempt + 1, ended.reason, pause)
        stop.wait(pause)
    raise AssertionError("there is always one more attempt")


def run_all[K, T](jobs: Mapping[K, Callable[[threading.Event], T]], concurrency: int) -> dict[K, T]:
    """The results of all jobs, at most `concurrency` at a time. The first error stops the rest and is raised."""
    stop, first = threading.Event(), list[BaseException]()
    found: dict[K, T] = {}

    def guarded(job: Callable[[threading.Event], T]) -> T:
        try:
            return job(stop)
        except BaseException as error:
            if not stop.is_set():
                first.append(error)
            stop.set()  # here, not where results are awaited: this thread would begin another job before that
            raise

    with ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="calls") as pool:
        futures: dict[Any, K] = {pool.submit(guarded, job): key for key, job in jobs.items()}
        try:
            for future in as_completed(futures):
                found[futures[future]] = future.result()
        except BaseException as error:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            if first and isinstance(error, Exception):
                raise first[0] from None  # the others only say that they were stopped
            raise
    return found


def is_url(value: str) -> bool:
    """Whether `value` is the address of a server."""
    try:
        parts = urlsplit(value.strip())
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def shown(url: str) -> str:
    """An address without secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _seconds(text: str) -> float:
    """A Retry-After in seconds; as a date it is left alone."""
    return min(float(text), LONGEST_RETRY_AFTER_S) if text.isascii() and text.isdigit() else 0.0
