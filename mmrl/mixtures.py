"""Which mixture of tasks to train on, told from a few short runs (MoDoMoDo, arXiv 2505.24871).

A run with weights w of m tasks reaches a score S(w); the surrogate is quadratic in w. On the simplex, where the weights
sum to 1, the constant and the squares are combinations of the rest (w_i^2 = w_i - sum_j w_i w_j), so that the full
basis of 1 + m + m(m+1)/2 terms has rank m(m+1)/2 only: S(w) = sum_i a_i w_i + sum_{i<j} c_ij w_i w_j says the same with
as many numbers as can be known. How far to believe it says the error on each run when it is left out of the fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Numbers = NDArray[np.float64]


def basis(weights: Numbers) -> Numbers:
    """(N, m + m(m-1)/2): the weights (N, m) and the products of every two."""
    pairs = [weights[:, i] * weights[:, j] for i, j in combinations(range(weights.shape[1]), 2)]
    return np.concatenate([weights, np.stack(pairs, axis=1)], axis=1) if pairs else weights


def design(tasks: int) -> Numbers:
    """Pilots (N, tasks) that tell all terms apart: each task alone, each two by halves, all alike, and all with one at
    (m + 1) / 2m, which is in the middle between it alone and all alike."""
    alone, alike = np.eye(tasks), np.full((1, tasks), 1 / tasks)
    halves = [(alone[[i]] + alone[[j]]) / 2 for i, j in combinations(range(tasks), 2)]
    found = np.unique(np.concatenate([alone, *halves, (alone + alike) / 2, alike]), axis=0)
    return np.asarray(found, dtype=np.float64)


@dataclass(frozen=True)
class Mixture:
    """A surrogate, and how far off it was on each pilot run that it had not seen (N,)."""

    tasks: int
    coefficients: Numbers  # (m + m(m-1)/2,)
    left_out: Numbers  # (N,)

    def predicted(self, weights: Sequence[float] | Numbers) -> float:
        """S of one mixture (m,)."""
        return float(basis(np.asarray(weights, dtype=np.float64)[None])[0] @ self.coefficients)

    def best(self) -> Numbers:
        """The mixture (m,) of the highest predicted score: projected gradients of SLSQP from each vertex, each middle
        of two and the middle of all."""
        vertices = np.eye(self.tasks)
        starts = [*vertices, *((vertices[i] + vertices[j]) / 2 for i, j in combinations(range(self.tasks), 2))]
        starts.append(np.full(self.tasks, 1 / self.tasks))
        ends = []
        for start in starts:
            found = minimize(
                lambda w: -self.predicted(w), start, method="SLSQP", bounds=[(0.0, 1.0)] * self.tasks,
                constraints={"type": "eq", "fun": lambda w: float(np.sum(w)) - 1.0}, options={"ftol": 1e-12},
            )  # fmt: skip
            kept = np.clip(found.x, 0.0, None)
            ends += [start, kept / kept.sum()]
        return np.asarray(max(ends, key=self.predicted))


def fit_mixture(weights: Sequence[Sequence[float]] | Numbers, scores: Sequence[float], ridge: float = 1e-3) -> Mixture:
    """The surrogate of N pilot runs with weights (N, m) and scores (N,). `ridge` holds the products alone, around 0: to
    leave them out is to say that tasks neither help nor hurt one another.

    Raises:
        ValueError: weights that are no mixture, or too few different pilots to tell the terms apart.
    """
    known, wanted = np.asarray(weights, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if known.ndim != 2 or len(known) != len(wanted):
        raise ValueError(f"{len(wanted)} scores for weights of shape {known.shape}: give a row of weights a score")
    if bool((known < 0).any()) or not np.allclose(known.sum(1), 1.0):
        raise ValueError("the weights of a mixture are 0 or more and sum to 1: divide each row by its sum")
    design = basis(known)
    terms, rank = design.shape[1], int(np.linalg.matrix_rank(design))
    if rank < terms or len(known) <= terms:
        raise ValueError(
            f"{len(known)} pilots tell {rank} of {terms} terms apart: run {terms + 1} or more different mixtures, "
            "single tasks and pairs of them among these"
        )
    left_out = []
    for i in range(len(known)):
        rest = np.arange(len(known)) != i
        left_out.append(float(design[i] @ _solved(design[rest], wanted[rest], known.shape[1], ridge) - wanted[i]))
    return Mixture(known.shape[1], _solved(design, wanted, known.shape[1], ridge), np.array(left_out))


def _solved(design: Numbers, wanted: Numbers, tasks: int, ridge: float) -> Numbers:
    penalty = np.diag([0.0] * tasks + [ridge] * (design.shape[1] - tasks))
    return np.asarray(np.linalg.lstsq(design.T @ design + penalty, design.T @ wanted, rcond=None)[0])
