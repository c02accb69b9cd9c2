"""What `mmrl check` is told of a diffusion run: real pictures of training prompts, and what its judges are asked."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw

from diffusion.collector import PictureCollector
from diffusion.evaluation import PictureEvaluator
from diffusion.policy import DiffusionPolicy
from diffusion.transitions import DenoiseTransitions
from mmrl.experiment import Trial, Tried
from mmrl.parts import Parts
from mmrl.runtime import Runtime, acting
from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import Part
from rewards.pictures import Judge

if TYPE_CHECKING:
    from diffusion.experiments import Experiment

TIMED = 8
"""Held-out prompts that the time of an evaluation is measured on."""
COLUMNS, SIDE, LABEL = 8, 192, 14
"""Of the sheet: pictures side by side, the longest side of one and the height of what stands below it, in pixels."""


class StandIn(RewardFunction):
    """Rewards that differ from row to row, for a step that is only to be measured: no judge is asked for it."""

    def __call__(self, samples: Samples) -> Scores:
        return Scores(torch.arange(len(samples)).float(), torch.ones(len(samples), dtype=torch.bool))


def try_out(experiment: Experiment, runtime: Runtime, parts: Parts) -> Trial:
    """One rollout as training would collect it."""
    collector, evaluator, policy = parts.collector, parts.evaluator, parts.policy
    assert isinstance(collector, PictureCollector)
    assert isinstance(evaluator, PictureEvaluator)
    assert isinstance(policy, DiffusionPolicy)
    judges = judges_of(experiment)
    with acting(policy), runtime.accelerator.autocast():
        rollout = collector.collect(policy, runtime.generator("collect"))
    pictures, transitions = collector.pictures, rollout.transitions
    assert isinstance(transitions, DenoiseTransitions)
    asked = [transitions.asked[number] for number in transitions.prompt_index.tolist()]
    total, there = rollout.returns().tolist(), rollout.alive.any(-1).tolist()
    longest = max(collector.prompts, key=lambda one: len(one.prompt))
    reward: RewardFunction = StandIn() if judges else collector.reward
    guided = ", with guidance" if transitions.call.copies == 2 else ""

    def draw_sheet(order: Sequence[int], target: Path) -> None:
        labels = [f"{total[row]:.3g}" for row in order if there[row]]
        sheet_of([pictures[row] for row in order if there[row]], labels).save(target)

    return Trial(
        rollout=rollout,
        tried=[Tried(one.id, one.prompt) for one in asked],
        figures={},
        data=f"{len(collector.prompts)} prompts to train on, {len(evaluator.prompts)} held out",
        largest=PictureCollector(
            [longest] * experiment.rollout.prompts,
            reward,
            experiment.rollout,
            experiment.sampling,
            runtime,
            collector.anchors,
        ),
        largest_name=f"{longest.id}: {pictures[0].width} x {pictures[0].height} pixels, "
        f"{experiment.sampling.steps} steps{guided}",
        evaluation_s=_evaluation_s(experiment, evaluator, policy, runtime),
        draw_sheet=draw_sheet,
        lines=_lines(experiment, judges, len(asked) // experiment.rollout.group, len(evaluator.prompts)),
    )


@dataclass(frozen=True)
class Asking:
    """A judge of the config, and whether training asks it too, not evaluation alone."""

    judge: Judge
    trains: bool

    def calls(self, experiment: Experiment, prompts: int, held_out: int) -> tuple[int, int]:
        """In a step of this process on so many prompts, and in an evaluation with its samples."""
        evaluation = self.judge.calls(held_out, experiment.data.eval_pictures)
        if self.trains:
            evaluation += self.judge.calls(min(experiment.evaluate.samples, held_out), 1)
        return self.judge.calls(prompts, experiment.rollout.group) if self.trains else 0, evaluation


def judges_of(experiment: Experiment) -> dict[str, Asking]:
    """The judges under `rewards` and `evaluate.metrics`, by name."""
    measured = {name: Part(use) for name, use in experiment.evaluate.metrics.items()}
    return {
        name: Asking(part.use, part is experiment.rewards.get(name))
        for name, part in {**measured, **experiment.rewards}.items()
        if isinstance(part.use, Judge)
    }


def _lines(
    experiment: Experiment, judges: Mapping[str, Asking], prompts: int, held_out: int
) -> Callable[[], Mapping[str, str]]:
    """What to say of the judges, once this check has asked them all it wants to know."""

    def lines() -> dict[str, str]:
        said = [_told(experiment, name, asking, prompts, held_out) for name, asking in judges.items()]
        return {"judge": " · ".join(said)} if said else {}

    return lines


def _told(experiment: Experiment, name: str, asking: Asking, prompts: int, held_out: int) -> str:
    steps, every, budget = experiment.train.steps, experiment.evaluate.every, asking.judge.budget_calls
    evaluations = 2 + (max(0, steps - 1) // every if every else 0)
    step, evaluation = asking.calls(experiment, prompts, held_out)
    total = steps * step + evaluations * evaluation
    if budget is None:
        allowed = "budget_calls is not set"
    elif total > budget:
        allowed = f"TOO MANY for budget_calls {budget:,}: raise it, or take fewer steps, pictures or evaluations"
    else:
        allowed = f"of budget_calls {budget:,}"
    return (
        f"{name}: {step:,} calls a step, {evaluation:,} an evaluation -> {steps:,} steps and {evaluations} "
        f"evaluations: {total:,} calls, {allowed}; this check made {asking.judge.tally.calls:,}"
    )


def _evaluation_s(
    experiment: Experiment, evaluator: PictureEvaluator, policy: DiffusionPolicy, runtime: Runtime
) -> float:
    """Seconds of one evaluation and its samples, from its first prompts."""
    part, held_out = replace(evaluator, prompts=evaluator.prompts[:TIMED]), len(evaluator.prompts)
    shown = min(experiment.evaluate.samples, held_out)
    with acting(policy), runtime.accelerator.autocast(), tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        part.evaluate(policy, runtime.fresh_generator("evaluate"))
        evaluated = time.perf_counter()
        if shown:
            part.samples(policy, runtime.fresh_generator("samples"), Path(folder), 1)
        sampled = time.perf_counter()
    return (evaluated - began) * held_out / len(part.prompts) + (sampled - evaluated) * shown


def sheet_of(pictures: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """All pictures in rows, each with its label below it."""
    width, height = pictures[0].size
    scale = min(1.0, SIDE / max(width, height)) if max(width, height) > SIDE else max(1, 64 // max(width, height))
    cell = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (cell[0] + 2), rows * (cell[1] + LABEL + 2)), "white")
    pen = ImageDraw.Draw(sheet)
    way = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        row, column = divmod(number, columns)
        left, top = column * (cell[0] + 2), row * (cell[1] + LABEL + 2)
        sheet.paste(picture.convert("RGB").resize(cell, way), (left, top))
        pen.text((left + 2, top + cell[1] + 1), label, fill="black")
    return sheet
