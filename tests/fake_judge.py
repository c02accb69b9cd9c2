"""A small OpenAI-compatible server of our own in place of a judge, which can go away and come back."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tests.answering import Handler, answering

Reply = tuple[int, str]


def brightness(url: str) -> int:
    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))
    return int(picture.getpixel((0, 0))[0])  # type: ignore[index]


@dataclass
class Request:
    """What the judge was asked."""

    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def pictures(self) -> list[str]:
        content = self.body["messages"][1]["content"]
        return [part["image_url"]["url"] for part in content if part["type"] == "image_url"]

    @property
    def said(self) -> str:
        return " ".join(part["text"] for part in self.body["messages"][1]["content"] if part["type"] == "text")


def by_brightness(request: Request) -> str:
    """A judge who likes brightness: from 0 for black to 10 for white."""
    values = [brightness(url) for url in request.pictures]
    if "ranking" in request.body["messages"][0]["content"]:
        order = sorted(range(len(values)), key=lambda i: -values[i])
        return json.dumps({"ranking": [i + 1 for i in order]})
    return json.dumps({"score": values[-1] / 25.5})


@dataclass
class FakeJudge:
    """Counts what it is asked; `script` overrides what it does, one entry a call. `away`: connections are cut."""

    answer: Callable[[Request], str] = by_brightness
    script: list[Callable[[], Reply | None]] = field(default_factory=list)
    models: tuple[str, ...] = ("tiny-vlm",)
    takes_s: float = 0.0
    asked: list[Request] = field(default_factory=list)
    contacts: int = 0
    at_once: int = 0
    most_at_once: int = 0
    away: bool = False
    turned_away: int = 0
    url: str = ""
    lock: Any = field(default_factory=threading.Lock)

    def handle(self, request: Request) -> Reply:
        with self.lock:
            self.asked.append(request)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            act = self.script.pop(0) if self.script else None
        time.sleep(self.takes_s)
        reply = act() if act is not None else None
        with self.lock:
            self.at_once -= 1
        if reply is not None:
            return reply
        return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": self.answer(request)}}]})


@contextmanager
def serving(fake: FakeJudge, port: int = 0) -> Iterator[FakeJudge]:
    """`fake` at `fake.url`; port 0 is one that is free."""

    class Judge(Handler):
        def gone(self) -> bool:
            if fake.away:
                fake.turned_away += 1
                self.cut()
            return fake.away

        def do_GET(self) -> None:
            if self.gone():
                return
            fake.contacts += 1
            self.send(200, json.dumps({"data": [{"id": name} for name in fake.models]}))

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.gone():
                return
            try:
                self.send(*fake.handle(Request(body, dict(self.headers.items()))))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    with answering(Judge, port) as fake.url:
        yield fake
