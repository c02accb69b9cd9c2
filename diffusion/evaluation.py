"""Held-out evaluation of pictures, from the same noise every time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from diffusion.collector import as_samples
from diffusion.policy import DiffusionPolicy
from diffusion.prompts import Asked
from diffusion.sampling import SamplingConfig, draw
from mmrl.metrics import mean_of
from mmrl.types import Estimate, Evaluator, Policy, RewardFunction
from rewards.compose import WeightedSum, checked

ROWS = 16
"""Pictures drawn at once."""


@dataclass(frozen=True)
class PictureEvaluator(Evaluator):
    """`reward` and its parts on the held-out prompts, and whatever is under `evaluate.metrics`, which is never trained
    on. Pictures are drawn as in training, all steps with their noise."""

    prompts: Sequence[Asked]
    sampling: SamplingConfig
    reward: WeightedSum
    metrics: Mapping[str, RewardFunction]

    def evaluate(self, policy: Policy, generator: torch.Generator) -> dict[str, Estimate]:
        samples = as_samples(self.prompts, self.pictures(policy, self.prompts, generator))
        scores = self.reward(samples)
        found = {"reward": mean_of(scores.values, scores.applicable)}
        if len(scores.parts) > 1:
            found |= {f"reward_{name}": mean_of(part.values, part.applicable) for name, part in scores.parts.items()}
        for name, metric in self.metrics.items():
            measured = checked(name, metric, samples, "evaluate.metrics")
            found[name] = mean_of(measured.values, measured.applicable)
        return found

    def pictures(self, policy: Policy, prompts: Sequence[Asked], generator: torch.Generator) -> list[Image.Image]:
        """One picture of each prompt."""
        assert isinstance(policy, DiffusionPolicy)
        found: list[Image.Image] = []
        for start in range(0, len(prompts), ROWS):
            texts = [asked.prompt for asked in prompts[start : start + ROWS]]
            found += draw(policy, texts, 1, self.sampling, generator).pictures
        return found

    def samples(self, policy: Policy, generator: torch.Generator, folder: Path, count: int) -> None:
        chosen = self.prompts[:count]
        if not chosen:
            return
        pictures = self.pictures(policy, chosen, generator)
        scores = self.reward(as_samples(chosen, pictures))
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, (asked, picture) in enumerate(zip(chosen, pictures, strict=True)):
            picture.save(folder / f"{number:03d}.png")
            parts = {name: float(p.values[number]) for name, p in scores.parts.items() if p.applicable[number]}
            rows.append({
                "id": asked.id, "images": [f"{number:03d}.png"], "prompt": asked.prompt,
                "reward": float(scores.values[number]), "parts": parts,
            })  # fmt: skip
        (folder / "samples.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
