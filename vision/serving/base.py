"""What a generation server is asked and what it says; another kind of server is another class of `Server`."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from vision.policy import VisionPolicy


class ServerError(RuntimeError):
    """A server is not there, refuses, or says what cannot be."""


class Forgotten(ServerError):
    """A server is there, and does not have the weights that it was given: it was started anew, say."""


@dataclass(frozen=True)
class Question:
    """Pictures and a text, as a user's message, and the tokens that the policy's own processor makes of them."""

    id: str
    pictures: tuple[Image.Image, ...]
    text: str
    tokens: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Sampling:
    """`group` answers to each question, of at most `limit` tokens, at temperature 1 from the full distribution without
    the tokens `banned`; one of `stops` ends an answer and belongs to it."""

    group: int
    limit: int
    stops: tuple[int, ...]
    banned: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """Tokens with the log-probs that the server drew them with, and why it ended: stop, length, or what else."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    reason: str


@dataclass(frozen=True)
class Reply:
    """The answers to a question, and the tokens of the question as the server read it."""

    prompt: tuple[int, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class Server(abc.ABC):
    """Draws answers with weights that are pushed to it.

    In every step the policy scores `check_rows` of the answers again. Where its log-probs differ from the server's by
    more than `mean_difference` on average, or by more than `largest_difference` anywhere, the server is refused: it has
    other weights, another processor or another temperature.
    """

    check_rows: int = 8
    mean_difference: float = 0.1
    largest_difference: float = 5.0

    def __post_init__(self) -> None:
        if self.check_rows < 1:
            raise ValueError(f"rollout.server.check_rows is {self.check_rows}: give 1 or more answers to score again")
        for name in ("mean_difference", "largest_difference"):
            if not vars(self)[name] > 0:
                raise ValueError(f"rollout.server.{name} is {vars(self)[name]}: give more than 0")

    @abc.abstractmethod
    def check(self, policy: VisionPolicy) -> None:
        """Before a run: that it is there and can be given the weights of `policy`.

        Raises:
            ServerError: it is not, or cannot.
        """

    @abc.abstractmethod
    def push(self, policy: VisionPolicy, version: str, old: str | None) -> None:
        """Give it the weights of `policy` under the name `version` and have it say that it has them. Those called
        `old` are not asked for any more. A push that was made already may be made again.

        Raises:
            ServerError: it cannot be had to.
        """

    @abc.abstractmethod
    def generate(self, questions: Sequence[Question], sampling: Sampling, version: str) -> list[Reply]:
        """A reply to each question, drawn with the weights `version`.

        Raises:
            Forgotten: it does not have these weights, or lost them meanwhile.
            ServerError: it gives no answers.
        """
