"""The keys of a diffusion config, and how they become the parts of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffusion import adapters, example, trial
from diffusion.anchors import anchors_of, parts_of
from diffusion.collector import PictureCollector, RolloutConfig
from diffusion.evaluation import WATCHED, PictureEvaluator, SheetConfig, Watched
from diffusion.policy import DiffusionPolicy, PolicyConfig
from diffusion.prompts import DataConfig, read_prompts
from diffusion.quality import Sampler, table
from diffusion.sampling import SamplingConfig
from diffusion.warmup import Making
from mmrl.experiment import Exported, Trial
from mmrl.keys import MakingKeys, TrainingKeys
from mmrl.parts import Parts
from mmrl.recipes import existing_asset
from mmrl.runtime import Runtime
from mmrl.types import Policy, RewardFunction
from rewards.compose import Part, WeightedSum
from rewards.pictures.base import differentiable

LORA = """\
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({base!r}{absent})
pipeline.load_lora_weights("PATH")
"""
WHOLE = """\
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("PATH"{absent})
"""


@dataclass(frozen=True)
class Experiment(TrainingKeys):
    """RL of a text-to-image pipeline. `watch` names the figures that every evaluation measures beside the reward, since
    they turn when it is being hacked; `kl` is to the start, and keeps a second denoiser where there is no adapter.
    `anchors`: pictures by the policy as it starts are drawn first, and rewards have them as the column `anchor`."""

    policy: PolicyConfig
    data: DataConfig
    rewards: dict[str, Part]
    sampling: SamplingConfig = SamplingConfig()
    rollout: RolloutConfig = RolloutConfig()
    watch: tuple[Watched, ...] = WATCHED
    sheet: SheetConfig | None = None
    anchors: bool = False
    domain = "diffusion"

    def __post_init__(self) -> None:
        if self.evaluate.attempts is not None:
            raise ValueError("evaluate.attempts is not read by experiment diffusion: remove it")
        if self.evaluate.by is not None:
            raise ValueError("evaluate.by is not read by experiment diffusion: remove it")

    @property
    def base_policy(self) -> str:
        return self.policy.model

    def build(self, runtime: Runtime, start: Path | None = None) -> Parts:
        reward, (train, held_out) = WeightedSum(self.rewards), self.data.read()
        if self.anchors and any("anchor" in one.columns for one in (*train, *held_out)):
            raise ValueError("anchors is true and data has a column anchor: set anchors to false, or rename the column")
        policy = self.load_policy(runtime, start)
        anchors: dict[str, Sequence[object]] = {}  # `begin` fills it
        collector = PictureCollector(train, reward, self.rollout, self.sampling, runtime, anchors)
        metrics = {name: Part(use).function for name, use in self.evaluate.metrics.items()}
        algorithm = self.algorithm
        wanted = algorithm.needs_reference or algorithm.needs_exact_kl or "kl" in self.watch
        reference = policy.reference(moved=start is not None) if wanted else None
        if self.algorithm.needs_outcome:
            policy.differentiable_reward = differentiable(self.rewards)
        evaluator = PictureEvaluator(
            held_out, self.sampling, reward, metrics, self.data.eval_pictures, self.watch, reference, self.sheet,
            anchors,
        )  # fmt: skip
        return Parts(policy, collector, evaluator, self.algorithm, reference, primary_metric="reward")

    def begin(self, parts: Parts, runtime: Runtime, folder: Path | None) -> None:
        if self.anchors:
            collector, _, _ = parts_of(parts)
            collector.anchors.update(anchors_of(parts, runtime, folder))

    def load_policy(self, runtime: Runtime, start: Path | None = None) -> DiffusionPolicy:
        found = replace(self.policy, model=existing_asset(self.policy.model))
        policy = DiffusionPolicy.load(found, runtime.fresh_generator("heads", shared=True))
        if start is not None:
            policy.load_weights(start)
        return policy

    def try_out(self, runtime: Runtime, parts: Parts) -> Trial:
        return trial.try_out(self, runtime, parts)

    @staticmethod
    def write_example(folder: Path) -> None:
        example.write(folder)

    def export(self, policy: Policy, folder: Path, merge: bool, dtype: str | None) -> Exported:
        assert isinstance(policy, DiffusionPolicy)
        if dtype is not None:
            raise ValueError(
                "--dtype is left out here: float32 is written, and diffusers casts as it loads (torch_dtype)"
            )
        absent = "".join(f", {name}=None" for name in policy.absent())
        if self.policy.adapter is not None and not merge:
            adapters.save(policy.pipeline, policy.name, folder)
            return Exported("diffusers", LORA.format(base=self.policy.model, absent=absent))
        if self.policy.adapter is not None:
            policy.pipeline.fuse_lora()
            policy.pipeline.unload_lora_weights()
        policy.pipeline.save_pretrained(folder)
        return Exported("diffusers", WHOLE.format(absent=absent))


@dataclass(frozen=True)
class WarmupConfig:
    """What is made, where it is written, and by which samplers its pictures are judged."""

    output: str
    make: Making
    samplers: tuple[Sampler, ...] = ()


@dataclass(frozen=True)
class Warmup(MakingKeys):
    """Makes one of the small models of assets/; it trains nothing by reinforcement. `metrics` judge a pipeline's
    pictures of `prompts`."""

    warmup: WarmupConfig
    prompts: str | None = None
    metrics: dict[str, RewardFunction | str] = field(default_factory=dict)
    domain = "diffusion"

    def __post_init__(self) -> None:
        if self.warmup.samplers and self.prompts is None:
            raise ValueError("warmup.samplers draw `prompts`, which is missing: give a text file, one a line")

    @property
    def base_policy(self) -> str:
        return self.warmup.output

    def run_warmup(self, runtime: Runtime, output: Path) -> dict[str, object]:
        prompts = read_prompts(self.prompts, "prompts") if self.prompts is not None else []
        summary = self.warmup.make.make(runtime, output, self.logging.progress)
        metrics = {name: Part(use).function for name, use in self.metrics.items()}
        rows = table(output, self.warmup.samplers, prompts, metrics, runtime.fresh_generator("samples"))
        return {**summary, "samplers": rows}
