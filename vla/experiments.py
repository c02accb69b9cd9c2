"""The keys of a vla config, and how they become the parts of a run."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmrl.experiment import Exported, Trial
from mmrl.keys import MakingKeys, TrainingKeys
from mmrl.parts import Parts
from mmrl.recipes import existing_asset
from mmrl.runtime import Runtime, acting
from mmrl.types import Policy
from vla import demonstrations, example, launch, trial
from vla.adapters.files import beside
from vla.cloning import CloningConfig, clone
from vla.collector import EpisodeCollector, RewardConfig, RolloutConfig
from vla.demonstrations import DemonstrationsConfig
from vla.evaluation import EpisodeEvaluator, HeldOutConfig
from vla.exploration import FlowSDE
from vla.mapping import ActionsError, Observe
from vla.policy import PolicyConfig, RobotPolicy
from vla.recording import RecordConfig
from vla.sim.base import SimulationConfig, TaskConfig
from vla.sim.start import start as simulate
from vla.videos import VideosConfig

USAGE = """\
{imports}from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

config = PreTrainedConfig.from_pretrained("PATH")
policy = get_policy_class(config.type).from_pretrained("PATH")
before, after = make_pre_post_processors(config, "PATH")
"""


Tasks = TaskConfig | tuple[TaskConfig, ...]


def each(env: Tasks) -> tuple[TaskConfig, ...]:
    """The tasks of a config's `env`, which is one or a list."""
    return (env,) if isinstance(env, TaskConfig) else env


def check_labels(env: Tasks, held_out: HeldOutConfig) -> None:
    """Raises:
    ValueError: there is no task, or two have figures of the same name.
    """
    labels = [task.label for task in (*each(env), *held_out.tasks)]
    if not each(env):
        raise ValueError("env is an empty list: give a task, or several")
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise ValueError(f"two tasks of env and held_out.tasks are called {twice[0]}: give each a `name` of its own")


@dataclass(frozen=True)
class Experiment(TrainingKeys):
    """RL of a flow-matching policy in a simulated task, or in several. `simulation.copies` is set by
    `rollout.episodes`. `observe` says which of the task's cameras and numbers the policy's features are; null: where
    nothing is in doubt. `videos` are of held-out episodes before and after, null: none; `record` is of `mmrl rollout`;
    `demonstrations` are what the policy was cloned from, which `mmrl check` plays again."""

    policy: PolicyConfig
    env: Tasks
    observe: Observe | None = None
    reward: RewardConfig = RewardConfig()
    simulation: SimulationConfig = SimulationConfig()
    rollout: RolloutConfig = RolloutConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    videos: VideosConfig | None = None
    record: RecordConfig = RecordConfig()
    demonstrations: DemonstrationsConfig | None = None
    domain = "vla"

    def __post_init__(self) -> None:
        if self.evaluate.attempts is not None:
            raise ValueError("evaluate.attempts is not read by experiment vla: remove it")
        if self.evaluate.by is not None or self.evaluate.metrics:
            raise ValueError("evaluate.by and evaluate.metrics are of other experiments: remove them")
        check_labels(self.env, self.held_out)
        self.rollout.copies(len(each(self.env)))
        if (self.reward.dense or self.reward.relative) and any(task.reward == "sparse" for task in each(self.env)):
            raise ValueError(
                "reward.dense and reward.relative weigh the task's own reward, and env.reward is sparse: set it to "
                "normalized_dense, or both to 0"
            )

    @property
    def base_policy(self) -> str:
        return self.policy.path

    @property
    def tasks(self) -> tuple[TaskConfig, ...]:
        """Those that are trained."""
        return each(self.env)

    def build(self, runtime: Runtime, start: Path | None = None) -> Parts:
        policy = self.load_policy(runtime, start)
        tasks = self.tasks
        simulation = replace(self.simulation, copies=self.rollout.copies(len(tasks)))
        simulator = simulate(tasks, simulation)
        try:
            policy.adapter.connect(simulator, self.observe)
        except ValueError:
            simulator.close()
            raise
        collector = EpisodeCollector(simulator, self.rollout, self.reward, runtime)
        evaluator = EpisodeEvaluator(tasks, simulation, self.held_out, simulator, self.videos)
        reference = policy.reference() if self.algorithm.needs_reference else None
        return Parts(policy, collector, evaluator, self.algorithm, reference, "success_rate", close=simulator.close)

    def load_policy(self, runtime: Runtime, start: Path | None = None) -> RobotPolicy:
        found = replace(self.policy, path=existing_asset(self.policy.path))
        policy = RobotPolicy.load(found, runtime.fresh_generator("heads", shared=True))
        if start is not None:
            policy.load_weights(start)
        return policy

    def build_to_check(self, runtime: Runtime) -> Parts:
        try:
            return self.build(runtime)
        except ActionsError as error:  # demonstrations say which controller would fit
            raise ValueError(f"{error}; replay: {trial.again(self, runtime)['replay']}") from error

    def run_rollout(self, runtime: Runtime, output: Path) -> dict[str, object]:
        launch.refuse_existing(self.record, output)
        parts = self.build(runtime)
        parts.policy.to(runtime.device)
        return launch.launch(self, runtime, parts, output)

    def try_out(self, runtime: Runtime, parts: Parts) -> Trial:
        return trial.try_out(self, runtime, parts)

    @staticmethod
    def write_example(folder: Path) -> None:
        example.write(folder)

    def export(self, policy: Policy, folder: Path, merge: bool, dtype: str | None) -> Exported:
        assert isinstance(policy, RobotPolicy)
        if dtype is not None:
            raise ValueError("--dtype is left out here: lerobot saves float32")
        policy.adapter.export(folder)
        own = type(policy.adapter.policy).__module__.startswith("vla.")
        imports = "import vla.embedded  # registers the small policy with lerobot\n" if own else ""
        return Exported("lerobot", USAGE.format(imports=imports) + beside(folder))


