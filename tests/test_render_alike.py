"""The deterministic judges of rendered pictures."""

from __future__ import annotations

import numpy as np
import pytest

from rewards.render import alike
from rewards.render.alike import Alike, Baseline, measured, of_one_colour


def chart(seed: int) -> np.ndarray:
    """Coloured bars on white, (48, 64, 3)."""
    chance = np.random.default_rng(seed)
    picture = np.full((48, 64, 3), 255, np.uint8)
    for left in range(4, 60, 14):
        picture[int(chance.integers(6, 40)) : 44, left : left + 9] = chance.integers(0, 200, 3)
    return picture


CHARTS = [chart(seed) for seed in range(24)]


@pytest.mark.parametrize("name", alike.MEASURES)
def test_a_picture_is_alike_to_itself_and_less_to_another(name: str) -> None:
    measure = alike.MEASURES[name]
    assert measure(CHARTS[0], CHARTS[0]) == pytest.approx(1.0)
    assert measure(CHARTS[1], CHARTS[0]) < 0.99


def test_closed_forms() -> None:
    black, grey = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 51, np.uint8)
    assert alike.pixels_alike(black, grey) == pytest.approx(0.8)
    assert alike.colours_alike(black, grey) == 0.0
    assert alike.edges_alike(black, grey) == 1.0  # neither has any
    half = black.copy()
    half[:, 4:] = 255
    assert alike.edges_alike(black, half) == 0.0
    assert alike.colours_alike(black, half) == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(4))
def test_no_colour_gets_more_than_the_bound_of_one_colour(seed: int) -> None:
    reference = CHARTS[seed]
    bound = of_one_colour(reference)
    chance = np.random.default_rng(seed)
    colours = [
        (0, 0, 0),
        (255, 255, 255),
        tuple(reference.mean(axis=(0, 1)).astype(int)),
        *chance.integers(0, 256, (40, 3)),
    ]
    for colour in colours:
        plain = np.broadcast_to(np.array(colour, np.uint8), reference.shape)
        found = measured(plain, reference)
        assert all(found[name] <= bound[name] + 1e-9 for name in found), colour


def test_a_blank_picture_scores_no_better_than_random_pairs_and_the_same_one_scores_one() -> None:
    score = Alike(Baseline.of(CHARTS, seed=0))
    random = [score(CHARTS[i], CHARTS[j]) for i in range(8) for j in range(8) if i != j]
    plain = [np.full((30, 30, 3), level, np.uint8) for level in (0, 90, 200, 255)]
    plain.append(np.broadcast_to(np.median(CHARTS[0], axis=(0, 1)).astype(np.uint8), (48, 64, 3)))
    blank = [score(picture, reference) for picture in plain for reference in CHARTS[:8]]
    assert max(blank) <= np.mean(random)
    assert np.mean(random) < 0.2
    assert score(CHARTS[0], CHARTS[0]) == pytest.approx(1.0)
    raw = measured(plain[3], CHARTS[0])
    assert raw["pixels"] > 0.4  # which is what the correction is for


def test_nearer_is_better() -> None:
    score = Alike(Baseline.of(CHARTS, seed=0))
    near = CHARTS[0].copy()
    near[:, :20] = 255
    assert score(CHARTS[1], CHARTS[0]) < score(near, CHARTS[0]) < 1


def test_shapes_differ_and_a_reference_of_one_colour_scores_nothing() -> None:
    score = Alike()
    assert score(np.repeat(np.repeat(CHARTS[0], 2, 0), 2, 1), CHARTS[0]) > 0.9
    white = np.full((48, 64, 3), 255, np.uint8)
    assert score(white, white) == 0.0


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="give at least 2"):
        Baseline.of(CHARTS[:1], seed=0)
    with pytest.raises(ValueError, match="Alike.weights"):
        Alike(weights={"pixel": 1.0})
    with pytest.raises(ValueError, match="Alike.side"):
        Alike(side=3)
