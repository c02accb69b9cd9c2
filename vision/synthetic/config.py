"""How pictures are made while training goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vision.collector import RolloutConfig
from vision.synthetic.records import Generator
from vision.synthetic.server import ServerConfig
from vision.synthetic.validity import Check, Legible, NoSecondInstance


@dataclass(frozen=True)
class SyntheticConfig:
    """Pictures that are made while training goes on. At most a `share` of the prompts of a step are made ones; 0
    measures diversity and makes none. `descriptions` come from the `policy`, or are drawn from the words of the
    `vocabulary` ("random", a control). `per_prompt` descriptions of each real prompt's group are posted. `accuracy`
    is the reward whose spread is diversity; `weight` and `smoothing` are of R_div and its baseline. A picture whose
    description is older than `max_staleness` steps is discarded. `wait_s` 0: the trainer never waits; above 0 it
    waits so long for all that it has posted, which makes runs repeatable. A picture has to pass `legible`,
    `second_instance` and all further `checks`."""

    generator: Generator
    share: float = 0.5
    descriptions: Literal["policy", "random"] = "policy"
    vocabulary: tuple[str, ...] = ()
    per_prompt: int = 2
    accuracy: str = "accuracy"
    weight: float = 1.0
    smoothing: float = 0.9
    max_staleness: int = 16
    wait_s: float = 0.0
    legible: Legible | None = Legible()
    second_instance: NoSecondInstance | None = NoSecondInstance()
    checks: tuple[Check, ...] = ()
    server: ServerConfig = ServerConfig()

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not 0 <= self.smoothing < 1:
            raise ValueError(
                f"synthetic.share is {self.share} and smoothing is {self.smoothing}: give a share of 0 to 1, and a "
                "smoothing of at least 0 and less than 1"
            )
        if self.per_prompt < 1 or self.max_staleness < 1 or self.wait_s < 0:
            raise ValueError(
                f"synthetic has per_prompt {self.per_prompt}, max_staleness {self.max_staleness} and wait_s "
                f"{self.wait_s}: give 1 or more, 1 or more, and 0 or more"
            )
        if self.descriptions == "random" and not self.vocabulary:
            raise ValueError("synthetic.descriptions is random and vocabulary is empty: list the descriptions to draw")

    @property
    def all_checks(self) -> tuple[Check, ...]:
        """In the order in which they are made."""
        return (*(check for check in (self.legible, self.second_instance) if check is not None), *self.checks)

    def check(self, rollout: RolloutConfig, world: int) -> None:
        """Raises:
        ValueError: its server cannot take what a step of `rollout` posts, or there are several processes.
        """
        posts = rollout.prompts * min(self.per_prompt, rollout.group)
        if posts > self.server.queue:
            raise ValueError(
                f"synthetic.server.queue is {self.server.queue}, and a step posts up to {posts} descriptions "
                "(rollout.prompts times synthetic.per_prompt), of which the oldest would always be dropped: raise the "
                "one or lower the other"
            )
        if world > 1:
            raise ValueError(
                f"synthetic is set on {world} processes, and a checkpoint has the open descriptions of one of them: "
                "run it on one, or set synthetic to null"
            )
