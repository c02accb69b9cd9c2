"""Worker processes without physics, for tests: real processes and messages around points in a plane."""

from __future__ import annotations

import multiprocessing
import sys
import time
import types
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from vla.chains import Chain
from vla.policy import Acted
from vla.rollouts import Begun
from vla.sim import process, worker, workers
from vla.sim.base import Observations, SimulationConfig, TaskConfig, TaskSpec
from vla.sim.workers import Workers

STEPS = 10


@dataclass(frozen=True)
class Seen:
    state: np.ndarray
    images: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    seen: Seen
    reward: float
    success: bool
    failed: bool = False


class Point:
    """A point that must come within 0.35 of the origin. `options` of its task: `step_s`, how long a step takes."""

    def __init__(self, task: TaskConfig) -> None:
        self.spec = TaskSpec("Plane-v1", "Plane-v1", "go home", (-1.0,) * 2, (1.0,) * 2, 3, {}, STEPS, 20, True)
        self.step_s = float(task.options.get("step_s", 0.0))  # type: ignore[arg-type]

    def seen(self) -> Seen:
        return Seen(np.append(self.at, np.float32(1.0)).astype(np.float32))

    def reset(self, seed: int) -> Seen:
        self.at = np.random.default_rng(seed).uniform(-1, 1, 2).astype(np.float32)
        return self.seen()

    def step(self, action: np.ndarray) -> Step:
        time.sleep(self.step_s)
        self.at = self.at + np.float32(0.1) * action.clip(-1, 1)
        return Step(self.seen(), float(1 - np.abs(self.at).sum()), bool(np.linalg.norm(self.at) < 0.35))

    def look(self) -> Mapping[str, np.ndarray]:
        return {}


def forked(patch: pytest.MonkeyPatch, config: SimulationConfig, step_s: float = 0.0) -> Workers:
    """Workers that are forked from this process, and so have its points instead of ManiSkill's tasks."""
    made = types.ModuleType("vla.sim.fast")
    made.make = lambda task, config: Point(task)  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "vla.sim.fast", made)
    patch.setattr(worker, "prepare", lambda job: None)
    patch.setattr(workers, "module_of", lambda task: "tests.toy_workers")
    fork = multiprocessing.get_context("fork")
    patch.setattr(process.multiprocessing, "get_context", lambda kind: fork)
    return Workers([TaskConfig("Plane-v1", options={"step_s": step_s})], config)


class Elementwise:
    """Acts by additions and products alone, which round the same in batches of any size. Remembers what it was asked:
    a chunk's noise is its name."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.device, self.takes_s = torch.device("cpu"), takes_s
        self.batches: list[list[float]] = []

    def act(self, seen: Observations, noise: torch.Tensor, stochastic: torch.Tensor) -> Acted:
        time.sleep(self.takes_s)
        self.batches.append(noise[:, 0, 0, 0].tolist())
        actions = noise[:, -1] - 0.5 * seen.state[:, None, :2]
        return Acted({"state": seen.state}, Chain(noise, noise[:, 1:]), noise[:, 0, :, 0], seen.state[:, 0], actions)


def begun(count: int, chunks: int = 5, horizon: int = 2) -> Begun:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, chunks, 2, horizon, 2, generator=generator)
    return Begun(list(range(count)), noise, torch.ones(count, chunks, 1, dtype=torch.bool))
