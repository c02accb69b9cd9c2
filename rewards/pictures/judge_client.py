"""Asks an OpenAI-compatible chat endpoint within a budget of calls, and says what its refusals mean."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rewards import transport
from rewards.compose import RewardError
from rewards.pictures.judge_ledger import Tally
from rewards.transport import Attempt, Patience, call, insist, read

if TYPE_CHECKING:
    import httpx

FIRST_CONTACT_S = 10.0
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Said:
    """The text of an answer, and the tokens that the server says it took."""

    text: str
    prompt_tokens: int
    completion_tokens: int


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
        return transport.shown(self.url)

    def client(self, concurrency: int) -> httpx.Client:
        """Connections to it."""
        return transport.connect(self.key, self.timeout_s, concurrency)

    def models(self, client: httpx.Client) -> list[str]:
        """What it serves; empty if it does not say.

        Raises:
            RewardError: nobody answers there.
        """
        url = self.url.removesuffix("/chat/completions") + "/models"
        ended = call(client, "GET", url, min(self.timeout_s, FIRST_CONTACT_S))
        if ended.outcome in ("timeout", "connection"):
            kind = ended.reason.partition(":")[0]
            raise RewardError(
                f"no judge answers at {self.shown} ({kind}): start it, or correct the environment variable {self.name}"
            )
        return read(ended, lambda said: [str(entry["id"]) for entry in said["data"]]).value or []

    def ask(self, client: httpx.Client, body: Mapping[str, object], tally: Tally, stop: threading.Event) -> str:
        """The text of the answer to one request.

        Raises:
            RewardError: it refused, or gave none after all retries, or the budget is used up.
        """
        mark = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
        started = time.monotonic()

        def once() -> Attempt[Said]:
            tally.take()
            return self._counted(client, body, tally)

        def failed(attempts: int, reason: str, pause: float) -> None:
            if tally.failed(attempts):
                LOGGER.warning("judge %s: %s; try %d in %.1f s", self.shown, reason, attempts + 1, pause)

        ended = insist(once, Patience(self.pause_s, self.retries), mark, stop, failed)
        if ended.value is not None:
            tally.answered()
            return ended.value.text
        if ended.outcome == "stopped":
            raise RewardError("stopped, because another call to the judge failed")
        if ended.outcome == "refused":
            raise RewardError(self._refused(ended))
        raise RewardError(
            f"the judge at {self.shown} gave no answer in {self.retries + 1} tries over "
            f"{time.monotonic() - started:.0f} s (last: {ended.reason}): see whether it runs, then resume"
        )

    def _counted(self, client: httpx.Client, body: Mapping[str, object], tally: Tally) -> Attempt[Said]:
        """One call, whose end is noted however it comes."""
        ended: Attempt[Said] = Attempt("interrupted")
        try:
            ended = read(call(client, "POST", self.url, self.timeout_s, body), _said)
        finally:
            tokens = (0, 0) if ended.value is None else (ended.value.prompt_tokens, ended.value.completion_tokens)
            tally.ended(ended.outcome, *tokens)
        return ended

    def _refused(self, ended: Attempt[Said]) -> str:
        advice = {401: "set the field key_env", 403: "check the key", 404: "check the URL and the field model"}
        return (
            f"the judge at {self.shown} refuses the request with {ended.reason}: "
            f"{advice.get(ended.status, 'its own words say why')}"
        )


def chat_url(name: str, value: str) -> str:
    """Where completions of chats are asked for, from a base URL with or without /v1.

    Raises:
        ValueError: `value` is no URL.
    """
    if not transport.is_url(value):
        raise ValueError(
            f"the environment variable {name} is {value.rpartition('@')[2]!r}: give a URL such as http://localhost:8000/v1"
        )
    base = value.strip().rstrip("/")
    if base.endswith("/chat/completions"):
        return base
    return f"{base}{'' if urlsplit(base).path.strip('/') else '/v1'}/chat/completions"


def _said(answer: Any) -> Said:
    text = answer["choices"][0]["message"]["content"]
    tokens = [_count(answer, name) for name in ("prompt_tokens", "completion_tokens")]
    return Said(text if isinstance(text, str) else "", *tokens)


def _count(said: Mapping[str, object], name: str) -> int:
    """A number of tokens that a server says it took; 0 where it does not."""
    usage = said.get("usage")
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0
