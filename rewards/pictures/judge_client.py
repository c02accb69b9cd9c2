"""Asks an OpenAI-compatible chat endpoint: one deadline per call, retries with growing pauses, a budget of calls, and a
bounded number of calls at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rewards.compose import RewardError
from rewards.pictures.judge_ledger import Tally

if TYPE_CHECKING:
    import httpx

PASSING = frozenset({408, 409, 425, 429})
"""Client errors that pass by themselves; those of the server (500 and above) are taken to."""
LONGEST_PAUSE_S, LONGEST_RETRY_AFTER_S, FIRST_CONTACT_S = 60.0, 300.0, 10.0
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """How one call ended: with the text of an answer, or the reason why there is none and the seconds that the server
    asks to wait."""

    outcome: str  # as Tally.outcomes has it
    answer: str | None = None
    reason: str = ""
    pause_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0


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
            ended = self._counted(client, body, tally)
            reason = ended.reason
            if ended.answer is not None:
                tally.answered()
                return ended.answer
            if attempt < self.retries:
                jitter = 0.5 + mark[attempt % len(mark)] / 255  # not all at once, and the same in every run
                pause = max(min(self.pause_s * 2**attempt, LONGEST_PAUSE_S) * jitter, ended.pause_s)
                if tally.failed(attempt + 1):
                    LOGGER.warning("judge %s: %s; try %d in %.1f s", self.shown, reason, attempt + 2, pause)
                stop.wait(pause)
        raise RewardError(
            f"the judge at {self.shown} gave no answer in {self.retries + 1} tries over "
            f"{time.monotonic() - started:.0f} s (last: {reason}): see whether it runs, then resume"
        )

    def _counted(self, client: httpx.Client, body: Mapping[str, object], tally: Tally) -> Attempt:
        """One call, whose end is noted however it comes.

        Raises:
            RewardError: it was refused.
        """
        ended = Attempt("interrupted")
        try:
            ended = self._try(client, body)
        finally:
            tally.ended(ended.outcome, ended.prompt_tokens, ended.completion_tokens)
        if ended.outcome == "refused":
            raise RewardError(ended.reason)
        return ended

    def _try(self, client: httpx.Client, body: Mapping[str, object]) -> Attempt:
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
            return Attempt("timeout", reason=f"no answer within {self.timeout_s:g} s")
        except httpx.HTTPError as error:
            return Attempt("connection", reason=f"{type(error).__name__}: {error}")
        if response.status_code >= 500 or response.status_code in PASSING:
            pause_s = _seconds(response.headers.get("retry-after", ""))
            return Attempt("status", reason=f"HTTP {response.status_code}", pause_s=pause_s)
        if response.status_code != 200:
            return Attempt("refused", reason=self._refused(response.status_code, content))
        try:
            said = json.loads(content)
            text = said["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            return Attempt("garbled", reason=f"not an answer of an OpenAI-compatible server: {content[:200]!r}")
        tokens = [_count(said, name) for name in ("prompt_tokens", "completion_tokens")]
        return Attempt("answered", text if isinstance(text, str) else "", "", 0.0, *tokens)

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


def _count(said: Mapping[str, object], name: str) -> int:
    """A number of tokens that a server says it took; 0 where it does not."""
    usage = said.get("usage")
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0


def _seconds(text: str) -> float:
    """A Retry-After in seconds; as a date it is left alone."""
    return min(float(text), LONGEST_RETRY_AFTER_S) if text.isascii() and text.isdigit() else 0.0


def run_all(jobs: Mapping[str, Callable[[threading.Event], str]], concurrency: int) -> dict[str, str]:
    """The results of all jobs, at most `concurrency` at a time. The first error stops the rest and is raised."""
    stop, first = threading.Event(), list[BaseException]()
    found: dict[str, str] = {}

    def guarded(job: Callable[[threading.Event], str]) -> str:
        try:
            return job(stop)
        except BaseException as error:
            if not stop.is_set():
                first.append(error)
            stop.set()  # here, not where results are awaited: this thread would begin another job before that
            raise

    with ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="judge") as pool:
        futures: dict[Any, str] = {pool.submit(guarded, job): key for key, job in jobs.items()}
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
