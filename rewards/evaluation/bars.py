"""Bars that a reward must clear, so that an evaluation can stand in continuous integration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mmrl.types import Estimate


@dataclass(frozen=True)
class Bar:
    """`figure` of the reward called `reward`, such as accuracy or bought/saturated, is at least `least` and at most
    `most`. `surely`: its whole 95 % interval is; else its value."""

    reward: str
    figure: str
    least: float | None = None
    most: float | None = None
    surely: bool = True

    def __post_init__(self) -> None:
        if self.least is None and self.most is None:
            raise ValueError(f"bars: {self.reward} {self.figure} has neither least nor most: give one of them")

    def holds(self, figures: Mapping[str, Mapping[str, Estimate]]) -> bool:
        """Whether it does; no figure, or one that is no number, clears no bar."""
        found = figures.get(self.reward, {}).get(self.figure)
        if found is None or math.isnan(found.value):
            return False
        low, high = (found.low, found.high) if self.surely else (found.value, found.value)
        return (self.least is None or low >= self.least) and (self.most is None or high <= self.most)

    def said(self, figures: Mapping[str, Mapping[str, Estimate]]) -> str:
        """One sentence."""
        found = figures.get(self.reward, {}).get(self.figure)
        wanted = [f"at least {self.least:g}"] if self.least is not None else []
        wanted += [f"at most {self.most:g}"] if self.most is not None else []
        held = "holds" if self.holds(figures) else "does not hold"
        was = "it was not measured"
        if found is not None:
            was = f"it is {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        return f"{self.reward} {self.figure} {' and '.join(wanted)}: {held}, {was}"
