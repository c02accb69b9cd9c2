"""The keys of a vision config, and how they become the parts of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from mmrl.experiment import Exported, Trial
from mmrl.keys import TrainingKeys
from mmrl.parts import Parts, nothing
from mmrl.recipes import existing_asset, find_asset
from mmrl.runtime import Runtime
from mmrl.settings import EvaluateConfig
from mmrl.trainer import Trainer
from mmrl.types import Policy, Rollout
from rewards.compose import Part, WeightedSum
from rewards.tasks import ByTask
from vision import example, handover, trial
from vision.collector import AnswerCollector, RolloutConfig
from vision.controls import Arm, SFTConfig, run_arms
from vision.data import JSONL, Example, HeldOutFile, Protocol, Source, Split
from vision.demonstrations import Corrections, DemonstrationCollector
from vision.encoding import Encoder
from vision.evaluation import AnswerEvaluator
from vision.plans.base import Plan
from vision.policy import PolicyConfig, VisionPolicy
from vision.prompts import Prompt, Template
from vision.remarks import remarks
from vision.synthetic.collector import EvolvingCollector
from vision.synthetic.config import SyntheticConfig
from vision.tools import Tool
from vision.transitions import Conversations, TokenTransitions
from vision.warmup import MAXIMUM_LIKELIHOOD, WarmupConfig, make_model


@dataclass(frozen=True)
class DataConfig:
    """Pictures, what is asked about them, and what is held out: either `train` and `eval`, two sets (a path means
    JSONL, whose `columns` may be called otherwise), or a `source` that a `protocol` divides. `prompt` is a style, or
    simply the text to ask, such as "{question} Answer in <answer></answer>.". `hold_out: dev` evaluates on the dev
    split, for choosing hyper-parameters."""

    train: Source | str | None = None
    eval: Source | str | None = None
    source: Source | None = None
    protocol: Protocol | None = None
    prompt: Prompt | str = "{question}"
    columns: dict[str, str] = field(default_factory=dict)
    hold_out: Literal["evaluation", "dev"] = "evaluation"

    def __post_init__(self) -> None:
        files, divided = (self.train, self.eval), (self.source, self.protocol)
        one_way = all(part is not None for part in files) and divided == (None, None)
        other_way = all(part is not None for part in divided) and files == (None, None)
        if not (one_way or other_way):
            given = [name for name in ("train", "eval", "source", "protocol") if vars(self)[name] is not None]
            raise ValueError(
                f"data has {', '.join(given) or 'nothing'}: give `train` and `eval`, two files that share no question, "
                "or `source` and `protocol`, a set and how to divide it"
            )

    def _as_source(self, given: Source | str) -> Source:
        return JSONL(given, self.columns) if isinstance(given, str) else given

    @cached_property
    def style(self) -> Prompt:
        """How questions are asked."""
        return Template(template=self.prompt) if isinstance(self.prompt, str) else self.prompt

    @cached_property
    def training(self) -> Source:
        """What is trained on, and divided if there is a protocol."""
        if self.train is not None:
            return self._as_source(self.train)
        assert self.source is not None
        return self.source

    @cached_property
    def split(self) -> Split:
        """The training set and what is held out."""
        held_out = HeldOutFile(held_out=self._as_source(self.eval)) if self.eval is not None else None
        protocol = self.protocol or held_out
        assert protocol is not None
        return protocol.split(self.training)

    def held_out(self) -> Sequence[Example]:
        """The examples that evaluation reads."""
        return self.split.dev if self.hold_out == "dev" else self.split.evaluation


@dataclass(frozen=True)
class Experiment(TrainingKeys):
    """RL of a vision-language model on questions about pictures."""

    policy: PolicyConfig
    data: DataConfig
    rewards: dict[str, Part]
    rollout: RolloutConfig = RolloutConfig()
    tool: Tool | None = None
    controls: Literal["cheap", "all"] = "cheap"
    sft: SFTConfig = SFTConfig()
    warmup: WarmupConfig | None = None
    synthetic: SyntheticConfig | None = None
    domain = "vision"

    def __post_init__(self) -> None:
        if self.rollout.plan is not None:
            self._check_plan(self.rollout.plan)
        if self.policy.reuse_prefill and self.train.ahead is not None:
            raise ValueError(
                "policy.reuse_prefill is true and train.ahead is set: the policy that is updated is another than the "
                "one that ran the prompts; set reuse_prefill to false"
            )
        if self.synthetic is not None and self.train.ahead is not None and self.train.ahead.processes > 1:
            raise ValueError(
                f"synthetic is set and train.ahead.processes is {self.train.ahead.processes}, each of which would have "
                "a data server and descriptions of its own: set it to at most 1"
            )
        if self.rollout.server is not None:
            self._check_server()
        if self.synthetic is not None and (self.rollout.turns > 1 or self.policy.critic is not None):
            raise ValueError(
                f"synthetic is set with rollout.turns {self.rollout.turns} and policy.critic {self.policy.critic}: "
                "made pictures are answered in one turn and compared within their group; set turns to 1, critic to null"
            )
        if self.synthetic is not None and self.train.resample:
            raise ValueError(
                f"synthetic is set and train.resample is {self.train.resample}: decided groups are answered by new "
                "pictures there, not by drawing other prompts; set resample to 0, or synthetic to null"
            )
        planning = [type(part).__name__ for part in self.algorithm.parts if part.plans_on]
        if self.synthetic is not None and planning:
            raise ValueError(
                f"synthetic is set and algorithm has {planning[0]}, which plans on statistics that a description does "
                "not bring back when it is replayed: take that part out, or set synthetic to null"
            )
        if self.synthetic is not None and self.synthetic.accuracy not in self.rewards:
            raise ValueError(
                f"synthetic.accuracy is {self.synthetic.accuracy!r}, and rewards has {sorted(self.rewards)}: name the "
                "reward whose spread over the answers is their diversity"
            )
        if self.rollout.turns > 1 and self.tool is None:
            raise ValueError(
                f"rollout.turns is {self.rollout.turns} and there is no `tool` to answer a turn: give one, such as "
                "vision.rrvf.RenderAndCompare, or set rollout.turns to 1"
            )

    def _check_plan(self, plan: Plan) -> None:
        name = f"rollout.plan is {type(plan).__name__}"
        if self.tool is not None or self.synthetic is not None:
            other = "tool" if self.tool is not None else "synthetic"
            raise ValueError(f"{name} and `{other}` is set: a plan is of answers to given pictures; set one to null")
        if plan.replays and self.policy.critic is not None:
            raise ValueError(
                f"{name}, whose rows may be of earlier steps, and policy.critic is {self.policy.critic}: nobody "
                "recorded values of then; set critic to null"
            )
        if plan.remembers and self.train.resample:
            raise ValueError(
                f"{name}, which remembers earlier steps, and train.resample is {self.train.resample}: a step is one "
                "rollout there; set resample to 0"
            )

    def _check_server(self) -> None:
        if not self.train.update.rescore:
            raise ValueError(
                "rollout.server is set and train.update.rescore is false: its log-probs are not quite the trainer's, "
                "and the ratio needs these; set rescore to true (in reduced precision that costs nothing more), and "
                "take mmrl.selectors.TruncatedImportance or IcePop against the rest of the difference"
            )
        wrong = {
            "policy.critic": self.policy.critic is not None,
            "policy.reuse_prefill": self.policy.reuse_prefill,
            "synthetic": self.synthetic is not None,
        }
        if given := [name for name, is_set in wrong.items() if is_set]:
            raise ValueError(
                f"rollout.server and {given[0]} are set: a server tells neither values nor activations, and knows no "
                f"made pictures; take {given[0]} out, or set server to null"
            )

    @property
    def base_policy(self) -> str:
        return self.policy.model

    def build(self, runtime: Runtime, start: Path | None = None) -> Parts:
        if runtime.sharded and self.policy.reuse_prefill:
            raise ValueError(
                "policy.reuse_prefill is true, and FSDP2 takes the weights away that the prompts were run with: set it "
                "to false, or launch with DDP"
            )
        reward = WeightedSum(self.rewards)
        split = self.data.split
        policy = self.load_policy(runtime, start)
        encode = self.encoder(policy)
        encode.check([*split.pool, *self.data.held_out()])
        if self.controls == "all" and not split.demonstrations:
            raise ValueError(
                "controls is all, and data.protocol leaves no demonstrations for SFT: set shots, or controls=cheap"
            )
        weights = self.data.training.task_weights()
        tasks = {str(example.columns["task"]) for example in split.pool if "task" in example.columns}
        for part in self.rewards.values():
            if tasks and isinstance(part.use, ByTask):
                part.use.check_tasks(tasks)
        answers = AnswerCollector(split.pool, encode, reward, self.rollout, runtime, self.tool, weights)
        evaluator, collector, close = self.evaluator(policy, encode), answers, nothing
        if self.synthetic is not None:
            collector = evolving = EvolvingCollector(answers, self.synthetic)
            close = evolving.close
            evaluator = replace(evaluator, made=lambda: list(evolving.wall))
        if self.rollout.server is not None:
            self.rollout.server.check(policy)
        reference = policy.reference(moved=start is not None) if self.algorithm.needs_reference else None
        lagged = None if answers.plan is None else answers.plan.lagged()
        return Parts(policy, collector, evaluator, self.algorithm, reference, lagged=lagged, close=close)

    def load_policy(self, runtime: Runtime, start: Path | None = None) -> VisionPolicy:
        found = replace(self.policy, model=existing_asset(self.policy.model))
        policy = VisionPolicy.load(found, runtime.fresh_generator("heads", shared=True))
        if start is not None:
            policy.load_weights(start)
        return policy

    def encoder(self, policy: VisionPolicy, style: Prompt | None = None) -> Encoder:
        """Examples to prompts of this model."""
        limit = self.rollout.max_prompt_tokens
        return Encoder(policy.processor, style or self.data.style, self.data.split.labels, limit)

    def evaluator(self, policy: VisionPolicy, encode: Encoder) -> AnswerEvaluator:
        """Held-out evaluation of this experiment."""
        transfer = {}
        held_out = self.data.split.transfer if self.data.hold_out == "evaluation" else {}
        for name, examples in held_out.items():
            labels = tuple(sorted({example.answer for example in examples}))
            transfer[name] = (examples, replace(encode, labels=labels))
        metrics = {name: Part(use).function for name, use in self.evaluate.metrics.items()}
        return AnswerEvaluator(
            self.data.held_out(), encode, self.data.training, self.rollout.limits, WeightedSum(self.rewards),
            transfer, metrics, self.evaluate.by, self.tool, self.evaluate.attempts,
        )  # fmt: skip

    def supervised(self, runtime: Runtime, all_labels: bool, hold_out: Literal["evaluation", "dev"]) -> Parts:
        """Parts of a supervised run from the same start, in this experiment's prompt style."""
        data = replace(self.data, hold_out=hold_out)
        mine = replace(self, data=data, policy=replace(self.policy, critic=None))
        split, policy = data.split, mine.load_policy(runtime)
        encode = mine.encoder(policy)
        encode.check([*split.demonstrations, *(split.pool if all_labels else ()), *data.held_out()])
        examples = [*split.demonstrations, *(split.pool if all_labels else ())]
        collector = DemonstrationCollector(data.training, examples, [encode], self.sft.rows, runtime)
        return Parts(policy, collector, mine.evaluator(policy, encode), MAXIMUM_LIKELIHOOD)

    def run_controls(self, runtime: Runtime, cpu_s: float) -> Mapping[str, object]:
        if self.controls != "all":
            return {}
        arms = [
            Arm(self.supervised, labels, lr, self.sft, self.runtime, self.seed, cpu_s)
            for labels in (False, True)
            for lr in self.sft.lrs
        ]
        return run_arms(arms, self.sft.workers)

    def remarks(self, summary: Mapping[str, object]) -> list[str]:
        return remarks(summary)

    def run_warmup(self, runtime: Runtime, output: Path) -> dict[str, object]:
        if self.warmup is None:
            raise ValueError(
                "the key `warmup` is missing: `mmrl warmup` reads it; see configs/vision/warmup_digits.yaml"
            )
        config, split = self.warmup, self.data.split
        corrections = None
        if config.corrections:
            if self.tool is None:
                raise ValueError("warmup.corrections are what a tool says to a draft: give a `tool`, or set them to 0")
            corrections = Corrections(self.tool, config.corrections)
        start = replace(self.policy, critic=None)
        if config.model is not None:
            make_model(config, self.data.training, split, self.seed, output, corrections)
            start = replace(start, model=str(output))
        policy = VisionPolicy.load(replace(start, model=find_asset(start.model)))
        encoders = [self.encoder(policy, style) for style in config.styles]
        examples = list(split.demonstrations)
        collector = DemonstrationCollector(self.data.training, examples, encoders, config.rows, runtime, corrections)
        collector.check_lengths(policy, self.rollout.max_new_tokens)
        parts = Parts(policy, collector, self.evaluator(policy, encoders[0]), MAXIMUM_LIKELIHOOD)
        quietly = EvaluateConfig(every=None)
        summary = Trainer(parts, config.train, runtime, evaluate=quietly, logging=self.logging).fit()
        for style, encode in zip(config.styles, encoders, strict=True):
            found = self.evaluator(policy, encode).evaluate(policy, runtime.fresh_generator("evaluate"))
            summary[f"eval_{type(style).__name__}"] = {n: dataclasses.asdict(e) for n, e in found.items()}
        policy.save_pretrained(output)
        return summary

    def try_out(self, runtime: Runtime, parts: Parts) -> Trial:
        return trial.try_out(self, runtime, parts)

    def told(self, parts: Parts, rollout: Rollout, row: int) -> list[str]:
        assert isinstance(parts.policy, VisionPolicy)
        assert isinstance(rollout.transitions, TokenTransitions | Conversations)
        decode = parts.policy.processor.tokenizer.decode
        return [repr(decode([token])) for token in rollout.transitions.written(row)]

    def export(self, policy: Policy, folder: Path, merge: bool, dtype: str | None) -> Exported:
        return handover.write(policy, self.policy.model, folder, merge, dtype)

    @staticmethod
    def write_example(folder: Path) -> None:
        example.write(folder)