@dataclass(frozen=True)
class WarmupConfig:
    """What is cloned from which demonstrations, and where it is written."""

    output: str
    demonstrations: DemonstrationsConfig
    cloning: CloningConfig = CloningConfig()


@dataclass(frozen=True)
class Warmup(MakingKeys):
    """Makes a small policy of assets/ from demonstrations, and evaluates it on the task's own step. Of several tasks it
    makes one policy; what `simulation` observes is what it reads."""

    warmup: WarmupConfig
    env: Tasks
    simulation: SimulationConfig = SimulationConfig(copies=40)
    held_out: HeldOutConfig = HeldOutConfig()
    domain = "vla"

    def __post_init__(self) -> None:
        check_labels(self.env, self.held_out)
        if len(each(self.env)) > 1 and not self.warmup.cloning.language:
            raise ValueError(
                "env is several tasks: set warmup.cloning.language to true, or the policy cannot tell them"
            )

    @property
    def base_policy(self) -> str:
        return self.warmup.output

    def run_warmup(self, runtime: Runtime, output: Path) -> dict[str, object]:
        config, generator = self.warmup, runtime.generator("warmup")
        drawn = runtime.generator("demonstrations")  # so that the weights are the same where they are there already
        folder = demonstrations.ensure(config.demonstrations, self.env, drawn, self.simulation)
        frames = demonstrations.read(folder, config.demonstrations.episodes, config.cloning.horizon)
        began = time.process_time()
        loss = clone(frames, config.cloning, generator, output, self.logging.progress)
        spent = time.process_time() - began
        policy = RobotPolicy.load(
            PolicyConfig(str(output), FlowSDE(), critic=None), runtime.fresh_generator("heads", shared=True)
        )
        with simulate(each(self.env), self.simulation) as simulator, acting(policy):
            evaluator = EpisodeEvaluator(each(self.env), self.simulation, self.held_out, simulator)
            found = evaluator.evaluate(policy, runtime.fresh_generator("evaluate"))
        told: dict[str, Any] = {
            "demonstrations": frames.episodes, "frames": len(frames.states), "loss": round(loss, 4),
            "parameters": sum(p.numel() for p in policy.adapter.parameters()), "cpu_s": round(spent, 1),
        }  # fmt: skip
        evaluation = {name: dataclasses.asdict(e) for name, e in found.items()}
        return {**told, "held_out_step": self.held_out.step, "eval_held_out": evaluation}
