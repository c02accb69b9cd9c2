"""Acting without training: what `mmrl rollout` does in any domain."""

from __future__ import annotations

import json
import time
from pathlib import Path

from mmrl.experiment import Experiment
from mmrl.metrics import rollout_metrics
from mmrl.runtime import Runtime, acting


def roll(experiment: Experiment, runtime: Runtime, output: Path) -> dict[str, object]:
    """One rollout of an experiment's start and samples of its evaluation, written to `output`; returns rewards and
    throughput."""
    parts = experiment.build(runtime)
    experiment.begin(parts, runtime, None)
    parts.to(runtime.device)
    with acting(parts.policy):
        began = time.perf_counter()
        rollout = parts.collector.collect(parts.policy, runtime.generator("collect"))
        seconds = time.perf_counter() - began
        count = experiment.evaluate.samples
        parts.evaluator.samples(parts.policy, runtime.fresh_generator("samples"), output, count)
    figures = {
        **rollout_metrics(rollout),
        "seconds": seconds,
        "samples_per_s": len(rollout) / seconds,
        "decisions_per_s": float(rollout.mask.sum()) / seconds,
    }
    (output / "rollout.json").write_text(json.dumps(figures, indent=1))
    return dict(figures)
