"""Recorded denoising: the latents of every row, and what the denoiser was told, kept once a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from mmrl.types import Transitions


@dataclass(frozen=True)
class Call:
    """The arguments of the denoiser, by place in its call (a path such as `added_cond_kwargs.text_embeds`).

    `copies` is 2 where a pipeline sends the unconditional and the conditional half as one batch, else 1."""

    copies: int
    prompts: Mapping[str, Tensor]  # path -> (P, copies, ...): differs by prompt, not by step
    steps: Mapping[str, Tensor]  # path -> (K, ...): differs by step, not by row, and is given once or once a row
    shared: Mapping[str, object]  # path -> anything that is always the same
    latent: str  # path of the noisy latent
    guidance: float | None  # of uncond + guidance (cond - uncond); None without


@dataclass(frozen=True)
class DenoiseTransitions(Transitions):
    """B rows of K denoise steps over P distinct prompts."""

    latents: Tensor  # (B, K+1, ...)
    inputs: Tensor | None  # (B, K, ...), where a scheduler scales the latent; None: the latent itself
    prompt_index: Tensor  # (B,) long
    table: Mapping[str, Tensor]  # name -> (K,) float64, of the stepper
    noisy: Tensor  # (B, K) bool: the step was drawn with noise
    call: Call

    def rows(self, index: Tensor) -> Self:
        used, renumbered = torch.unique(self.prompt_index[index], return_inverse=True)
        kept = {path: tensor[used] for path, tensor in self.call.prompts.items()}
        return replace(
            self,
            latents=self.latents[index],
            inputs=None if self.inputs is None else self.inputs[index],
            prompt_index=renumbered,
            noisy=self.noisy[index],
            call=replace(self.call, prompts=kept),
        )

    def to(self, device: torch.device) -> Self:
        def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device) for name, tensor in tensors.items()}

        shared = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in self.call.shared.items()}
        call = replace(self.call, prompts=moved(self.call.prompts), steps=moved(self.call.steps), shared=shared)
        return replace(
            self,
            latents=self.latents.to(device),
            inputs=None if self.inputs is None else self.inputs.to(device),
            prompt_index=self.prompt_index.to(device),
            table=moved(self.table),
            noisy=self.noisy.to(device),
            call=call,
        )

    def __len__(self) -> int:
        return len(self.latents)
