"""A vision-language model as judge, over any OpenAI-compatible endpoint."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import Compares, RewardError
from rewards.messages import data_url
from rewards.pictures.base import find_path, groups_of, need_package, picture_of, scores_of
from rewards.pictures.judge_answers import ABSOLUTE, ALL_LIES, RANK, WARNING, parse_ranking, parse_score
from rewards.pictures.judge_client import Endpoint
from rewards.pictures.judge_endpoint import endpoint_of
from rewards.pictures.judge_ledger import Cache, Tally
from rewards.pictures.judge_questions import (
    SUFFIXES,
    Bodies,
    Question,
    content_of,
    picture_files,
    reference_urls,
)
from rewards.transport import run_all

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class Judge(Compares):
    """A judge's score from 0 (worst) to 1 (best); not applicable where its answer cannot be read.

    `url_env` names the environment variable that holds the URL, `key_env` the one with the key. `rubric` is a text
    file; `images` a folder of reference pictures shown with every question. `absolute` asks for a number on `scale`
    for each picture; `rank` asks once for the order of the pictures of a prompt: best 1, worst 0. Without `model`, the
    only one that is served. Pictures larger than `max_side` are shrunk. A call that fails is tried `retries` times
    more, after pauses of `pause_s`, twice that, and so on up to a minute. `budget_calls` bounds the requests of this
    process, retries included. With `cache`, a folder, no question is asked twice, and answers survive a stop; with
    `replay` nobody is asked, and what it lacks is an error. `price`: money for a million tokens read, and written.
    """

    url_env: str
    rubric: str
    model: str = ""
    key_env: str = ""
    images: str = ""
    mode: Literal["absolute", "rank"] = "absolute"
    scale: tuple[float, float] = (0.0, 10.0)
    timeout_s: float = 60.0
    retries: int = 8
    pause_s: float = 1.0
    concurrency: int = 8
    budget_calls: int | None = None
    cache: str = ""
    replay: bool = False
    price: tuple[float, float] = (0.0, 0.0)
    max_side: int = 1024
    temperature: float = 0.0
    max_tokens: int = 512

    def __post_init__(self) -> None:
        need_package("Judge", "httpx", "httpx")
        self.endpoint()
        self._check_files()
        self._check_numbers()

    @functools.cached_property
    def tally(self) -> Tally:
        """What was asked so far by this judge."""
        return Tally(self.budget_calls)

    def endpoint(self) -> Endpoint:
        """Where to ask, from the environment.

        Raises:
            ValueError: a variable is not set, or holds no URL.
        """
        return endpoint_of("Judge", self.url_env, self.key_env, self.timeout_s, self.retries, self.pause_s)

    def _check_files(self) -> None:
        rubric = find_path(self.rubric)
        if not rubric.is_file() or not rubric.read_text(encoding="utf-8").strip():
            raise ValueError(
                f"Judge.rubric {self.rubric!r} is not there or empty: give a text file that says what counts"
            )
        if self.images and not picture_files(self.images):
            raise ValueError(f"Judge.images {self.images!r} is no folder with {', '.join(SUFFIXES)} files: give one")
        if self.cache and Path(self.cache).exists() and not Path(self.cache).is_dir():
            raise ValueError(f"Judge.cache {self.cache!r} is a file: give a folder")
        if self.replay and not (self.cache and self.model):
            raise ValueError(
                "Judge.replay reads the cache alone: give cache, a folder, and model, whose answers it has"
            )

    def _check_numbers(self) -> None:
        if self.mode not in ("absolute", "rank"):
            raise ValueError(f"Judge.mode is {self.mode!r}: give absolute or rank")
        low, high = self.scale
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"Judge.scale is {self.scale}: give the lowest and the highest score, such as [0, 10]")
        least: dict[str, tuple[float | None, float]] = {
            "retries": (self.retries, 0), "pause_s": (self.pause_s, 0), "temperature": (self.temperature, 0),
            "concurrency": (self.concurrency, 1), "budget_calls": (self.budget_calls, 1),
            "max_side": (self.max_side, 1), "max_tokens": (self.max_tokens, 1), "timeout_s": (self.timeout_s, 1e-3),
        }  # fmt: skip
        for name, (value, smallest) in least.items():
            if value is not None and not value >= smallest:
                raise ValueError(f"Judge.{name} is {value}: give {smallest:g} or more")

    def __call__(self, samples: Samples) -> Scores:
        return self.scored(samples, 0)

    def in_order(self, number: int | None) -> RewardFunction:
        return _InOrder(self, remember=number is None)

    def calls(self, prompts: int, each: int) -> int:
        """How many questions `each` pictures of so many prompts make, if none is asked again."""
        return prompts * each if self.mode == "absolute" else prompts * (each > 1)

    def repeatability(self, samples: Samples, times: int = 3) -> float:
        """How much the judge differs from itself: the standard deviation of the scores of a picture over `times`
        equal questions, averaged over pictures; 0 is a judge who always says the same. When ranking, the pictures are
        shown in another order each time. Never read from the cache.

        Raises:
            ValueError: `times` is below 2.
            RewardError: no picture got two readable answers.
        """
        if times < 2:
            raise ValueError(f"repeatability needs 2 or more times, not {times}")
        found = [self.scored(samples, order, remember=False) for order in range(times)]
        values, there = torch.stack([s.values for s in found]), torch.stack([s.applicable for s in found])
        spreads = [values[there[:, i], i].std() for i in range(len(samples)) if int(there[:, i].sum()) > 1]
        if not spreads:
            raise RewardError(f"the judge gave no picture two readable answers in {times} rounds: look at its rubric")
        return float(torch.stack(spreads).mean())

    def scored(self, samples: Samples, order: int | None, remember: bool = True) -> Scores:
        """Scores with the part `unparsable`: 1 where there was an answer that could not be read. When ranking, pictures
        are shown in an order that `order` and what they look like decide; None: as they come."""
        shown = [None if (p := picture_of(o)) is None else data_url(p, self.max_side) for o in samples.outputs]
        together, folder = self._together(samples, shown, order), Path(self.cache) if self.cache and remember else None
        found = self._asked([self._question(samples, shown, ids) for ids in together], Cache(folder))
        values, unparsable = (list[float | None]([None] * len(samples)) for _ in range(2))
        for ids, scores in zip(together, found, strict=True):
            for i in ids:
                same = [] if scores is None else [s for s, j in zip(scores, ids, strict=True) if shown[j] == shown[i]]
                values[i] = sum(same) / len(same) if same else None  # equal pictures share their places
                unparsable[i] = float(scores is None)
        total = scores_of(values)
        return Scores(total.values, total.applicable, {"unparsable": scores_of(unparsable)})

    def _together(self, samples: Samples, shown: Sequence[str | None], order: int | None) -> list[list[int]]:
        """Which samples are asked about in one question, in the order they are shown."""
        if self.mode == "absolute":
            return [[i] for i, picture in enumerate(shown) if picture is not None]
        groups = [[i for i in ids if shown[i] is not None] for ids in groups_of(samples, "Judge").values()]
        if order is None:
            return [ids for ids in groups if len(ids) > 1]
        digests = [hashlib.sha256(f"{order}{picture}".encode()).digest() for picture in shown]
        return [sorted(ids, key=lambda i: digests[i]) for ids in groups if len(ids) > 1]

    def _question(self, samples: Samples, shown: Sequence[str | None], ids: Sequence[int]) -> Question:
        if self.mode == "absolute":
            task, labels = ABSOLUTE.format(low=self.scale[0], high=self.scale[1]), ["The picture to judge:"]
        else:
            task, labels = RANK.format(count=len(ids)), [f"Picture {number}:" for number in range(1, len(ids) + 1)]
        rubric = find_path(self.rubric).read_text(encoding="utf-8").strip()
        prompt = str(samples.columns["prompt"][ids[0]]) if "prompt" in samples.columns else None
        references = reference_urls(self.images, self.max_side) if self.images else ()
        content = content_of(prompt, [str(shown[i]) for i in ids], labels, references)
        return Question(len(ids), f"{rubric}\n\n{WARNING}\n\n{task}", content)

    def _read(self, answer: str, count: int) -> list[float] | None:
        """Scores from 0 to 1 of the `count` pictures of one question."""
        if self.mode == "absolute":
            score = parse_score(answer, *self.scale)
            return None if score is None else [score]
        ranking = parse_ranking(answer, count)
        return None if ranking is None else [1 - ranking.index(i) / (count - 1) for i in range(count)]

    def _asked(self, questions: Sequence[Question], cache: Cache) -> list[list[float] | None]:
        """What the answer to each question says; of equal questions one is asked."""
        if not questions:
            return []
        endpoint = self.endpoint()
        with endpoint.client(self.concurrency) as client:
            model = self.model or self._served(endpoint, client)
            bodies = [question.body(model, self.temperature, self.max_tokens) for question in questions]
            keys = [hashlib.sha256(json.dumps([endpoint.url, body]).encode()).hexdigest() for body in bodies]
            counts = {key: question.count for key, question in zip(keys, questions, strict=True)}
            known = {key: answer for key in counts if (answer := cache.read(key)) is not None}
            known = {key: answer for key, answer in known.items() if self._read(answer, counts[key]) is not None}
            new = {key: body for key, body in zip(keys, bodies, strict=True) if key not in known}
            if new and self.replay:
                raise RewardError(
                    f"{len(new)} questions are not in the cache {self.cache!r}: turn replay off to ask them"
                )
            if new:
                self.tally.check(len(new))
                if self.model and not self.tally.calls:
                    endpoint.models(client)  # that nobody is there is said at once, not after all retries
                known |= self._ask(endpoint, client, new, counts, cache)
        return [self._read(known[key], counts[key]) for key in keys]

    def _served(self, endpoint: Endpoint, client: httpx.Client) -> str:
        if not self.tally.model:
            served = endpoint.models(client)
            if len(served) != 1:
                raise RewardError(f"the judge at {endpoint.shown} serves {served}: name one in the field model")
            self.tally.model = served[0]
        return self.tally.model

    def _ask(
        self, endpoint: Endpoint, client: httpx.Client, bodies: Bodies, counts: Mapping[str, int], cache: Cache
    ) -> dict[str, str]:
        def job(key: str, stop: threading.Event) -> str:
            answer = endpoint.ask(client, bodies[key], self.tally, stop)
            if self._read(answer, counts[key]) is not None:
                cache.write(key, answer)  # at once: it is paid for
            return answer

        answers = run_all({key: functools.partial(job, key) for key in bodies}, self.concurrency)
        lies = [answer for key, answer in answers.items() if self._read(answer, counts[key]) is None]
        self.tally.unparsable += len(lies)
        if len(lies) == len(answers) >= ALL_LIES:
            raise RewardError(
                f"none of {len(lies)} answers of the judge at {endpoint.shown} can be read, such as {lies[0][:200]!r}: "
                "look at its rubric and model, or raise max_tokens"
            )
        return answers


@dataclass(frozen=True)
class _InOrder(RewardFunction):
    judge: Judge
    remember: bool

    def __call__(self, samples: Samples) -> Scores:
        return self.judge.scored(samples, None, self.remember)
