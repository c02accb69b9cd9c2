"""Learning rates as a function of the step alone, so that resuming needs no state."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule(abc.ABC):
    """A linear rise over `warmup_steps`, then what the subclass says."""

    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps is {self.warmup_steps}: give 0 or more")

    @abc.abstractmethod
    def decay(self, progress: float) -> float:
        """Factor at `progress` in [0, 1] of the steps after warm-up."""

    def __call__(self, step: int, total: int) -> float:
        """Factor on the learning rate at step 0, 1, ..., total - 1."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.decay((step - self.warmup_steps) / max(1, total - self.warmup_steps))


@dataclass(frozen=True)
class Constant(Schedule):
    """No decay."""

    def decay(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Falling(Schedule, abc.ABC):
    """A schedule that ends at the factor `final`."""

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.final < 0:
            raise ValueError(f"schedule.final is {self.final}: give 0 or more, a factor on the learning rate")


@dataclass(frozen=True)
class Linear(Falling):
    """Down to `final` at the last step."""

    def decay(self, progress: float) -> float:
        return 1.0 + (self.final - 1.0) * progress


@dataclass(frozen=True)
class Cosine(Falling):
    """Down to `final` along half a cosine."""

    def decay(self, progress: float) -> float:
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))
