"""Rewards of boxes, in closed form, and beside torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmrl.types import Samples
from rewards.boxes import BoxIoU, DetectionF1, boxes_of, overlaps


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3 5 12 14", [("", (3, 5, 12, 14))]),
        ("[3, 5, 12, 14]", [("", (3, 5, 12, 14))]),
        ("<box>(3.5,5),(12,14)</box>", [("box", (3.5, 5, 12, 14))]),
        ("Seven 1 2 3 4; top hat: 5 6 7 8", [("seven", (1, 2, 3, 4)), ("top hat", (5, 6, 7, 8))]),
        ("seven 1 2 3 4\neight 5 6 7 8\n", [("seven", (1, 2, 3, 4)), ("eight", (5, 6, 7, 8))]),
        ("3 5 12", []), ("", []), ("9 5 3 14", []), ("3 5 12 5", []), ("nothing", []),
    ],
)  # fmt: skip
def test_boxes_are_read(text: str, found: list) -> None:
    assert boxes_of(text) == found


def test_overlaps_are_torchvisions() -> None:
    from torchvision.ops import box_iou

    chance = np.random.default_rng(0)
    corners = chance.uniform(0, 20, (12, 2))
    boxes = np.concatenate([corners, corners + chance.uniform(1, 10, (12, 2))], 1)
    expected = box_iou(torch.tensor(boxes[:7]), torch.tensor(boxes[7:])).numpy()
    assert np.allclose(overlaps(boxes[:7].tolist(), boxes[7:].tolist()), expected)


def test_iou_of_an_answer() -> None:
    outputs = ["<answer>0 0 4 4</answer>", "0 0 2 4", "2 2 6 6", "somewhere", ""]
    samples = Samples(outputs, {"boxes": [((0, 0, 4, 4),)] * 5})
    assert torch.allclose(BoxIoU()(samples).values, torch.tensor([1, 0.5, 4 / 28, 0, 0]))
    assert BoxIoU(0.5)(samples).values.tolist() == [1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="the column 'boxes'"):
        BoxIoU()(Samples(["0 0 1 1"]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("one 0 0 4 4; two 8 8 12 12", 1.0),
        ("two 8 8 12 12; ONE 0 0 4 4", 1.0),
        ("one 0 0 4 4", 2 / 3),
        ("one 8 8 12 12; two 0 0 4 4", 0.0),  # classes swapped
        ("one 0 0 4 4; one 0 0 4 4; two 8 8 12 12", 4 / 5),  # twice the same
        ("one 0 0 4 4; two 8 8 12 12; three 0 0 1 1", 4 / 5),
        ("one 0 0 1 4; two 8 8 12 12", 1 / 2),  # too little overlap
        ("", 0.0),
    ],
)
def test_f1_of_a_detection(text: str, value: float) -> None:
    samples = Samples(
        [f"<answer>{text}</answer>"], {"labels": [("one", "two")], "boxes": [((0, 0, 4, 4), (8, 8, 12, 12))]}
    )
    assert float(DetectionF1()(samples).values[0]) == pytest.approx(value)


def test_nothing_where_nothing_is() -> None:
    assert DetectionF1().f1("nothing", (), ()) == 1.0
    assert DetectionF1().f1("one 0 0 1 1", (), ()) == 0.0


def test_the_gold_answers_of_placed_objects_are_right() -> None:
    from vision.conversation import Conversation, as_samples
    from vision.data import Placed

    for task, reward in (("box", BoxIoU()), ("detect", DetectionF1())):
        examples = Placed("emoji", task, ("grass",), count=8, objects_each=3, size=64, scale=(0.2, 0.3)).examples()
        samples = as_samples(examples, [Conversation((example.answer,)) for example in examples])
        assert reward(samples).values.tolist() == [1.0] * 8
