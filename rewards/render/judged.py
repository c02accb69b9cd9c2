"""RRVF's own vision term: a judge looks at the source and the rendering, side by side in one picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from mmrl.types import RewardFunction, Samples, Scores
from rewards.pictures.judge import Judge
from rewards.render.alike import Picture
from rewards.render.terms import last_picture, records_of, source_of

GAP = 8
"""Grey pixels between the two pictures."""
PROMPT = "On the left is the source, on the right its rendering. How alike are they?"


@dataclass(frozen=True)
class JudgedVision(RewardFunction):
    """The score that `judge`, in mode absolute, gives the source (left) beside the last rendering (right); its rubric
    says what counts. 0, without asking, for a program that draws nothing or a single colour: a judge that compares
    two blank pictures would be content. Not applicable where the judge's answer cannot be read.

    Raises:
        ValueError: the judge ranks.
    """

    judge: Judge

    def __post_init__(self) -> None:
        if self.judge.mode != "absolute":
            raise ValueError(f"JudgedVision.judge has mode {self.judge.mode!r}: give absolute")

    def __call__(self, samples: Samples) -> Scores:
        values = torch.zeros(len(samples))
        applicable = torch.ones(len(samples), dtype=torch.bool)
        shown, asked = [], []
        for index, records in enumerate(records_of(samples, "JudgedVision")):
            picture = last_picture(records)
            if picture is not None and (picture != picture[0, 0]).any():
                shown.append(side_by_side(source_of(samples, index, "JudgedVision"), picture))
                asked.append(index)
        if asked:
            scores = self.judge(Samples(shown, {"prompt": [PROMPT] * len(shown)}))
            values[asked], applicable[asked] = scores.values, scores.applicable
        return Scores(values, applicable)


def side_by_side(left: Picture, right: Picture) -> Image.Image:
    """Two pictures in one, the right one at the left one's height."""
    height = left.shape[0]
    width = max(1, round(right.shape[1] * height / right.shape[0]))
    fitted = Image.fromarray(right).resize((width, height))
    both = Image.new("RGB", (left.shape[1] + GAP + width, height), (128, 128, 128))
    both.paste(Image.fromarray(np.ascontiguousarray(left)), (0, 0))
    both.paste(fitted, (left.shape[1] + GAP, 0))
    return both
