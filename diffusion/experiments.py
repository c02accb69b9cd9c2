"""The keys of a diffusion config, and how they become the parts of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from diffusion.collector import PictureCollector, RolloutConfig
from diffusion.evaluation import PictureEvaluator
from diffusion.policy import DiffusionPolicy, PolicyConfig
from diffusion.prompts import DataConfig
from diffusion.sampling import SamplingConfig
from mmrl import experiment
from mmrl.algorithm import Algorithm
from mmrl.checkpoint import SaveConfig
from mmrl.experiment import Exported
from mmrl.metrics import rollout_metrics
from mmrl.recipes import find_asset
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.settings import EvaluateConfig, LoggingConfig, TrainConfig
from mmrl.stopping import StopRule
from mmrl.trainer import Parts
from mmrl.types import Policy
from rewards.compose import Part, WeightedSum

LORA = """\
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({base!r})
pipeline.load_lora_weights("PATH")
"""
WHOLE = """\
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("PATH")
"""


@dataclass(frozen=True)
class Experiment(experiment.Experiment):
    """RL of a text-to-image pipeline."""

    policy: PolicyConfig
    data: DataConfig
    rewards: dict[str, Part]
    algorithm: Algorithm
    sampling: SamplingConfig = SamplingConfig()
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    save: SaveConfig = SaveConfig()
    stop: tuple[StopRule, ...] = ()
    runtime: RuntimeConfig = RuntimeConfig()
    logging: LoggingConfig = LoggingConfig()
    seed: int = 0
    domain = "diffusion"

    def __post_init__(self) -> None:
        if self.evaluate.by is not None:
            raise ValueError("evaluate.by is of experiment vision alone: remove it")

    @property
    def base_policy(self) -> str:
        return self.policy.model

    def build(self, runtime: Runtime) -> Parts:
        reward, (train, held_out) = WeightedSum(self.rewards), self.data.read()
        policy = DiffusionPolicy.load(replace(self.policy, model=find_asset(self.policy.model)))
        collector = PictureCollector(train, reward, self.rollout, self.sampling, runtime)
        metrics = {name: Part(use).function for name, use in self.evaluate.metrics.items()}
        evaluator = PictureEvaluator(held_out, replace(self.sampling, train_steps=None), reward, metrics)
        reference = policy.reference() if self.algorithm.needs_reference else None
        if reference is not None:
            reference.to(runtime.device)
        return Parts(policy, collector, evaluator, self.algorithm, reference, primary_metric="reward")

    def run_warmup(self, runtime: Runtime, output: Path) -> dict[str, object]:
        raise ValueError("experiment diffusion has no warm-up: start from a pipeline")

    def run_controls(self, runtime: Runtime, cpu_s: float) -> Mapping[str, object]:
        return {}

    def run_rollout(self, runtime: Runtime, output: Path) -> dict[str, object]:
        parts = self.build(runtime)
        parts.policy.to(runtime.device)
        began = time.perf_counter()
        with acting(parts.policy):
            rollout = parts.collector.collect(parts.policy, runtime.generator("collect"))
            seconds = time.perf_counter() - began
            parts.evaluator.samples(parts.policy, runtime.fresh_generator("samples"), output, self.evaluate.samples)
        figures = {**rollout_metrics(rollout), "seconds": seconds, "samples_per_s": len(rollout) / seconds}
        (output / "rollout.json").write_text(json.dumps(figures, indent=1))
        return dict(figures)

    def export(self, policy: Policy, folder: Path, merge: bool, dtype: str | None) -> Exported:
        assert isinstance(policy, DiffusionPolicy)
        if dtype is not None:
            raise ValueError("--dtype is of experiment vision alone: diffusers casts as it loads (torch_dtype)")
        if self.policy.adapter is not None and not merge:
            policy.save_pretrained(folder)
            return Exported("diffusers", LORA.format(base=self.policy.model))
        if self.policy.adapter is not None:
            policy.pipeline.fuse_lora()
            policy.pipeline.unload_lora_weights()
        policy.pipeline.save_pretrained(folder)
        return Exported("diffusers", WHOLE)
