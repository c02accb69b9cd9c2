"""Learning-rate schedules."""

from __future__ import annotations

import pytest

from mmrl.schedules import Constant, Cosine, Linear, Schedule


def test_constant_after_a_linear_rise() -> None:
    schedule = Constant(warmup_steps=4)
    assert [schedule(step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert Constant()(0, 1) == 1.0


def test_linear() -> None:
    schedule = Linear(warmup_steps=2, final=0.1)
    assert [schedule(step, 12) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert schedule(7, 12) == pytest.approx(0.55)
    assert schedule(11, 12) == pytest.approx(0.19)


def test_cosine() -> None:
    schedule = Cosine(final=0.2)
    assert schedule(0, 10) == 1.0
    assert schedule(5, 10) == pytest.approx(0.6)
    assert schedule(9, 10) == pytest.approx(0.2 + 0.4 * (1 + -0.9510565162951535))


@pytest.mark.parametrize("schedule", [Constant(3), Linear(3), Cosine(3), Cosine(3, 0.5)], ids=str)
def test_factors_stay_between_0_and_1_and_never_stop_training(schedule: Schedule) -> None:
    factors = [schedule(step, 20) for step in range(20)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[3:] == sorted(factors[3:], reverse=True)


@pytest.mark.parametrize("schedule", [Constant(9), Linear(9), Cosine(9)], ids=str)
def test_warm_up_longer_than_the_run(schedule: Schedule) -> None:
    assert [schedule(step, 3) for step in range(3)] == pytest.approx([1 / 9, 2 / 9, 3 / 9])
