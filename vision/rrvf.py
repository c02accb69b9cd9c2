"""Reason, render, compare: a policy sees its own rendering beside what it was to draw (RRVF, arXiv 2507.20766)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from rewards.render import Alike, Rendered, Renderer
from rewards.render.alike import Picture
from rewards.render.differ import Differ, Differences
from rewards.render.programs import program_of
from vision.data.base import Example
from vision.tools import Reply, Tool

MOST_LETTERS = 120
"""Of a failure's message: it is read by the policy, and a traceback would fill its context."""


@dataclass(frozen=True)
class RenderAndCompare(Tool):
    """The rendering tool of RRVF ("Learning Only with Images", arXiv 2507.20766): the code of a turn is drawn, and the
    policy is shown the picture and what is different from its source, until the two are alike enough.

    The code is what stands in <answer>, in a ``` fence, or the whole turn, thoughts left out. Where the paper asks a
    teacher of 72B parameters for the differences, `differ` reads them off the pixels (`rewards.render.Teacher` asks a
    model). A program that draws nothing is answered with the name of its failure and one line. From `stop_at` on, by
    `alike`, the conversation is over; 1 or less, and only an equal picture gets 1. The source is the example's first
    picture; its answer is never read.

    The renderer starts at the first turn, is one for training and evaluation, and remembers what it has drawn.

    Raises:
        ValueError: `stop_at` is not positive.
    """

    renderer: Renderer
    differ: Differ = field(default_factory=Differences)
    stop_at: float = 0.95
    alike: Alike = field(default_factory=Alike)

    def __post_init__(self) -> None:
        if not self.stop_at > 0:
            raise ValueError(f"RenderAndCompare.stop_at is {self.stop_at}: give a positive number, above 1 for never")

    def replies(self, turns: Sequence[Sequence[str]], examples: Sequence[Example]) -> list[Reply]:
        drawn = self.renderer.render([program_of(said[-1]) for said in turns])
        sources = [np.asarray(example.pictures()[0].convert("RGB")) for example in examples]
        good = [(one.picture, source) for one, source in zip(drawn, sources, strict=True) if one.picture is not None]
        told = iter(self.differ.of_all([picture for picture, _ in good], [source for _, source in good]))
        return [self._reply(one, source, told) for one, source in zip(drawn, sources, strict=True)]

    def _reply(self, drawn: Rendered, source: Picture, told: Iterator[str]) -> Reply:
        if drawn.picture is None:
            message = f": {drawn.message[:MOST_LETTERS]}" if drawn.message else ""
            return Reply(f"{drawn.failure}{message}", record=drawn)
        over = self.alike(drawn.picture, source) >= self.stop_at
        return Reply(next(told), (Image.fromarray(drawn.picture),), over, drawn)

    def close(self) -> None:
        self.renderer.close()

    def cpu_s(self) -> float:
        return self.renderer.cpu_s()
