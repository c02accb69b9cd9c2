"""Drawing pictures with the pipeline's own call, and recording how."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from diffusion.capture import recording, transitions_of
from diffusion.policy import DiffusionPolicy
from diffusion.transitions import DenoiseTransitions


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


@dataclass(frozen=True)
class Drawn:
    """Pictures, and the decisions that made them."""

    pictures: list[Image.Image]  # B
    transitions: DenoiseTransitions  # B
    logprobs: Tensor  # (B, K), 0 where there is no decision
    mask: Tensor  # (B, K) bool: a decision that is trained
    dimensions: int  # of one latent


@torch.no_grad()
def draw(
    policy: DiffusionPolicy, prompts: Sequence[str], group: int, config: SamplingConfig, generator: torch.Generator
) -> Drawn:
    """`group` pictures of each prompt, rows in order of the prompts. All noise is of `generator`.

    Raises:
        CannotReplay: the pipeline does something that training could not do again.
    """
    pipeline, index = policy.pipeline, [number for number, _ in enumerate(prompts) for _ in range(group)]
    if pipeline.device != policy.device:
        pipeline.to(policy.device)
    window = _window(policy, config, generator)
    options = _options(policy, config)
    texts = [prompts[number] for number in index]
    with recording(pipeline, policy.stepper, generator, window) as record:
        found = pipeline(
            prompt=texts, num_inference_steps=config.steps, output_type="pil", generator=generator, **options
        )
    transitions = transitions_of(record, index, float(getattr(pipeline, "guidance_scale", 1.0)))
    latents, means, stds = transitions.latents[:, 1:], torch.stack(record.means, 1), torch.stack(record.stds, 1)
    decision = (stds.expand(len(index), *stds.shape[1:]).flatten(2)[..., 0] > 0) & _trained(window, transitions)
    logprobs = torch.where(decision, policy.log_density(latents, means, stds.expand(len(index), *stds.shape[1:])), 0.0)
    return Drawn(list(found.images), transitions, logprobs, decision, latents[0, 0].numel())


def _options(policy: DiffusionPolicy, config: SamplingConfig) -> dict[str, object]:
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


def _window(policy: DiffusionPolicy, config: SamplingConfig, generator: torch.Generator) -> list[bool] | None:
    """Which steps are drawn with noise; the last one has none in any case, so it is never the only one."""
    if config.train_steps is None:
        return None
    places = max(1, config.steps - config.train_steps)
    start = int(torch.randint(places, (1,), generator=generator, device=generator.device))
    return [start <= step < start + config.train_steps for step in range(config.steps)]


def _trained(window: list[bool] | None, transitions: DenoiseTransitions) -> Tensor:
    """Steps (B, K) that enter the loss."""
    if window is None:
        return torch.ones_like(transitions.noisy)
    return torch.tensor([window], device=transitions.noisy.device).expand_as(transitions.noisy)
