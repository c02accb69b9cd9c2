"""How good the pictures of a pipeline are by sampler and number of steps: the table that comes with a small
pipeline."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from diffusion.policy import DiffusionPolicy, PolicyConfig
from diffusion.prompts import Asked, as_samples
from diffusion.sampling import SamplingConfig, draw
from diffusion.steppers import Stepper
from mmrl.metrics import mean_of
from mmrl.types import RewardFunction
from rewards.compose import checked

ROWS = 48
"""Pictures drawn at once."""


@dataclass(frozen=True)
class Sampler:
    """A row of the table: scheduler and stepper as in `policy`, the others as in `sampling`."""

    steps: int
    guidance: float | None = None
    scheduler: str | None = None
    stepper: Stepper | None = None
    extra: dict[str, object] = field(default_factory=dict)


def table(
    folder: Path,
    samplers: Sequence[Sampler],
    prompts: Sequence[Asked],
    metrics: Mapping[str, RewardFunction],
    generator: torch.Generator,
) -> list[dict[str, object]]:
    """One picture of each prompt by each sampler, from the same noise; figures and milliseconds of CPU a picture."""
    rows, start = [], generator.get_state()
    for sampler in samplers:
        policy = DiffusionPolicy.load(
            PolicyConfig(str(folder), scheduler=sampler.scheduler, stepper=sampler.stepper)
        ).eval()
        sampling = SamplingConfig(sampler.steps, sampler.guidance, extra=sampler.extra)
        generator.set_state(start)
        began, pictures = time.process_time(), []
        for first in range(0, len(prompts), ROWS):
            pictures += draw(policy, prompts[first : first + ROWS], 1, sampling, generator).pictures
        spent = time.process_time() - began
        samples = as_samples(prompts, pictures)
        figures = {}
        for name, metric in metrics.items():
            scores = checked(name, metric, samples, "metrics")
            figures[name] = asdict(mean_of(scores.values, scores.applicable))
        told = {name: value for name, value in asdict(sampler).items() if value not in (None, {})}
        told |= {"stepper": type(policy.stepper).__name__} | (
            {"noise": policy.stepper.noise} if sampler.stepper else {}
        )
        rows.append({**told, **figures, "ms_per_picture": round(1000 * spent / len(pictures), 1)})
    return rows
