"""Small web pages: blocks of colour under each other, and the HTML that lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from vision.data.base import Example, Source

COLOURS = ("red", "green", "blue", "orange", "gray")
UNIT = 4
"""Pixels: widths and heights are multiples."""
BEFORE = "<!DOCTYPE html><style>body{margin:0}</style>"


@dataclass(frozen=True)
class BlockPages(Source):
    """Which HTML makes this page? `count` pages of `blocks` coloured blocks, no page twice; `size` pixels a side.

    The pictures are drawn here, and are equal to what Chromium makes of `BEFORE` and the program.

    Raises:
        ValueError: a number is out of range.
    """

    count: int = 1500
    size: int = 32
    blocks: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        units = self.size // UNIT
        if self.count < 1 or self.size % UNIT or not 1 <= self.blocks <= units // 2:
            raise ValueError(
                f"BlockPages has count {self.count}, size {self.size} and blocks {self.blocks}: give at least 1 page "
                f"of a multiple of {UNIT} pixels with 1 block or more, at most one for each {2 * UNIT} pixels"
            )

    def before(self) -> str:
        """What stands before a program."""
        return BEFORE

    def examples(self) -> Sequence[Example]:
        return _examples(self)


@cache
def _examples(source: BlockPages) -> list[Example]:
    chance, units = np.random.default_rng(source.seed), source.size // UNIT
    pages: dict[str, Image.Image] = {}
    for _ in range(50 * source.count):
        if len(pages) == source.count:
            break
        heights = np.diff([0, *np.sort(chance.choice(units, source.blocks, replace=False) + 1)])
        widths = chance.integers(1, units + 1, source.blocks)
        colours = [COLOURS[int(i)] for i in chance.integers(len(COLOURS), size=source.blocks)]
        blocks = [(name, int(h) * UNIT, int(w) * UNIT) for name, h, w in zip(colours, heights, widths, strict=True)]
        text = "".join(f'<div style="background:{c};height:{h}px;width:{w}px"></div>' for c, h, w in blocks)
        pages.setdefault(text, _drawn(blocks, source.size))
    else:
        raise ValueError(f"BlockPages.count is {source.count}: there are only {len(pages)} different pages")
    return [
        Example(f"pages-{number:05d}", (picture,), "Write this page.", text, {"kind": "page"})
        for number, (text, picture) in enumerate(pages.items())
    ]


def _drawn(blocks: Sequence[tuple[str, int, int]], size: int) -> Image.Image:
    page = Image.new("RGB", (size, size), "white")
    top = 0
    for colour, height, width in blocks:
        ImageDraw.Draw(page).rectangle((0, top, width - 1, top + height - 1), fill=colour)
        top += height
    return page
