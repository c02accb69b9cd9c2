"""The keys that configs of every domain have, of runs that train and of those that only make a start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mmrl.algorithm import Algorithm
from mmrl.checkpoint import SaveConfig
from mmrl.experiment import Experiment
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.settings import EvaluateConfig, LoggingConfig, TrainConfig
from mmrl.stopping import StopRule


@dataclass(frozen=True, kw_only=True)
class TrainingKeys(Experiment):
    """Of a config that is trained. Beside them a domain has its policy, its data or tasks, its rewards and its
    rollout."""

    algorithm: Algorithm
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    save: SaveConfig = SaveConfig()
    stop: tuple[StopRule, ...] = ()
    runtime: RuntimeConfig = RuntimeConfig()
    logging: LoggingConfig = LoggingConfig()
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class MakingKeys(Experiment):
    """Of a config that `mmrl warmup` alone reads: it makes one of the small models of assets/."""

    runtime: RuntimeConfig = RuntimeConfig(device="cpu")
    logging: LoggingConfig = LoggingConfig()
    seed: int = 0

    def build(self, runtime: Runtime, start: Path | None = None) -> NoReturn:
        raise ValueError("this config makes a model to start from: run it with `mmrl warmup`")

    def run_rollout(self, runtime: Runtime, output: Path) -> NoReturn:
        self.build(runtime)
