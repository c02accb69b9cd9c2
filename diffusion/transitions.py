"""Recorded denoising: the latents of every row, and what the denoiser was told, kept once a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from diffusion.prompts import Asked
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
    asked: tuple[Asked, ...]  # P, what rewards read of a prompt

    def rows(self, index: Tensor) -> Self:
        used, renumbered = torch.unique(self.prompt_index[index], return_inverse=True)
        kept = {path: tensor[used] for path, tensor in self.call.prompts.items()}
        return replace(
            self,
            latents=self.latents[index],
            inputs=None if self.inputs is None else self.inputs[index],
            prompt_index=renumbered,
            noisy=self.noisy[index],
            asked=tuple(self.asked[number] for number in used.tolist()),
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

    @property
    def seen(self) -> Tensor:
        """What the denoiser was given at each step, (B, K or K+1, ...)."""
        return self.latents if self.inputs is None else self.inputs

    @property
    def dimensions(self) -> int:
        """Of one latent."""
        return self.latents[0, 0].numel()

    def __len__(self) -> int:
        return len(self.latents)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Rows of several recordings of one sampler, in order.

        Raises:
            ValueError: the prompts of the parts have not the same length.
        """
        first, starts = parts[0], [0]
        for part in parts:
            starts.append(starts[-1] + len(part.asked))
        prompts = {}
        for path in first.call.prompts:
            found = [part.call.prompts[path] for part in parts]
            if any(tensor.shape[1:] != found[0].shape[1:] for tensor in found):
                raise ValueError(
                    f"the prompts of one rollout differ in the length of {path!r}, so that they cannot be drawn in "
                    "portions: set rollout.portion to null"
                )
            prompts[path] = torch.cat(found)
        scaled = [part.inputs for part in parts if part.inputs is not None]
        return replace(
            first,
            latents=torch.cat([part.latents for part in parts]),
            inputs=torch.cat(scaled) if scaled else None,
            prompt_index=torch.cat([part.prompt_index + start for part, start in zip(parts, starts, strict=False)]),
            noisy=torch.cat([part.noisy for part in parts]),
            asked=tuple(asked for part in parts for asked in part.asked),
            call=replace(first.call, prompts=prompts),
        )
