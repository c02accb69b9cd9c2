"""Hard focus: the lowest pass rates stay, stably; what many answers are for."""

from __future__ import annotations

import pytest

from mmrl.curriculum import HardFocus, seen_solved

RATES = {"a": 0.5, "b": 0.0, "c": 1.0, "d": 0.25, "e": 0.25, "f": 0.9}


def test_many_answers_see_what_few_do_not() -> None:
    assert (seen_solved(0.02, 8), seen_solved(0.02, 64)) == pytest.approx((0.149, 0.726), abs=1e-3)
    assert seen_solved(0.0, 64) == 0.0 and seen_solved(1.0, 1) == 1.0


@pytest.mark.parametrize(
    ("focus", "phase", "wanted"),
    [
        (HardFocus(0.5), 0, ["b", "d", "e"]),
        (HardFocus(1 / 3), 0, ["b", "d"]),  # d before e: ties stay in order
        (HardFocus(1.0), 0, ["a", "b", "d", "e", "f"]),
        (HardFocus(1.0, drop_solved=False), 0, list("abcdef")),
        (HardFocus(0.5, drop_unsolved_after=1), 0, ["b", "d", "e"]),
        (HardFocus(0.5, drop_unsolved_after=1), 1, ["a", "d", "e"]),
    ],
)
def test_the_hardest_stay_in_their_order(focus: HardFocus, phase: int, wanted: list[str]) -> None:
    assert focus.kept(RATES, phase) == wanted


def test_phases_halve_what_is_left() -> None:
    rates, sizes = {f"p{i}": i / 100 for i in range(64)}, []
    for phase in range(3):
        rates = {name: rates[name] for name in HardFocus(0.5).kept(rates, phase)}
        sizes.append(len(rates))
    assert sizes == [32, 16, 8] and list(rates) == [f"p{i}" for i in range(8)]


def test_nothing_left_is_said() -> None:
    with pytest.raises(ValueError, match="none of 2 prompts is left after phase 0"):
        HardFocus().kept({"a": 1.0, "b": 1.0}, 0)
    with pytest.raises(ValueError, match="share is 0"):
        HardFocus(0.0)
    with pytest.raises(ValueError, match="drop_unsolved_after is 0"):
        HardFocus(drop_unsolved_after=0)
