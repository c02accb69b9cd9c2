"""Aggregates: two trajectories of length 1 (loss 3) and 3 (loss 1 each), and what they must not depend on."""

from __future__ import annotations

import pytest
import torch

from mmrl.aggregates import ConstantLength, SequenceMean, TokenMean
from mmrl.algorithm import Aggregate

MASK = torch.tensor([[True, False, False], [True, True, True]])
LOSS = torch.tensor([[3.0, float("nan"), float("nan")], [1.0, 1.0, 1.0]])
ALL = [TokenMean(), SequenceMean(), ConstantLength(4)]
names = ["TokenMean", "SequenceMean", "ConstantLength"]


@pytest.mark.parametrize(("aggregate", "wanted"), zip(ALL, [1.5, 2.0, 0.75], strict=True), ids=names)
def test_the_three_means(aggregate: Aggregate, wanted: float) -> None:
    scale = aggregate(MASK)
    assert float((torch.where(MASK, LOSS, 0.0) * scale).sum()) == pytest.approx(wanted)
    assert bool((scale[~MASK] == 0).all())


@pytest.mark.parametrize("aggregate", ALL, ids=names)
def test_padding_and_failed_rows_change_nothing(aggregate: Aggregate) -> None:
    wider = torch.zeros(4, 7, dtype=torch.bool)
    wider[[0, 2], :3] = MASK  # with a failed row between and after
    scale = aggregate(wider)
    assert torch.equal(scale[[0, 2], :3], aggregate(MASK))
    assert float(scale[[1, 3]].abs().sum() + scale[:, 3:].abs().sum()) == 0.0


@pytest.mark.parametrize("aggregate", ALL, ids=names)
def test_nothing_to_train_gives_zeros(aggregate: Aggregate) -> None:
    assert aggregate(torch.zeros(2, 3, dtype=torch.bool)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("aggregate", ALL[:2], ids=names[:2])
def test_means_add_up_to_1(aggregate: Aggregate) -> None:
    assert float(aggregate(MASK).sum()) == pytest.approx(1.0)


def test_constant_length_does_not_depend_on_the_lengths() -> None:
    assert ConstantLength(4)(MASK)[MASK].tolist() == [0.125] * 4
    with pytest.raises(ValueError, match="give the longest completion"):
        ConstantLength(0)
