"""Base-to-new and cross-dataset transfer of CLS-RL beside supervised training with the same CPU.

`python -m benchmarks.transfer` starts every arm from the same small policy (made here if it is not shipped),
which saw a few pictures of every class of OpenMoji and ELPV. For each study, prompt style and seed:

- `rl`: the recipe; it sees the pool only through the reward;
- `sft_continued`: the demonstrations of the recipe's split (those the start had seen), for the CPU seconds of `rl`;
- `sft_all_labels`: these and the labels of the whole pool, for as long: a ceiling where RL has labels to lose to.

- `rl_kl` (base-to-new without thinking alone): `rl` with the k3 penalty of CLS-RL towards the start, coefficient 0.04.

Every held-out set is answered openly, and without thinking also by the likeliest of its own labels
(`closed_accuracy`): the first asks whether a class is still named, the second whether it is still told apart.
Both `trained` figures rise when an arm merely stops naming classes of other sets, so read them against
`sft_continued`, which can do the same.

Of the learning rates of `sft.lrs` each supervised arm uses the one that was best on dev with the first seed;
studies that share demonstrations share the choice (`LR_FROM`).
The file is written after every arm; arms that are in it are not run again (delete it to start over).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import batched
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, spread, write
from mmrl.commands import warmup
from mmrl.config import load
from mmrl.recipes import find_asset
from mmrl.runtime import Runtime, acting
from mmrl.trainer import EvaluateConfig, LoggingConfig, Parts, TrainConfig, Trainer
from vision.controls import UNBOUNDED
from vision.conversation import Conversation, as_samples
from vision.data import Example
from vision.demonstrations import DemonstrationCollector
from vision.encoding import Encoder
from vision.evaluation import AnswerEvaluator
from vision.experiments import Experiment
from vision.policy import VisionPolicy
from vision.prompts import Direct
from vision.transitions import TokenTransitions

NAME = "transfer"
SEEDS = (0, 1, 2)
WARMUP = "vision/warmup_openmoji"
THINK = (
    "data.prompt={class_path: vision.prompts.Think}",
    "rewards={accuracy: {use: rewards.text.AnswerMatch}, format: {use: rewards.text.TagFormat}}",
    "rollout.max_new_tokens=24",
    "train.steps=120",
)
EMOJI = "{class_path: vision.data.OpenMoji, init_args: {classes: 12, per_class: 300, size: 32}}"
BACKWARDS = (
    "data.source={class_path: vision.data.ELPV, init_args: {size: 32}}",
    f"data.protocol.others={{openmoji: {EMOJI}}}",
)
KL = ("algorithm.regularisers=[{class_path: mmrl.regularisers.K3, init_args: {coef: 0.04}}]",)
STUDIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "base_to_new/no_thinking": ("vision/base_to_new", ()),
    "cross_dataset/no_thinking": ("vision/cross_dataset", ()),
    "base_to_new/thinking": ("vision/base_to_new", THINK),
    "cross_dataset_elpv_to_openmoji/no_thinking": ("vision/cross_dataset", BACKWARDS),
}
"""Study -> recipe and what is changed in it."""
LR_FROM = {"cross_dataset/no_thinking": "base_to_new/no_thinking", "base_to_new/thinking": "base_to_new/no_thinking"}
"""Study -> the study whose learning rates it takes."""
QUIET = LoggingConfig(progress=False)
Arm = dict[str, Any]


def start_policy() -> str:
    """Folder of the start: the shipped one, or one made in the temporary folder and kept there."""
    shipped = Path(find_asset("assets/vision/openmoji"))
    made = Path(tempfile.gettempdir()) / "mmrl-transfer-start"
    for folder in (shipped, made):
        if (folder / "warmup.json").exists():
            return str(folder)
    warmup(WARMUP, (), made)
    return str(made)


def per_class(policy: VisionPolicy, examples: Sequence[Example], evaluator: AnswerEvaluator, encode: Encoder) -> Arm:
    """Greedy accuracy with what a constant answer would get, and the mean over classes, which it cannot raise."""
    with acting(policy):
        answers = evaluator.answers(policy, examples, encode, None)
    right = scores(examples, answers)
    by_class: dict[str, list[float]] = {}
    for example, score in zip(examples, right, strict=True):
        by_class.setdefault(example.answer, []).append(score)
    recall = {name: sum(found) / len(found) for name, found in sorted(by_class.items())}
    closed = {"closed_accuracy": likeliest(policy, examples, encode)} if isinstance(encode.style, Direct) else {}
    return {
        "n": len(examples),
        "accuracy": sum(right) / len(right),
        **closed,
        "balanced_accuracy": sum(recall.values()) / len(recall),
        "majority_share": max(len(found) for found in by_class.values()) / len(examples),
        "recall": recall,
    }


def likeliest(policy: VisionPolicy, examples: Sequence[Example], encode: Encoder) -> float:
    """Accuracy of the likeliest answer among the labels of `examples`: the closed list of CLS-RL, imposed when
    decoding, since so small a model was never taught to read a list."""
    labels = sorted({example.answer for example in examples})
    tokenizer = policy.processor.tokenizer
    rows = [[*tokenizer.encode(label, add_special_tokens=False), tokenizer.eos_token_id] for label in labels]
    width = max(len(row) for row in rows)
    answers = torch.tensor([row + [policy.pad_id] * (width - len(row)) for row in rows])
    alive = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    right = 0
    for chunk in batched(examples, 64):
        prompts = tuple(encode.many(chunk))
        index = torch.arange(len(prompts)).repeat_interleave(len(labels))
        completions = answers.repeat(len(prompts), 1)
        steps = torch.arange(width).expand(len(completions), -1)
        with acting(policy):
            logprobs = policy(TokenTransitions(prompts, index, completions), steps).logprobs
        total = torch.where(alive.repeat(len(prompts), 1), logprobs, 0.0).sum(-1).view(len(prompts), len(labels))
        best = total.argmax(-1).tolist()
        right += sum(labels[b] == example.answer for b, example in zip(best, chunk, strict=True))
    return right / len(examples)


def scores(examples: Sequence[Example], answers: Sequence[Conversation]) -> list[float]:
    """1 or 0 per answer, tags and case apart, as the evaluator counts."""
    from rewards.text import AnswerMatch

    return [float(value) for value in AnswerMatch()(as_samples(examples, answers)).values]


def figures(parts: Parts) -> Arm:
    """Every held-out set of an experiment, by name."""
    policy, evaluator = parts.policy, parts.evaluator
    assert isinstance(policy, VisionPolicy)
    assert isinstance(evaluator, AnswerEvaluator)
    sets = {"trained": (evaluator.examples, evaluator.encode), **evaluator.transfer}
    return {name: per_class(policy, examples, evaluator, encode) for name, (examples, encode) in sets.items()}


def finished(parts: Parts, summary: Mapping[str, Any]) -> Arm:
    """What is kept of an arm."""
    cheap = {name: estimate["value"] for name, estimate in summary["eval_after"].items()}
    metrics = {"steps": summary["steps"], "cpu_s": summary["cpu_s"], "eval": cheap, "sets": figures(parts)}
    return {**metrics, "parity_logprob_diff_max": summary["parity"].get("logprob_diff_max")}


def run_start(experiment: Experiment) -> Arm:
    """The start policy, not trained."""
    runtime = Runtime(experiment.runtime, experiment.seed)
    parts = experiment.build(runtime)
    return finished(parts, trained(parts, replace(experiment.train, steps=0), runtime))


def trained(parts: Parts, train: TrainConfig, runtime: Runtime) -> Arm:
    """Summary of a run that is evaluated after training alone: before it, all arms are the `start` arm."""
    trainer = Trainer(parts, train, runtime, evaluate=EvaluateConfig(every=None), logging=QUIET)
    if train.steps:
        trainer.state.eval_before = {"see the arm start": {}}
    return trainer.fit()


def run_rl(experiment: Experiment) -> Arm:
    """The recipe."""
    runtime = Runtime(experiment.runtime, experiment.seed)
    parts = experiment.build(runtime)
    return finished(parts, trained(parts, experiment.train, runtime))


def run_sft(experiment: Experiment, all_labels: bool, lr: float, cpu_s: float, dev_only: bool) -> Arm:
    """Supervised training for `cpu_s` seconds; its accuracy on dev, or all held-out sets."""
    runtime = Runtime(experiment.runtime, experiment.seed)
    parts = experiment.supervised(runtime, all_labels, "dev" if dev_only else "evaluation")
    assert isinstance(parts.collector, DemonstrationCollector)
    pairs = parts.collector.pairs
    pairs[0][2].check([example for example, _, _ in pairs])  # before the clock starts, as RL does
    train = TrainConfig(UNBOUNDED, lr, weight_decay=experiment.sft.weight_decay, cpu_budget_s=cpu_s)
    if dev_only:
        assert isinstance(parts.evaluator, AnswerEvaluator)
        parts = replace(parts, evaluator=replace(parts.evaluator, transfer={}))
    summary = trained(parts, train, runtime)
    if dev_only:
        return {"lr": lr, "steps": summary["steps"], "dev_accuracy": summary["eval_after"]["accuracy"]["value"]}
    return {"lr": lr, **finished(parts, summary)}


class Ledger:
    """The arms done so far, in the result file."""

    def __init__(self, start: Arm) -> None:
        path = RESULTS / f"{NAME}.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        self.start, self.arms = found.get("start", start), found.get("arms", {})
        if self.start != start:
            raise SystemExit(f"{path} was measured from another start: delete it to measure again")

    def do(self, name: str, run: Callable[[], Arm]) -> Arm:
        """Run an arm and write it down, unless it stands there already."""
        if name not in self.arms:
            began = time.process_time()
            self.arms[name] = {**run(), "cpu_s_with_evaluation": round(time.process_time() - began, 1)}
            self.write()
            print(name, json.dumps(self.arms[name].get("sets", self.arms[name]))[:300], flush=True)
        found: Arm = self.arms[name]
        return found

    def write(self) -> None:
        """All arms so far, their summary first."""
        write(NAME, {"start": self.start, "summary": summarise(self.arms), "arms": self.arms})


def summarise(arms: Mapping[str, Arm]) -> Arm:
    """Mean, deviation and values over seeds of every figure, by study and arm."""
    grouped: dict[str, list[Arm]] = {}
    for name, arm in arms.items():
        if "sets" in arm:
            grouped.setdefault(name.rpartition("/")[0], []).append(arm)
    return {name: _summary(same) for name, same in grouped.items()}


def over_seeds(values: Sequence[float]) -> Arm:
    """Mean, deviation and values; no deviation of a single one, since NaN is not JSON."""
    return spread(values) if len(values) > 1 else {"mean": round(values[0], 4), "values": [round(values[0], 4)]}


def _summary(same: Sequence[Arm]) -> Arm:
    found: Arm = {"seeds": len(same), "cpu_s": over_seeds([arm["cpu_s"] for arm in same])}
    for part in same[0]["sets"]:
        for figure in ("accuracy", "balanced_accuracy", "closed_accuracy"):
            if figure in same[0]["sets"][part]:
                found[f"{part}/{figure}"] = over_seeds([arm["sets"][part][figure] for arm in same])
        found[f"{part}/majority_share"] = same[0]["sets"][part]["majority_share"]
    for figure in same[0]["eval"]:
        if not figure.startswith("accuracy_") or figure in ("accuracy_sampled", "accuracy_image_shuffled"):
            found[f"eval/{figure}"] = over_seeds([arm["eval"][figure] for arm in same])
    return found


def run_study(ledger: Ledger, name: str, recipe: str, experiment: Experiment) -> None:
    """All arms of one study."""
    ledger.do(f"{name}/start/0", lambda: run_start(experiment))
    for seed in SEEDS:
        mine = replace(experiment, seed=seed)
        cpu_s = ledger.do(f"{name}/rl/{seed}", lambda mine=mine: run_rl(mine))["cpu_s"]
        if name == "base_to_new/no_thinking":
            bound = replace(load(recipe, KL).experiment, policy=mine.policy, data=mine.data, seed=seed)
            ledger.do(f"{name}/rl_kl/{seed}", lambda bound=bound: run_rl(bound))
        for arm, labels in (("sft_continued", False), ("sft_all_labels", True)):
            lr = best_lr(ledger, f"{LR_FROM.get(name, name)}/{arm}", experiment, labels, cpu_s)

            def supervised(mine: Experiment = mine, labels: bool = labels, lr: float = lr, cpu: float = cpu_s) -> Arm:
                return run_sft(mine, labels, lr, cpu, dev_only=False)

            ledger.do(f"{name}/{arm}/{seed}", supervised)


def best_lr(ledger: Ledger, name: str, experiment: Experiment, labels: bool, cpu_s: float) -> float:
    """The learning rate that is best on dev with the first seed."""
    tried = [
        ledger.do(f"{name}/dev/lr={lr:g}", lambda lr=lr: run_sft(experiment, labels, lr, cpu_s, dev_only=True))
        for lr in experiment.sft.lrs
    ]
    return float(max(tried, key=lambda arm: arm["dev_accuracy"])["lr"])


def main() -> None:
    """Every study in turn."""
    folder = start_policy()
    described = json.loads((Path(folder) / "warmup.json").read_text())
    ledger = Ledger({"made_by": f"mmrl warmup {WARMUP}", "steps": described["steps"], "cpu_s": described["cpu_s"]})
    for name, (recipe, overrides) in STUDIES.items():
        loaded = load(recipe, [*overrides, f"policy.model={folder}"])
        assert isinstance(loaded.experiment, Experiment)
        run_study(ledger, name, recipe, loaded.experiment)


if __name__ == "__main__":
    main()
