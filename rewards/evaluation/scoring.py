"""Scores of pairs, with what they cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmrl.types import RewardFunction, Samples
from rewards.compose import checked
from rewards.evaluation.intervals import Numbers
from rewards.evaluation.pairs import Pair, as_samples


@dataclass(frozen=True)
class Scored:
    """What one reward gives to each output of N pairs."""

    pairs: Sequence[Pair]  # N
    scores: Numbers  # (N, 2), NaN where it does not apply
    wall_s: float
    cpu_s: float

    @property
    def gaps(self) -> Numbers:
        """Score of the second output less that of the first (N,), NaN where one is missing."""
        return np.asarray(self.scores[:, 1] - self.scores[:, 0])

    @property
    def margins(self) -> Numbers:
        """Score of the better output less that of the other (N,); NaN where one is missing or neither is better."""
        signs = [np.nan if pair.better is None else (1.0 if pair.better else -1.0) for pair in self.pairs]
        return np.asarray(self.gaps * np.array(signs))

    @property
    def scale(self) -> float:
        """The median distance of the two scores of a pair that differ: what a typical decision rests on. NaN if none
        does."""
        sizes = np.abs(self.gaps)
        known = sizes[np.isfinite(sizes) & (sizes > 0)]
        return float(np.median(known)) if len(known) else float("nan")

    def clusters(self, kept: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Of the pairs at these places."""
        return [self.pairs[int(i)].cluster or self.pairs[int(i)].id for i in kept]


def score(name: str, reward: RewardFunction, pairs: Sequence[Pair]) -> Scored:
    """Score both outputs of every pair in one call.

    Raises:
        RewardError: the reward breaks its contract.
    """
    samples = as_samples(pairs)
    wall, cpu = time.perf_counter(), time.process_time()
    found = numbers(name, reward, samples)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Scored(pairs, found.reshape(-1, 2), wall, cpu)


def numbers(name: str, reward: RewardFunction, samples: Samples) -> Numbers:
    """Scores (N,) of samples, NaN where the reward does not apply."""
    if len(samples) == 0:
        return np.zeros(0)
    scores = checked(name, reward, samples)
    values = torch.where(scores.applicable, scores.values.double(), torch.nan)
    return np.asarray(values.cpu().numpy(), dtype=np.float64)
