"""What is different between two pictures in the words of a larger model, behind an OpenAI-compatible endpoint.

This is RRVF's own way (arXiv 2507.20766; its README: a teacher of 72B parameters writes the differences in layout and
colour, and what is missing); the wording of the request below is ours.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rewards.messages import data_url
from rewards.pictures.base import need_package
from rewards.pictures.judge_client import Endpoint
from rewards.pictures.judge_endpoint import endpoint_of
from rewards.pictures.judge_ledger import Cache, Tally
from rewards.pictures.judge_questions import Question, content_of
from rewards.render.alike import Picture
from rewards.render.differ import Differ
from rewards.transport import run_all

REQUEST = (
    "The first picture is to be reproduced by a program, and the second is what the program drew. Say what has to "
    "change in the second one, the most important first: what is missing or too much, layout, sizes, colours, texts. "
    "At most three short sentences, and no code. If nothing has to change, write only: same."
)


@dataclass(frozen=True)
class Teacher(Differ):
    """Asks the model `model` at the endpoint that the environment variable `url_env` holds; `key_env`, if given, names
    the variable of its key. Answers are cut after `most_letters`, and kept in the folder `cache`, if there is one.

    Raises:
        ValueError: a variable is not set, or a number is out of range.
        RewardError: (when asked) nobody answers after all retries, or `budget_calls` is used up.
    """

    url_env: str
    model: str
    key_env: str = ""
    request: str = REQUEST
    most_letters: int = 300
    timeout_s: float = 120.0
    retries: int = 8
    pause_s: float = 1.0
    concurrency: int = 8
    budget_calls: int | None = None
    cache: str = ""
    max_side: int = 1024

    def __post_init__(self) -> None:
        need_package("Teacher", "httpx", "httpx")
        for name in ("most_letters", "concurrency", "max_side"):
            if vars(self)[name] < 1:
                raise ValueError(f"Teacher.{name} is {vars(self)[name]}: give 1 or more")
        self._endpoint()

    @functools.cached_property
    def tally(self) -> Tally:
        """What was asked so far."""
        return Tally(self.budget_calls)

    def _endpoint(self) -> Endpoint:
        return endpoint_of("Teacher", self.url_env, self.key_env, self.timeout_s, self.retries, self.pause_s)

    def __call__(self, picture: Picture, reference: Picture) -> str:
        return self.of_all([picture], [reference])[0]

    def of_all(self, pictures: Sequence[Picture], references: Sequence[Picture]) -> list[str]:
        bodies = [self._body(*pair) for pair in zip(pictures, references, strict=True)]
        endpoint, cache = self._endpoint(), Cache(Path(self.cache) if self.cache else None)
        keys = [hashlib.sha256(json.dumps([endpoint.url, body]).encode()).hexdigest() for body in bodies]
        known = {key: answer for key in keys if (answer := cache.read(key)) is not None}
        new = {key: body for key, body in zip(keys, bodies, strict=True) if key not in known}
        if new:
            with endpoint.client(self.concurrency) as client:

                def job(body: Mapping[str, object], key: str, stop: threading.Event) -> str:
                    answer = endpoint.ask(client, body, self.tally, stop)
                    cache.write(key, answer)  # at once: it is paid for
                    return answer

                self.tally.check(len(new))
                jobs = {key: functools.partial(job, body, key) for key, body in new.items()}
                known |= run_all(jobs, self.concurrency)
        return [" ".join(known[key].split())[: self.most_letters] for key in keys]

    def _body(self, picture: Picture, reference: Picture) -> dict[str, object]:
        shown = [data_url(Image.fromarray(one), self.max_side) for one in (reference, picture)]
        content = content_of(None, shown, ["The picture to reproduce:", "What was drawn:"], ())
        return Question(2, self.request, content).body(self.model, 0.0, self.most_letters)
