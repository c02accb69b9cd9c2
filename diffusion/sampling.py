"""Drawing pictures with the pipeline's own call, and recording how."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from diffusion.capture import check_decoding, recording, transitions_of
from diffusion.policy import DiffusionPolicy
from diffusion.prompts import Asked
from diffusion.transitions import DenoiseTransitions

Window = list[bool]
"""Which steps are drawn with noise."""


@dataclass(frozen=True)
class SamplingConfig:
    """How pictures are drawn: `steps`, guidance (null: the pipeline's default), size in pixels (null: the model's own).
    `train_steps` of them, in a row, are drawn with noise and trained, at a place drawn anew for each rollout
    (Flow-GRPO-Fast, MixGRPO); null means all that have noise. `extra` goes to the pipeline's call as it is."""

    steps: int = 20
    guidance: float | None = None
    size: tuple[int, int] | None = None
    train_steps: int | None = None
    extra: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"sampling.steps is {self.steps}: give 1 or more")
        if self.train_steps is not None and not 1 <= self.train_steps <= self.steps:
            raise ValueError(
                f"sampling.train_steps is {self.train_steps}: give 1 to sampling.steps ({self.steps}), or null"
            )

    def window(self, generator: torch.Generator) -> Window | None:
        """A place for `train_steps`; None where every step may have noise. The last step has none in any case, so it is
        never the only one."""
        if self.train_steps is None:
            return None
        places = max(1, self.steps - self.train_steps)
        start = int(torch.randint(places, (1,), generator=generator, device=generator.device))
        return [start <= step < start + self.train_steps for step in range(self.steps)]


@dataclass(frozen=True)
class Drawn:
    """Pictures, and the decisions that made them."""

    pictures: list[Image.Image]  # B
    transitions: DenoiseTransitions  # B
    logprobs: Tensor  # (B, K), 0 where there is no decision
    mask: Tensor  # (B, K) bool: a decision that is trained
    values: Tensor | None = None  # (B, K), of the states before the steps; None without a critic


@torch.no_grad()
def draw(
    policy: DiffusionPolicy,
    asked: Sequence[Asked],
    group: int,
    config: SamplingConfig,
    generator: torch.Generator,
    window: Window | None = None,
) -> Drawn:
    """`group` pictures of each prompt, rows in order of the prompts. All noise is of `generator`, and so is the window
    where none is given.

    Raises:
        CannotReplay: the pipeline does something that training could not do again.
    """
    pipeline, index = policy.placed_pipeline(), [number for number, _ in enumerate(asked) for _ in range(group)]
    options = call_options(policy, config)
    window = window or config.window(generator)
    texts = [asked[number].prompt for number in index]
    if isinstance(options.get("negative_prompt"), str):  # some pipelines want as many as there are prompts
        options["negative_prompt"] = [options["negative_prompt"]] * len(texts)
    with policy.encoded.around(pipeline), recording(pipeline, policy.stepper, generator, window) as record:
        found = pipeline(
            prompt=texts, num_inference_steps=config.steps, output_type="pil", generator=generator, **options
        )
    transitions = transitions_of(record, index, asked, float(getattr(pipeline, "guidance_scale", 1.0)))
    latents, means, stds = transitions.latents[:, 1:], torch.stack(record.means, 1), torch.stack(record.stds, 1)
    stds = stds.expand(len(index), *stds.shape[1:])
    noisy = stds.flatten(2)[..., 0] > 0
    mask = noisy if window is None else noisy & torch.tensor([window], device=noisy.device)
    if policy.report_outcome:  # the last step is the one that is trained: its outcome is differentiated
        check_decoding(record, pipeline.vae)
        if bool(noisy[:, -1].any()):
            raise ValueError("Pathwise differentiates a last step without noise, and this sampler's has some")
        mask = torch.arange(noisy.shape[1], device=noisy.device).expand_as(noisy) == noisy.shape[1] - 1
    logprobs = torch.where(mask, policy.log_density(latents, means, stds), 0.0)
    rows, steps = (number.flatten() for number in torch.meshgrid(*map(torch.arange, mask.shape), indexing="ij"))
    worth = policy.worth(torch.stack(record.guided, 1).flatten(0, 1), transitions, rows, steps.to(mask.device))
    values = worth.values
    return Drawn(list(found.images), transitions, logprobs, mask, None if values is None else values.view(mask.shape))


def joined(parts: Sequence[Drawn]) -> Drawn:
    """Several drawings as one, in order."""
    if len(parts) == 1:
        return parts[0]
    values = [part.values for part in parts if part.values is not None]
    return Drawn(
        [picture for part in parts for picture in part.pictures],
        DenoiseTransitions.joined([part.transitions for part in parts]),
        torch.cat([part.logprobs for part in parts]),
        torch.cat([part.mask for part in parts]),
        torch.cat(values) if values else None,
    )


def call_options(policy: DiffusionPolicy, config: SamplingConfig) -> dict[str, object]:
    """Arguments for this pipeline's call.

    Raises:
        ValueError: `extra` holds something that it does not take.
    """
    known = inspect.signature(type(policy.pipeline).__call__).parameters
    unknown = [name for name in config.extra if name not in known]
    if unknown:
        raise ValueError(f"sampling.extra has {unknown}, which {type(policy.pipeline).__name__} does not take")
    options = dict(config.extra)
    if config.guidance is not None:
        options["guidance_scale"] = config.guidance
    if config.size is not None:
        options["height"], options["width"] = config.size
    return options
