"""The surrogate of mixtures: recovers a known quadratic and its maximiser, inside and at a vertex, and says what it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from mmrl.mixtures import basis, fit_mixture


def pilots(count: int, tasks: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(tasks), count)


def full(weights: np.ndarray) -> np.ndarray:
    squares = [weights[:, i] * weights[:, j] for i in range(weights.shape[1]) for j in range(i, weights.shape[1])]
    return np.concatenate([np.ones((len(weights), 1)), weights, np.stack(squares, 1)], 1)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_the_full_quadratic_says_no_more_than_the_reduced_one(tasks: int) -> None:
    weights = pilots(60, tasks)
    assert full(weights).shape[1] == 1 + tasks + tasks * (tasks + 1) // 2
    assert np.linalg.matrix_rank(full(weights)) == basis(weights).shape[1] == tasks * (tasks + 1) // 2
    assert np.linalg.matrix_rank(np.concatenate([full(weights), basis(weights)], 1)) == basis(weights).shape[1]


def test_an_interior_maximiser_is_found() -> None:
    wanted = np.array([0.5, 0.3, 0.2])
    weights = pilots(14, 3)
    scores = 0.8 - ((weights - wanted) ** 2).sum(1)  # with squares and a constant, which the basis has not
    found = fit_mixture(weights, scores, ridge=1e-9)
    assert found.best() == pytest.approx(wanted, abs=0.02)
    assert found.predicted(wanted) == pytest.approx(0.8, abs=1e-4)
    assert np.abs(found.left_out).max() < 1e-3


def test_a_maximiser_at_a_vertex_and_between_two_tasks() -> None:
    weights = pilots(14, 3)
    assert fit_mixture(weights, weights @ [0.2, 0.9, 0.5]).best() == pytest.approx([0, 1, 0], abs=1e-6)
    helped = fit_mixture(weights, weights @ [0.5, 0.5, 0.1] + 2 * weights[:, 0] * weights[:, 1], ridge=1e-9).best()
    assert helped == pytest.approx([0.5, 0.5, 0.0], abs=0.01)


def test_noise_is_seen_in_what_was_left_out() -> None:
    weights, chance = pilots(20, 3), np.random.default_rng(1)
    noise = chance.normal(0, 0.05, 20)
    errors = fit_mixture(weights, weights @ [0.2, 0.9, 0.5] + noise).left_out
    assert 0.03 < float(np.sqrt((errors**2).mean())) < 0.15


def test_too_few_pilots_are_refused() -> None:
    with pytest.raises(ValueError, match="6 pilots tell 6 of 6 terms apart: run 7 or more"):
        fit_mixture(pilots(6, 3), np.zeros(6))
    with pytest.raises(ValueError, match="10 pilots tell 3 of 6 terms apart"):
        fit_mixture(np.repeat(np.eye(3), [4, 3, 3], axis=0), np.zeros(10))
    with pytest.raises(ValueError, match="sum to 1: divide each row by its sum"):
        fit_mixture([[1.0, 1.0]] * 5, [0.0] * 5)
    with pytest.raises(ValueError, match="4 scores for weights of shape"):
        fit_mixture(pilots(5, 2), [0.0] * 4)
