"""What `mmrl check` is told of a vision run: real answers to training questions, and the questions that weigh most."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from mmrl.experiment import Trial, Tried
from mmrl.parts import Parts
from mmrl.runtime import Runtime, acting
from vision.collector import AnswerCollector
from vision.evaluation import AnswerEvaluator
from vision.policy import VisionPolicy
from vision.synthetic.collector import EvolvingCollector

if TYPE_CHECKING:
    from vision.experiments import Experiment

TIMED = 32
"""Held-out examples that the time of an evaluation is measured on."""


def try_out(experiment: Experiment, runtime: Runtime, parts: Parts) -> Trial:
    """One rollout as training would collect it."""
    collector, evaluator, policy = parts.collector, parts.evaluator, parts.policy
    if isinstance(collector, EvolvingCollector):
        collector = collector.answers  # made pictures come steps later
    assert isinstance(collector, AnswerCollector)
    assert isinstance(evaluator, AnswerEvaluator)
    assert isinstance(policy, VisionPolicy)
    with acting(policy), runtime.accelerator.autocast():
        rollout = collector.collect(policy, runtime.generator("collect"))
    asked = collector.asked
    answers = [conversation.answer for conversation in collector.conversations]
    right = evaluator.right(asked, collector.conversations).values
    tried = [
        Tried(e.id, collector.encode.style.text(e, collector.encode.labels), answer, e.answer, bool(r >= 1))
        for e, answer, r in zip(asked, answers, right, strict=True)
    ]
    largest = max(collector.examples, key=lambda example: collector.encode.lengths[example.id])
    tokens = collector.encode.lengths[largest.id]
    return Trial(
        rollout=rollout,
        tried=tried,
        figures={"accuracy": float(right.mean())},
        data=f"{len(collector.examples)} to train on, {len(evaluator.examples)} held out",
        largest=AnswerCollector(
            [largest] * experiment.rollout.prompts,
            collector.encode,
            collector.reward,
            experiment.rollout,
            runtime,
            collector.tool,
        ),
        largest_name=f"{largest.id}: {tokens} tokens, {len(largest.images)} pictures",
        evaluation_s=_evaluation_s(evaluator, policy, runtime),
    )


def _evaluation_s(evaluator: AnswerEvaluator, policy: VisionPolicy, runtime: Runtime) -> float:
    """Seconds of one evaluation, from its first examples; every held-out example is answered three times, those of
    transfer sets once."""
    part = replace(evaluator, examples=evaluator.examples[:TIMED], transfer={}, by=None)
    began = time.perf_counter()
    with acting(policy), runtime.accelerator.autocast():
        part.evaluate(policy, runtime.fresh_generator("evaluate"))
    each = (time.perf_counter() - began) / len(part.examples)
    return each * (len(evaluator.examples) + sum(len(examples) for examples, _ in evaluator.transfer.values()) / 3)
