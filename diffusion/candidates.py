"""Many pictures of each prompt from one pipeline, for the best of n of an evaluation of rewards."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from diffusion.evaluation import ROWS
from diffusion.policy import DiffusionPolicy, PolicyConfig
from diffusion.prompts import as_samples, read_prompts
from diffusion.sampling import SamplingConfig, draw
from mmrl.recipes import existing_asset
from mmrl.types import Samples
from rewards.evaluation import Candidates


@dataclass(frozen=True)
class Pipeline(Candidates):
    """`per_prompt` pictures of each line of the file `prompts`, of which the first `limit` are read, drawn as in
    training."""

    policy: PolicyConfig
    prompts: str
    sampling: SamplingConfig = SamplingConfig()
    per_prompt: int = 64
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_prompt < 2:
            raise ValueError(
                f"candidates.per_prompt is {self.per_prompt}: the best of one is no choice, give 2 or more"
            )
        read_prompts(self.prompts, "candidates.prompts")  # what is not there is found out before anything is drawn
        existing_asset(self.policy.model)

    def draw(self) -> Samples:
        asked = read_prompts(self.prompts, "candidates.prompts")[: self.limit]
        policy = DiffusionPolicy.load(replace(self.policy, model=existing_asset(self.policy.model))).eval()
        generator = torch.Generator(policy.device).manual_seed(self.seed)
        pictures = []
        for one in asked:
            for start in range(0, self.per_prompt, ROWS):
                count = min(ROWS, self.per_prompt - start)
                pictures += draw(policy, [one], count, self.sampling, generator).pictures
        return as_samples([one for one in asked for _ in range(self.per_prompt)], pictures)
