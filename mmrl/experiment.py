"""What a domain's top-level config must offer, so that the command line needs to know no domain."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `mmrl --help` must answer without importing torch
    from pathlib import Path

    from mmrl.checkpoint import SaveConfig
    from mmrl.runtime import Runtime, RuntimeConfig
    from mmrl.settings import EvaluateConfig, LoggingConfig, TrainConfig
    from mmrl.trainer import Parts


class Experiment(abc.ABC):
    """A frozen dataclass named `Experiment` in a domain's `experiments` module; its fields are the keys of
    the YAML."""

    domain: str
    seed: int
    runtime: RuntimeConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    save: SaveConfig
    logging: LoggingConfig

    @abc.abstractmethod
    def build(self, runtime: Runtime) -> Parts:
        """Policy, collector, evaluator and algorithm. All data is checked here, before anything is spent."""

    @abc.abstractmethod
    def run_warmup(self, runtime: Runtime, output: Path) -> dict[str, object]:
        """Make the base policy that RL improves and save it to `output`; returns a summary."""

    @abc.abstractmethod
    def run_controls(self, runtime: Runtime, cpu_s: float) -> Mapping[str, object]:
        """The costly controls of a run that trained for `cpu_s` CPU seconds: name -> figures."""

    @abc.abstractmethod
    def run_rollout(self, runtime: Runtime, output: Path) -> dict[str, object]:
        """Rollouts without training, written to `output`; returns throughput and rewards."""

    @property
    @abc.abstractmethod
    def base_policy(self) -> str:
        """What training starts from, for the summary."""
