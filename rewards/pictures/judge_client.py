"""Asks an OpenAI-compatible chat endpoint: one deadline per call, retries with growing pauses, a budget of calls, a
cache of answers as JSON, and a bounded number of calls at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rewards.compose import RewardError

if TYPE_CHECKING:
    import httpx

PASSING = frozenset({408, 409, 425, 429})
"""Client errors that pass by themselves; those of the server (500 and above) are taken to."""
LONGEST_PAUSE_S, LONGEST_RETRY_AFTER_S, FIRST_CONTACT_S = 60.0, 300.0, 10.0
LOGGER = logging.getLogger(__name__)


class Tally:
    """How many calls were made, of how many that may be; safe between threads."""

    def __init__(self, budget: int | None) -> None:
        self.budget, self.calls, self.unparsable, self.model = budget, 0, 0, ""
        self._lock, self._failed = threading.Lock(), 0

    def take(self, count: int = 1) -> None:
        """Note `count` more calls.

        Raises:
            RewardError: there are not so many left; nothing is noted.
        """
        with self._lock:
            self.check(count)
            self.calls += count

    def failed(self, attempts: int) -> bool:
        """Note that a call failed so many times; whether that is news: of many calls at a time one speaks."""
        with self._lock:
            news, self._failed = attempts > self._failed, max(attempts, self._failed)
        return news

    def answered(self) -> None:
        """Note that there was an answer: the next failure is news again."""
        self._failed = 0

    def check(self, count: int) -> None:
        """That `count` more calls may be made.

        Raises:
            RewardError: they may not.
        """
        if self.budget is not None and self.calls + count > self.budget:
            raise RewardError(
                f"the judge has made {self.calls} calls, needs {count} more, and budget_calls is {self.budget}: "
                "raise it and resume"
            )


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how patiently. `name` says in messages which variable it comes from."""

    url: str = field(repr=False)
    key: str = field(repr=False)
    name: str
    timeout_s: float
    retries: int
    pause_s: float

    @property
    def shown(self) -> str:
        """The address without secrets."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def client(self, concurrency: int) -> httpx.Client:
        """Connections to it."""
        import httpx

        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(
            headers=headers, timeout=self.timeout_s, limits=httpx.Limits(max_connections=concurrency + 1)
        )

    def models(self, client: httpx.Client) -> list[str]:
        """What it serves; empty if it does not say.

        Raises:
            RewardError: nobody answers there.
        """
        import httpx

        url = self.url.removesuffix("/chat/completions") + "/models"
        try:
            response = client.get(url, timeout=min(self.timeout_s, FIRST_CONTACT_S))
        except httpx.HTTPError as error:
            raise RewardError(
                f"no judge answers at {self.shown} ({type(error).__name__}): start it, or correct the environment "
                f"variable {self.name}"
            ) from error
        try:
            return [str(entry["id"]) for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            return []

    def ask(self, client: httpx.Client, body: Mapping[str, object], tally: Tally, stop: threading.Event) -> str:
        """The text of the answer to one request.

        Raises:
            RewardError: it refused, or gave none after all retries, or the budget is used up.
        """
        mark = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
        started, reason = time.monotonic(), ""
        for attempt in range(self.retries + 1):
            if stop.is_set():
                raise RewardError("stopped, because another call to the judge failed")
            tally.take()
            answer, reason, wanted_pause = self._try(client, body)
            if answer is not None:
                tally.answered()
                return answer
            if attempt < self.retries:
                jitter = 0.5 + mark[attempt % len(mark)] / 255  # not all at once, and the same in every run
                pause = max(min(self.pause_s * 2**attempt, LONGEST_PAUSE_S) * jitter, wanted_pause)
                if tally.failed(attempt + 1):
                    LOGGER.warning("judge %s: %s; try %d in %.1f s", self.shown, reason, attempt + 2, pause)
                stop.wait(pause)
        raise RewardError(
            f"the judge at {self.shown} gave no answer in {self.retries + 1} tries over "
            f"{time.monotonic() - started:.0f} s (last: {reason}): see whether it runs, then resume"
        )

    def _try(self, client: httpx.Client, body: Mapping[str, object]) -> tuple[str | None, str, float]:
        """The answer, or None, why, and the seconds the server asks to wait."""
        import httpx

        deadline = time.monotonic() + self.timeout_s
        try:
            with client.stream("POST", self.url, json=body) as response:
                parts = []
                for part in response.iter_bytes():
                    parts.append(part)
                    if time.monotonic() > deadline:  # httpx limits each read only
                        raise httpx.ReadTimeout("the answer came too slowly")
            content = b"".join(parts)
        except httpx.TimeoutException:
            return None, f"no answer within {self.timeout_s:g} s", 0.0
        except httpx.HTTPError as error:
            return None, f"{type(error).__name__}: {error}", 0.0
        if response.status_code >= 500 or response.status_code in PASSING:
            return None, f"HTTP {response.status_code}", _seconds(response.headers.get("retry-after", ""))
        if response.status_code != 200:
            raise RewardError(self._refused(response.status_code, content))
        try:
            text = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            return None, f"not an answer of an OpenAI-compatible server: {content[:200]!r}", 0.0
        return text if isinstance(text, str) else "", "", 0.0

    def _refused(self, status: int, content: bytes) -> str:
        advice = {401: "set the field key_env", 403: "check the key", 404: "check the URL and the field model"}
        said = content.decode("utf-8", "replace")[:300]
        return (
            f"the judge at {self.shown} refuses the request with HTTP {status} ({said}): "
            f"{advice.get(status, 'its own words say why')}"
        )


def chat_url(name: str, value: str) -> str:
    """Where completions of chats are asked for, from a base URL with or without /v1.

    Raises:
        ValueError: `value` is no URL.
    """
    try:
        parts = urlsplit(value.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(
            f"the environment variable {name} is {value.rpartition('@')[2]!r}: give a URL such as http://localhost:8000/v1"
        )
    base = value.strip().rstrip("/")
    if base.endswith("/chat/completions"):
        return base
    return f"{base}{'' if parts.path.strip('/') else '/v1'}/chat/completions"


def _seconds(text: str) -> float:
    """A Retry-After in seconds; as a date it is left alone."""
    return min(float(text), LONGEST_RETRY_AFTER_S) if text.isascii() and text.isdigit() else 0.0


@dataclass(frozen=True)
class Cache:
    """Answers in a folder, one JSON file each, by the hash of what was asked of whom. No folder: nothing is kept."""

    folder: Path | None

    def read(self, key: str) -> str | None:
        """The answer, if it is there and whole."""
        if self.folder is None:
            return None
        try:
            answer = json.loads(self._file(key).read_text(encoding="utf-8"))["answer"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return answer if isinstance(answer, str) else None

    def write(self, key: str, answer: str) -> None:
        """Keep an answer; a half-written file is never seen under its name."""
        if self.folder is None:
            return
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}")
        unfinished.write_text(json.dumps({"answer": answer}), encoding="utf-8")
        unfinished.replace(file)

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.json"


def run_all(jobs: Mapping[str, Callable[[threading.Event], str]], concurrency: int) -> dict[str, str]:
    """The results of all jobs, at most `concurrency` at a time. The first error stops the rest and is raised."""
    stop = threading.Event()
    found: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="judge") as pool:
        futures: dict[Any, str] = {pool.submit(job, stop): key for key, job in jobs.items()}
        try:
            for future in as_completed(futures):
                found[futures[future]] = future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found
