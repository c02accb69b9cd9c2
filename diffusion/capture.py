"""Records what a diffusers pipeline does while it draws pictures, so that each step can be scored again.

Nothing of a pipeline's `__call__` is copied. While it runs, two methods of its parts are stood in for: the denoiser's
`forward`, whose arguments are kept, and the scheduler's `step`, which draws from our own Gaussian. A pipeline that does
something between the two that could not be done again is refused, never guessed at.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from diffusion.prompts import Asked
from diffusion.steppers import Stepper
from diffusion.transitions import Call, DenoiseTransitions


class CannotReplay(ValueError):
    """A pipeline does something that cannot be done again in training."""


@dataclass
class Recording:
    """One run of a pipeline: per step what the denoiser was told, and what became of the latent."""

    stepper: Stepper
    generator: torch.Generator
    stochastic: Sequence[bool] | None  # which steps have noise; None = all
    arguments: list[dict[str, object]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)  # of the denoiser, before guidance
    guided: list[Tensor] = field(default_factory=list)  # what the scheduler was given
    latents: list[Tensor] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)
    stds: list[Tensor] = field(default_factory=list)
    table: dict[str, Tensor] = field(default_factory=dict)
    decoded: list[Tensor] = field(default_factory=list)  # what the autoencoder was given

    def noisy(self, step: int) -> bool:
        """Whether this step is drawn with noise."""
        return self.stochastic is None or not self.stepper.ode_without_noise or self.stochastic[step]


def denoiser_name(pipeline: DiffusionPipeline) -> str:
    """`unet` or `transformer`.

    Raises:
        CannotReplay: the pipeline has neither, or both.
    """
    found = [name for name in ("unet", "transformer") if isinstance(pipeline.components.get(name), nn.Module)]
    if len(found) != 1 or pipeline.components.get("transformer_2") is not None:
        raise CannotReplay(f"{type(pipeline).__name__} has the denoisers {found}: exactly one can be trained")
    return found[0]


def flattened(node: object, path: str = "") -> dict[str, object]:
    """Nested dictionaries of arguments as paths."""
    if isinstance(node, Mapping) and node:
        parts = [flattened(child, f"{path}.{key}" if path else str(key)) for key, child in node.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {path: node}


def nested(flat: Mapping[str, object]) -> dict[str, object]:
    """The inverse of `flattened`."""
    found: dict[str, object] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        node = found
        for name in parents:
            node = node.setdefault(name, {})  # type: ignore[assignment]
        node[last] = value
    return found


@contextmanager
def recording(
    pipeline: DiffusionPipeline, stepper: Stepper, generator: torch.Generator, stochastic: Sequence[bool] | None
) -> Iterator[Recording]:
    """Record the one run of `pipeline` that happens inside."""
    record = Recording(stepper, generator, stochastic)
    denoiser, scheduler, vae = pipeline.components[denoiser_name(pipeline)], pipeline.scheduler, pipeline.vae
    decode = vae.decode
    signature, forward = inspect.signature(type(denoiser).forward), denoiser.forward

    def listen(*args: object, **kwargs: object) -> object:
        bound = signature.bind(denoiser, *args, **kwargs)
        record.arguments.append(flattened({k: v for k, v in bound.arguments.items() if k != "self"}))
        output = forward(*args, **kwargs)
        record.outputs.append(output[0])
        return output

    def step(output: Tensor, timestep: object, sample: Tensor, *_: object, **options: object) -> object:
        action = _draw(record, scheduler, output, sample)
        _advance(scheduler, timestep)
        if options.get("return_dict", True):
            return SimpleNamespace(prev_sample=action, denoised=action, pred_original_sample=action)
        return action, action  # LCM's pipeline decodes the second, which is the same at its last step

    def listen_to_decoder(latents: Tensor, *args: object, **kwargs: object) -> object:
        record.decoded.append(latents)
        return decode(latents, *args, **kwargs)

    denoiser.forward, scheduler.step, vae.decode = listen, step, listen_to_decoder
    try:
        yield record
    finally:
        del denoiser.forward, scheduler.step, vae.decode


def _draw(record: Recording, scheduler: object, output: Tensor, sample: Tensor) -> Tensor:
    """The next latent, from our own Gaussian."""
    number = len(record.guided)
    if not record.table:
        record.table = record.stepper.table(scheduler)
        record.latents.append(sample)
    if len(record.arguments) != number + 1:
        raise CannotReplay(f"the denoiser was called {len(record.arguments) - number} times in one step: once is known")
    row = {name: values[number].expand(len(sample)) for name, values in record.table.items()}
    noisy = torch.full((len(sample),), record.noisy(number), device=sample.device)
    mean, std = record.stepper.distribution(output, sample, row, noisy)
    noise = torch.randn(sample.shape, generator=record.generator, device=sample.device, dtype=sample.dtype)
    record.guided.append(output)
    record.means.append(mean)
    record.stds.append(std)
    record.latents.append(mean + std * noise)
    return record.latents[-1]


def _advance(scheduler: object, timestep: object) -> None:
    """Count a step as the scheduler itself would, for those that scale their input by it."""
    if not hasattr(scheduler, "_step_index"):
        return
    if scheduler._step_index is None:
        scheduler._init_step_index(timestep)  # type: ignore[attr-defined]
    scheduler._step_index += 1


def transitions_of(
    record: Recording, prompts: Sequence[int], asked: Sequence[Asked], guidance: float
) -> DenoiseTransitions:
    """What was recorded, with each prompt, of which every row has the number, kept once.

    Raises:
        CannotReplay: the arguments or the guidance cannot be made again from what was recorded.
    """
    rows, steps = len(prompts), len(record.guided)
    first = record.arguments[0]
    latent = next(iter(first))
    copies, odd = divmod(len(first[latent]), rows)  # type: ignore[arg-type]
    if odd or copies not in (1, 2):
        raise CannotReplay(f"the denoiser got {len(first[latent])} latents for {rows} pictures: 1 or 2 each are known")  # type: ignore[arg-type]
    index = torch.tensor(prompts)
    chosen = torch.stack([(index == prompt).nonzero()[0, 0] for prompt in range(max(prompts) + 1)])
    by_prompt, by_step, shared = _sorted_arguments(record, latent, rows, copies, chosen, index)
    inputs = torch.stack([_halves(args[latent], copies)[:, 0] for args in record.arguments], 1)  # type: ignore[arg-type]
    latents = torch.stack(record.latents, 1)
    call = Call(copies, by_prompt, by_step, shared, latent, guidance if copies == 2 else None)
    for output, guided in zip(record.outputs, record.guided, strict=True):
        if not torch.equal(with_guidance(output, call), guided):
            raise CannotReplay(
                "the pipeline changes the denoiser's output in a way that is not plain guidance (guidance_rescale, "
                "perturbed attention, skipped layers?): turn that off in sampling.extra"
            )
    noisy = torch.tensor([[record.noisy(step) for step in range(steps)]]).expand(rows, -1)
    same = torch.equal(inputs, latents[:, :-1])
    return DenoiseTransitions(latents, None if same else inputs, index, record.table, noisy, call, tuple(asked))


def decoder_input(vae: nn.Module, latents: Tensor) -> Tensor:
    """What most pipelines give their autoencoder: the latents (n, ...) scaled back and shifted by its config."""
    found: Tensor = latents / vae.config.scaling_factor  # type: ignore[union-attr]
    shift = vae.config.get("shift_factor")  # type: ignore[union-attr]
    return found if not shift else found + shift


def check_decoding(record: Recording, vae: nn.Module) -> None:
    """That pixels can be made from the last latents with `decoder_input`.

    Raises:
        CannotReplay: this pipeline does something else in between.
    """
    given = torch.cat(record.decoded) if record.decoded else None
    ours = decoder_input(vae, record.latents[-1])
    if given is None or given.shape != ours.shape or not torch.equal(given, ours):
        raise CannotReplay(
            "this pipeline does more to its last latents than the autoencoder's scale and shift, so that a reward "
            "cannot be differentiated by them: use a surrogate such as mmrl.surrogates.PPOClip without Pathwise"
        )


def with_guidance(output: Tensor, call: Call) -> Tensor:
    """uncond + guidance (cond - uncond), or the output itself where there is none."""
    if call.copies == 1:
        return output
    uncond, cond = output.chunk(2)
    return uncond + call.guidance * (cond - uncond)


def _halves(tensor: Tensor, copies: int) -> Tensor:
    """(copies x rows, ...) as (rows, copies, ...)."""
    return tensor.unflatten(0, (copies, -1)).transpose(0, 1)


def _sorted_arguments(
    record: Recording, latent: str, rows: int, copies: int, chosen: Tensor, index: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, object]]:
    """Every argument but the latent as one of: by prompt, by step, always the same."""
    by_prompt: dict[str, Tensor] = {}
    by_step: dict[str, Tensor] = {}
    shared: dict[str, object] = {}
    for path, value in record.arguments[0].items():
        seen = [arguments.get(path) for arguments in record.arguments]
        if path == latent:
            _require(torch.equal(*[_halves(seen[0], copies)[:, n] for n in (0, -1)]), path)  # type: ignore[arg-type]
        elif not isinstance(value, Tensor):
            _require(all(other == value for other in seen), path)
            shared[path] = value
        else:
            still = all(other is value or torch.equal(other, value) for other in seen)  # type: ignore[arg-type]
            batched = value.ndim > 0 and len(value) == rows * copies
            if batched and still:
                halves = _halves(value, copies)
                by_prompt[path] = halves[chosen]
                _require(torch.equal(by_prompt[path][index], halves), path)
            elif still:
                shared[path] = value
            else:
                stacked = torch.stack(seen)  # type: ignore[arg-type]
                _require(value.ndim == 0 or (batched and bool((stacked == stacked[:, :1]).all())), path)
                by_step[path] = stacked if value.ndim == 0 else stacked[:, 0]
    return by_prompt, by_step, shared


def _require(found: bool, path: str) -> None:
    if not found:
        raise CannotReplay(
            f"the denoiser's argument {path!r} changes in a way that cannot be recorded once a prompt or a step"
        )
