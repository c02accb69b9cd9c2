"""Backgrounds by a diffusion model: everything but the object is painted anew, after a description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision.synthetic.records import Generator, Request, Unmade

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Outpainting(Generator):
    """Any inpainting pipeline of diffusers, a hub name or a folder; by default the small one of assets/, which knows
    the words of `vision.backdrops` at 32 pixels. The `prompt` is given around the description. Pictures are worked on
    with `size` pixels a side (null: as they are), in `steps` denoise steps with `guidance`; what comes out is brought
    back to the size of the request, and the object's own pixels are put into it afterwards.

    Raises:
        ValueError: a number is out of range, or (by `prepare`) there is no such pipeline.
    """

    pipeline: str = "assets/vision/outpainter"
    prompt: str = "{description}"
    steps: int = 8
    guidance: float = 1.0
    size: int | None = None
    device: Literal["auto", "cpu"] = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.threads < 1 or (self.size is not None and self.size < 8):
            raise ValueError(
                f"Outpainting has steps {self.steps}, threads {self.threads} and size {self.size}: give 1 or more, and "
                "null or at least 8 pixels"
            )
        if "{description}" not in self.prompt:
            raise ValueError(f"Outpainting.prompt is {self.prompt!r}: say where the {{description}} goes")

    def prepare(self) -> None:
        loaded(self)

    def fill(self, requests: Sequence[Request]) -> list[NDArray[np.uint8] | Unmade]:
        import torch

        pipeline, found = loaded(self), list[NDArray[np.uint8] | Unmade]()
        shape = requests[0].mask.shape
        if any(request.mask.shape != shape for request in requests):
            return [self.fill([request])[0] for request in requests]
        size = (self.size, self.size) if self.size is not None else (shape[1], shape[0])
        painted = pipeline(
            prompt=[self.prompt.format(description=request.description) for request in requests],
            image=[Image.fromarray(request.foreground).resize(size) for request in requests],
            mask_image=[Image.fromarray(~request.mask).convert("L").resize(size) for request in requests],
            width=size[0], height=size[1], num_inference_steps=self.steps, guidance_scale=self.guidance,
            generator=[torch.Generator().manual_seed(request.seed) for request in requests],
        ).images  # fmt: skip
        for picture in painted:
            back = picture.convert("RGB").resize((shape[1], shape[0]), Image.Resampling.LANCZOS)
            found.append(np.asarray(back, np.uint8))
        return found


@cache
def loaded(config: Outpainting) -> DiffusionPipeline:
    """The pipeline of a config, loaded once in a process: a generator is handed to processes as a config."""
    import torch
    from diffusers import AutoPipelineForInpainting
    from diffusers.utils import logging

    from mmrl.recipes import find_asset
    from mmrl.runtime import helper_device

    torch.set_num_threads(config.threads)
    logging.set_verbosity_error()  # it warns of an autoencoder that works
    logging.disable_progress_bar()
    device = helper_device(config.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        found = AutoPipelineForInpainting.from_pretrained(find_asset(config.pipeline), torch_dtype=dtype)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Outpainting.pipeline {config.pipeline!r} could not be loaded as an inpainting pipeline of diffusers: "
            f"give a folder written by save_pretrained, or a hub name and a network ({str(error).splitlines()[0]})"
        ) from error
    found.set_progress_bar_config(disable=True)
    return found.to(device)
