"""Rewards of answers that say where things are: one box, or every object with its class and box.

Boxes are (left, top, right, bottom) in pixels, as they stand in the answer: four numbers, with anything between them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mmrl.types import RewardFunction, Samples, Scores
from rewards.text import AnswerMatch

Box = tuple[float, float, float, float]
_NUMBER = r"-?\d+(?:\.\d+)?"
_BOX = re.compile(rf"({_NUMBER})\D+?({_NUMBER})\D+?({_NUMBER})\D+?({_NUMBER})")


def boxes_of(text: str) -> list[tuple[str, Box]]:
    """Every "class left top right bottom" of a text, divided by semicolons or lines; the class is "" where there is
    none. A box whose right is not beyond its left, or its bottom not below its top, is none."""
    found = []
    for part in re.split(r"[;\n]", text):
        box = _BOX.search(part)
        if box is None:
            continue
        left, top, right, bottom = (float(number) for number in box.groups())
        if right > left and bottom > top:
            label = re.sub(r"[^\w ]", " ", part[: box.start()])
            found.append((" ".join(label.split()).casefold(), (left, top, right, bottom)))
    return found


def overlaps(ours: Sequence[Box], theirs: Sequence[Box]) -> NDArray[np.float64]:
    """Intersection over union (n, m) of two lists of boxes."""
    a, b = np.asarray(ours, float).reshape(-1, 1, 4), np.asarray(theirs, float).reshape(1, -1, 4)
    size = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0, None)
    shared = size.prod(-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b))
    return np.asarray(shared / np.maximum(area_a + area_b - shared, 1e-9))


def _column(samples: Samples, name: str, reward: str) -> Sequence[Sequence[Box]]:
    if name not in samples.columns:
        raise ValueError(f"{reward} compares with the column {name!r}, and the data has {sorted(samples.columns)}")
    return samples.columns[name]  # type: ignore[return-value]


@dataclass(frozen=True)
class BoxIoU(RewardFunction):
    """Intersection over union of the first box of the answer with the gold one, the first of the column `boxes`; 0
    without a box. With `at_least` 1 or 0 instead: whether it reaches that (0.5 is usual for referring expressions, as
    in VLM-R1, arXiv 2504.07615)."""

    at_least: float | None = None

    def __call__(self, samples: Samples) -> Scores:
        values = []
        for text, gold in zip(samples.outputs, _column(samples, "boxes", "BoxIoU"), strict=True):
            found = boxes_of(AnswerMatch().extract(str(text)))
            value = float(overlaps([found[0][1]], [gold[0]])[0, 0]) if found else 0.0
            values.append(value if self.at_least is None else float(value >= self.at_least))
        return Scores(torch.tensor(values, dtype=torch.float32), torch.ones(len(values), dtype=torch.bool))


@dataclass(frozen=True)
class DetectionF1(RewardFunction):
    """F1 of the objects of the answer against the columns `labels` and `boxes`: a found object is right if it has the
    class of a gold one and overlaps it by `at_least`, each gold one once, matched so that most are right. Nothing found
    where there is nothing is 1. The paper's mAP needs confidences, which an answer in words does not give."""

    at_least: float = 0.5

    def __call__(self, samples: Samples) -> Scores:
        boxes, labels = (_column(samples, name, "DetectionF1") for name in ("boxes", "labels"))
        values = [
            self.f1(AnswerMatch().extract(str(t)), n, b) for t, n, b in zip(samples.outputs, labels, boxes, strict=True)
        ]
        return Scores(torch.tensor(values, dtype=torch.float32), torch.ones(len(values), dtype=torch.bool))

    def f1(self, text: str, labels: Sequence[object], boxes: Sequence[Box]) -> float:
        """Of one answer."""
        found, names = boxes_of(text), [str(label).casefold() for label in labels]
        if not found or not names:
            return float(not found and not names)
        same = np.array([[label == name for name in names] for label, _ in found])
        right = same & (overlaps([box for _, box in found], boxes) >= self.at_least)
        rows, columns = linear_sum_assignment(~right)
        return float(2 * right[rows, columns].sum() / (len(found) + len(names)))
