"""Held-out evaluation of pictures, from the same noise every time, and what to watch beside the reward."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from diffusion.policy import DiffusionPolicy, scheduler_class
from diffusion.prompts import Asked, as_samples
from diffusion.sampling import Drawn, SamplingConfig, call_options, draw
from mmrl.metrics import mean_of
from mmrl.types import Estimate, Evaluator, Policy, RewardFunction
from rewards.compose import WeightedSum, checked
from rewards.pictures.watchdogs import default_watchdogs

ROWS = 48
"""Pictures drawn at once, at most."""
Watched = Literal["dark_share", "colour_entropy", "diversity", "kl"]
WATCHED: tuple[Watched, ...] = ("dark_share", "colour_entropy", "diversity", "kl")


@dataclass(frozen=True)
class SheetConfig:
    """The sampler that the pictures are for, so that samples show it beside the one of training: the scheduler's class
    in diffusers, steps, guidance and size as in `sampling`; null means as there. `seeds` are of the noise, one picture
    each."""

    scheduler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None
    seeds: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if self.scheduler is not None:
            scheduler_class(self.scheduler, "sheet.scheduler")

    def sampling(self, config: SamplingConfig) -> SamplingConfig:
        """The same in the terms of `sampling`."""
        changed = {name: vars(self)[name] for name in ("steps", "guidance", "size") if vars(self)[name] is not None}
        return replace(config, train_steps=None, **changed)


@dataclass(frozen=True)
class PictureEvaluator(Evaluator):
    """`reward` and its parts on `per_prompt` pictures of each held-out prompt, whatever is under `evaluate.metrics`,
    which is never trained on, and the watchdogs. Pictures are drawn as in training, all steps with their noise."""

    prompts: Sequence[Asked]
    sampling: SamplingConfig
    reward: WeightedSum
    metrics: Mapping[str, RewardFunction]
    per_prompt: int = 1
    watch: Sequence[Watched] = ()
    reference: Policy | None = None
    sheet: SheetConfig | None = None
    anchors: Mapping[str, Sequence[object]] | None = None
    """Of prompts, as many as pictures: the column `anchor`."""

    def evaluate(self, policy: Policy, generator: torch.Generator) -> dict[str, Estimate]:
        assert isinstance(policy, DiffusionPolicy)
        pictures: list[Image.Image] = []
        divergence: list[Tensor] = []
        for drawn in self.drawn(policy, self.prompts, self.per_prompt, generator):
            pictures += drawn.pictures
            if "kl" in self.watch and self.reference is not None:
                divergence.append(kl_to(self.reference, policy, drawn))
        asked = [one for one in self.prompts for _ in range(self.per_prompt)]
        samples = as_samples(asked, pictures, self.anchors)
        scores = self.reward(samples)
        found = {"reward": mean_of(scores.values, scores.applicable)}
        if len(scores.parts) > 1:
            found |= {f"reward_{name}": mean_of(part.values, part.applicable) for name, part in scores.parts.items()}
        known = default_watchdogs()
        watchdogs = {name: known[name] for name in self.watch if name in known}
        for name, metric in {**self.metrics, **watchdogs}.items():
            measured = checked(name, metric, samples, "evaluate.metrics")
            if name not in watchdogs or bool(measured.applicable.any()):  # one picture alone has no diversity
                found[name] = mean_of(measured.values, measured.applicable, cases=name in self.metrics)
        if divergence:
            values = torch.cat(divergence).cpu()
            found["kl"] = mean_of(values, torch.ones(len(values), dtype=torch.bool), cases=False)
        return found

    def drawn(
        self, policy: DiffusionPolicy, prompts: Sequence[Asked], each: int, generator: torch.Generator
    ) -> Iterator[Drawn]:
        """`each` pictures of every prompt, some prompts at a time."""
        size, sampling = max(1, ROWS // each), replace(self.sampling, train_steps=None)
        for start in range(0, len(prompts), size):
            yield draw(policy, prompts[start : start + size], each, sampling, generator)

    def samples(self, policy: Policy, generator: torch.Generator, folder: Path, count: int) -> None:
        assert isinstance(policy, DiffusionPolicy)
        chosen = self.prompts[:count]
        if not chosen:
            return
        pictures = [p for drawn in self.drawn(policy, chosen, 1, generator) for p in drawn.pictures]
        scores = self.reward(as_samples(chosen, pictures, self.anchors))
        shown = [[picture] for picture in pictures]
        for seed in self.sheet.seeds if self.sheet is not None else ():
            for row, picture in zip(shown, self._produced(policy, chosen, seed), strict=True):
                row.append(picture)
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, (asked, row) in enumerate(zip(chosen, shown, strict=True)):
            names = [f"{number:03d}.png", *(f"{number:03d}_sheet{i}.png" for i in range(1, len(row)))]
            for name, picture in zip(names, row, strict=True):
                picture.save(folder / name)
            parts = {name: float(p.values[number]) for name, p in scores.parts.items() if p.applicable[number]}
            rows.append({
                "id": asked.id, "images": names, "prompt": asked.prompt, "output": self._told(),
                "reward": float(scores.values[number]), "parts": parts,
            })  # fmt: skip
        (folder / "samples.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))

    def _told(self) -> str:
        """Which picture was drawn how."""
        if self.sheet is None:
            return ""
        scheduler, steps = self.sheet.scheduler or "the same scheduler", self.sheet.sampling(self.sampling).steps
        return f"first: as in training, {self.sampling.steps} steps; then: {scheduler}, {steps} steps"

    @torch.no_grad()
    def _produced(self, policy: DiffusionPolicy, prompts: Sequence[Asked], seed: int) -> list[Image.Image]:
        """One picture of each prompt by the plain pipeline with the sheet's scheduler, from noise of `seed`."""
        assert self.sheet is not None
        sampling, pipeline = self.sheet.sampling(self.sampling), policy.placed_pipeline()
        own, found = pipeline.scheduler, []
        if self.sheet.scheduler is not None:
            pipeline.scheduler = scheduler_class(self.sheet.scheduler, "sheet.scheduler").from_config(own.config)
        try:
            for asked in prompts:
                noise = torch.Generator(policy.device).manual_seed(seed)  # a prompt's noise does not hang on the others
                drawn = pipeline(
                    prompt=asked.prompt, num_inference_steps=sampling.steps, generator=noise, **call_options(policy,
                    sampling)
                )  # fmt: skip
                found.append(drawn.images[0])
        finally:
            pipeline.scheduler = own
        return found


@torch.no_grad()
def kl_to(reference: Policy, policy: DiffusionPolicy, drawn: Drawn) -> Tensor:
    """KL (B,) from `policy` to `reference`, of the Gaussians of all steps of each row together; a mean or a sum over
    the dimensions of a latent as `logprob_reduction` has it."""
    transitions = drawn.transitions
    steps = torch.arange(transitions.noisy.shape[1], device=policy.device).expand(len(transitions), -1)
    with policy.log_probs_alone():
        ours, theirs = policy(transitions, steps), reference(transitions, steps)
    assert ours.means is not None
    assert ours.stds is not None
    assert theirs.means is not None
    return policy.divergence(ours.means, theirs.means, ours.stds).sum(-1)
