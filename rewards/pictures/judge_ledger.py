"""What was asked of a judge: calls, how they ended, tokens, and the answers on disk."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rewards.compose import RewardError


class Tally:
    """How many calls were made, of how many that may be, how each ended, and their tokens; safe between threads.

    Every call ends in one way, so that `calls` is the sum of `outcomes`: answered, timeout, connection, status (5xx and
    those that pass), garbled (no answer of such a server), refused (4xx), or interrupted. `unparsable` are those of the
    answers that say nothing a judge may say."""

    def __init__(self, budget: int | None) -> None:
        self.budget, self.calls, self.unparsable, self.model = budget, 0, 0, ""
        self.outcomes: Counter[str] = Counter()
        self.prompt_tokens, self.completion_tokens = 0, 0
        self._lock, self._failed = threading.Lock(), 0

    def ended(self, outcome: str, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Note how a call ended and what its server says that it took."""
        with self._lock:
            self.outcomes[outcome] += 1
            self.prompt_tokens += prompt_tokens
            self.completion_tokens += completion_tokens

    def spent(self) -> dict[str, int]:
        """Calls and tokens so far."""
        names = ("calls", "prompt_tokens", "completion_tokens")
        return {name: vars(self)[name] for name in names}

    def money(self, price: tuple[float, float]) -> float:
        """What the tokens so far cost at a `price` for a million read and written."""
        return (self.prompt_tokens * price[0] + self.completion_tokens * price[1]) / 1e6

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
