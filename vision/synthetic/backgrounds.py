"""Backgrounds by their words, without a model: about a millisecond each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vision.backdrops import SEEN, NotUnderstood, Picture, background
from vision.photographs import PHOTOGRAPHS
from vision.synthetic.records import Generator, Request, Unmade


@dataclass(frozen=True)
class Backgrounds(Generator):
    """Patterns and photographs chosen by the words of a description. `photographs` are names of `PHOTOGRAPHS`; those of
    `vision.backdrops.HELD_OUT` are kept for evaluation.

    Raises:
        ValueError: there is no such photograph.
    """

    photographs: tuple[str, ...] = SEEN

    def __post_init__(self) -> None:
        unknown = [name for name in self.photographs if name not in PHOTOGRAPHS]
        if unknown:
            raise ValueError(f"Backgrounds.photographs names {unknown[0]!r}: there are {', '.join(PHOTOGRAPHS)}")

    def fill(self, requests: Sequence[Request]) -> list[Picture | Unmade]:
        return [self._fill(request) for request in requests]

    def _fill(self, request: Request) -> Picture | Unmade:
        try:
            chance = np.random.default_rng(request.seed)
            y, x = request.mask.shape
            return background(request.description, max(y, x), chance, self.photographs)[:y, :x]
        except NotUnderstood as reason:
            return Unmade(str(reason))
