"""Any diffusers pipeline as a policy over denoise steps."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from diffusion import adapters
from diffusion.adapters import LoRA
from diffusion.capture import decoder_input, denoiser_name, nested, with_guidance
from diffusion.critic import feature_count, features
from diffusion.encoding import PromptCache
from diffusion.prompts import as_samples
from diffusion.steppers import Stepper, stepper_for
from diffusion.transitions import DenoiseTransitions
from mmrl import gaussian
from mmrl.gaussian import Reduction, log_density
from mmrl.heads import HEADS, CriticConfig, Worth, load_head, make_critic
from mmrl.reference import Reference
from mmrl.statistics import of_gaussian
from mmrl.types import Evaluation, Policy, Samples, Transitions

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()
diffusers_logging.set_verbosity_error()  # it warns of an AutoencoderTiny where another kind is usual


@dataclass(frozen=True)
class PolicyConfig:
    """Which pipeline, a hub name or a folder, and what of its denoiser is trained: all of it, a new LoRA, or one to go
    on from (a file or folder). `logprob_reduction` says whether the log-prob of a step is the mean over the dimensions
    of its latent, as DDPO, RLCM and Flow-GRPO have it (clip ranges of 1e-4 belong to it), or the sum, the density.
    `reference` is what a KL penalty keeps close to: the start, adapter included, or the model without any. `scheduler`
    takes the place of the pipeline's own, by its class in diffusers; `stepper` that of the table's. `offload` keeps
    encoders and autoencoder off the GPU while they are not in use; `attention` xformers needs its package, and a
    GPU. `critic` is V of the state before each step (`diffusion.critic`), for advantages that need one; null: none."""

    model: str
    adapter: LoRA | str | None = None
    reference: Literal["start", "base"] = "start"
    logprob_reduction: Reduction = "mean"
    scheduler: str | None = None
    stepper: Stepper | None = None
    offload: bool = False
    attention: Literal["sdpa", "xformers"] = "sdpa"
    critic: CriticConfig | None = None


class DiffusionPolicy(Policy):
    """A pipeline whose denoiser is trained. A decision is the next latent."""

    windowable = True
    noise = "scheduled"

    def __init__(
        self, pipeline: DiffusionPipeline, config: PolicyConfig, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.name = denoiser_name(pipeline)
        self._pipeline = (pipeline,)  # in a tuple: encoders and autoencoder are no part of the policy
        self.config, self.encoded, self._offloads = config, PromptCache(), False
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        if config.adapter is not None:
            adapters.put_on(pipeline, self.name, config.adapter)
        else:
            pipeline.components[self.name].requires_grad_(True)
        if not any(isinstance(pipeline.components.get(f"text_encoder{end}"), nn.Module) for end in ("", "_2", "_3")):
            raise ValueError(
                f"policy.model {config.model!r} is a {type(pipeline).__name__} without a text encoder, which could not "
                "draw prompts: give a text-to-image pipeline with all its parts"
            )
        self.denoiser: nn.Module = pipeline.components[self.name]
        channels: int = self.denoiser.config.in_channels  # type: ignore[union-attr, assignment]
        self.critic = make_critic(config.critic, feature_count(channels), generator)
        self.stepper = config.stepper or stepper_for(pipeline.scheduler)
        self.differentiable_reward: Callable[[Tensor, Samples], Tensor] | None = None
        """Rewards (n,) of pixels (n, 3, Y, X) in 0..1; read if `report_outcome`."""
        if not any(parameter.requires_grad for parameter in self.denoiser.parameters()):
            raise ValueError(f"policy.adapter {config.adapter!r} leaves nothing to train in the {self.name}")

    @staticmethod
    def load(config: PolicyConfig, generator: torch.Generator | None = None) -> DiffusionPolicy:
        """The pipeline `config.model` in float32. A critic is new, of `generator`.

        Raises:
            ValueError: it is neither a folder that holds a pipeline nor the name of one.
        """
        try:
            parts = _absent(config.model)
            pipeline = DiffusionPipeline.from_pretrained(config.model, torch_dtype=torch.float32, **parts)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"policy.model {config.model!r} could not be loaded as a diffusers pipeline: give a folder written by "
                f"save_pretrained, or a hub name and a network ({str(error).splitlines()[0].partition(' Please')[0]})"
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        if config.scheduler is not None:
            pipeline.scheduler = scheduler_class(config.scheduler, "policy.scheduler").from_config(
                pipeline.scheduler.config
            )
        if config.attention == "xformers":
            _use_xformers(pipeline)
        return DiffusionPolicy(pipeline, config, generator)

    @property
    def pipeline(self) -> DiffusionPipeline:
        """The whole pipeline around the denoiser."""
        return self._pipeline[0]

    def absent(self) -> list[str]:
        """Parts that diffusers wants to be told of when it loads this pipeline, since it was saved without them."""
        optional = type(self.pipeline)._optional_components
        return [name for name, part in self.pipeline.components.items() if part is None and name not in optional]

    def placed_pipeline(self) -> DiffusionPipeline:
        """The pipeline, ready to draw where the denoiser is; encoders and autoencoder come after it, or only when they
        are needed (`offload`)."""
        pipeline, device = self.pipeline, self.device
        if self.config.offload and device.type != "cpu":
            if self._offloads:
                return pipeline
            self._offloads = True
            pipeline._exclude_from_cpu_offload = [self.name]  # it is trained where it is
            pipeline.enable_model_cpu_offload(device=device)
        elif pipeline.device != device:
            pipeline.to(device)
        return pipeline

    def critic_parameters(self) -> Sequence[nn.Parameter]:
        return [] if self.critic is None else list(self.critic.parameters())

    def forward(self, transitions: Transitions, steps: Tensor) -> Evaluation:
        """Log-probs and values (b, t) of the latents that were drawn at `steps`, from one flat batch of (row, step)
        pairs. A step without noise has no density: its log-prob is 0."""
        if not isinstance(transitions, DenoiseTransitions):
            raise TypeError(f"DiffusionPolicy scores DenoiseTransitions, got {type(transitions).__name__}")
        transitions, shape = transitions.to(self.device), steps.shape
        rows = torch.arange(shape[0], device=self.device)[:, None].expand(shape).flatten()
        flat = steps.to(self.device).flatten()
        output = with_guidance(self._denoise(transitions, rows, flat), transitions.call)
        mean, std = self.gaussian(output, transitions, rows, flat)
        worth = self.worth(output, transitions, rows, flat)
        means, stds = mean.unflatten(0, shape), std.unflatten(0, shape)
        drawn = transitions.latents[rows, flat + 1].unflatten(0, shape)
        outcome = self._outcome(transitions, mean, rows, flat).unflatten(0, shape) if self.report_outcome else None
        divergence = None
        if self.kl_reference:
            with torch.no_grad():
                theirs = self.kl_reference[0](transitions, steps).means
            divergence = self.divergence(means, theirs, stds)
        logprobs = self.log_density(drawn, means, stds)
        stats = of_gaussian(self.report, drawn.float(), means.float(), stds.float()) if self.report else {}
        return Evaluation(
            logprobs, means=means, stds=stds, exact_kl=divergence, outcome_rewards=outcome,
            values=None if worth.values is None else worth.values.unflatten(0, shape),
            value_logits=None if worth.logits is None else worth.logits.unflatten(0, shape), bins=worth.bins,
            stats={name: gaussian.reduced(found, self.config.logprob_reduction) for name, found in stats.items()},
        )  # fmt: skip

    @contextmanager
    def log_probs_alone(self) -> Iterator[None]:
        """Inside, an evaluation holds no KL, no outcome's reward and no statistics."""
        asked = self.kl_reference, self.report_outcome, self.report
        self.kl_reference, self.report_outcome, self.report = (), False, ()
        try:
            yield
        finally:
            self.kl_reference, self.report_outcome, self.report = asked

    def gaussian(
        self, output: Tensor, transitions: DenoiseTransitions, rows: Tensor, steps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean (n, ...) and standard deviation (n, 1, ...) of the latents after `steps` (n,) of `rows` (n,), where the
        denoiser's output after guidance is `output` (n, ...)."""
        table = {name: values[steps] for name, values in transitions.table.items()}
        x, noisy = transitions.latents[rows, steps], transitions.noisy[rows, steps]
        mean, std = self.stepper.distribution(output, x, table, noisy)
        return mean, std.expand(len(steps), *std.shape[1:])

    def worth(self, output: Tensor, transitions: DenoiseTransitions, rows: Tensor, steps: Tensor) -> Worth:
        """V (n,) of the states before `steps` (n,) of `rows` (n,), likewise; nothing without a critic."""
        if self.critic is None:
            return Worth()
        x, progress = transitions.seen[rows, steps], steps / (transitions.latents.shape[1] - 1)
        return self.critic.worth(features(x, output, progress))

    def divergence(self, means: Tensor, others: Tensor, stds: Tensor) -> Tensor:
        """KL (b, t) of Gaussians (b, t, ...) of the same deviation, 0 where that is."""
        safe = torch.where(stds > 0, stds, 1.0)
        found = gaussian.kl(means, safe, others, safe, self.config.logprob_reduction)
        return torch.where(stds.flatten(2)[..., 0] > 0, found, 0.0)

    def _outcome(self, transitions: DenoiseTransitions, mean: Tensor, rows: Tensor, steps: Tensor) -> Tensor:
        """The reward (n,) of the picture where a pair is a last step, which ends in its mean; else 0."""
        if self.differentiable_reward is None:
            raise ValueError("DiffusionPolicy.differentiable_reward is not set, and an outcome's reward is asked for")
        last = steps == transitions.latents.shape[1] - 2
        found = mean.new_zeros(len(steps))
        asked = [transitions.asked[number] for number in transitions.prompt_index[rows[last]].tolist()]
        if asked:
            vae = self.pipeline.vae
            decoded = vae.decode(decoder_input(vae, mean[last]), return_dict=False)[0]
            pixels = (decoded.float() / 2 + 0.5).clamp(0, 1)
            found[last] = self.differentiable_reward(pixels, as_samples(asked, pixels)).to(found)
        return found

    def log_density(self, drawn: Tensor, means: Tensor, stds: Tensor) -> Tensor:
        """Log-prob (b, t) of latents (b, t, ...), 0 where the standard deviation is."""
        there = stds.flatten(2)[..., 0] > 0
        safe = torch.where(stds > 0, stds, torch.ones_like(stds))
        found = log_density(drawn.float(), means.float(), safe.float(), self.config.logprob_reduction)
        return torch.where(there, found, 0.0)

    def _denoise(self, transitions: DenoiseTransitions, rows: Tensor, steps: Tensor) -> Tensor:
        """The denoiser's output (copies x n, ...) for n pairs."""
        call, n = transitions.call, len(rows)
        arguments: dict[str, object] = dict(call.shared)
        arguments[call.latent] = torch.cat([transitions.seen[rows, steps]] * call.copies)
        for path, by_prompt in call.prompts.items():
            chosen = by_prompt[transitions.prompt_index[rows]]
            arguments[path] = chosen.transpose(0, 1).flatten(0, 1)
        for path, by_step in call.steps.items():
            arguments[path] = torch.cat([by_step[steps]] * call.copies)
        arguments["return_dict"] = False
        found: Tensor = self.denoiser(**nested(arguments))[0]
        if len(found) != call.copies * n:
            raise RuntimeError(f"the {self.name} gave {len(found)} outputs for {call.copies * n} inputs")
        return found

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    def save_pretrained(self, folder: Path) -> None:
        """The denoiser, or only its LoRA in diffusers' form; a critic beside it."""
        if self.config.adapter is None:
            self.denoiser.save_pretrained(folder)  # type: ignore[operator]
        else:
            adapters.save(self.pipeline, self.name, folder)
        if self.critic is not None:
            save_model(self.critic, str(folder / HEADS))

    def load_weights(self, folder: Path) -> None:
        if self.critic is not None:
            load_head(self.critic, folder / HEADS)
        if self.config.adapter is not None:
            adapters.load(self.denoiser, self.name, folder)
            return
        saved = type(self.denoiser).from_pretrained(folder, torch_dtype=torch.float32)  # type: ignore[attr-defined]
        self.denoiser.load_state_dict(saved.state_dict())

    def reference(self, moved: bool = False) -> Policy:
        """A frozen policy: what a KL penalty keeps close to. `moved`: the adapter is not the config's any more."""
        if self.config.adapter is None:
            frozen = copy.deepcopy(self.denoiser).requires_grad_(False).eval()
            return OtherDenoiser(self, frozen, None)
        if (moved or isinstance(self.config.adapter, str)) and self.config.reference == "start":
            adapters.copy_start(self.denoiser)
            return OtherDenoiser(self, None, adapters.START)
        return OtherDenoiser(self, None, None)  # a new adapter starts as none at all


class OtherDenoiser(Reference):
    """The same policy with a frozen denoiser, another adapter, or none."""

    windowable = True

    def __init__(self, policy: DiffusionPolicy, denoiser: nn.Module | None, adapter: str | None) -> None:
        super().__init__()
        self._policy, self.denoiser, self._adapter = (policy,), denoiser, adapter

    def forward(self, transitions: Transitions, steps: Tensor) -> Evaluation:
        policy = self._policy[0]
        if self.denoiser is None:
            with adapters.using(policy.denoiser, self._adapter):
                return self._scored(policy, transitions, steps)
        own, policy.denoiser = policy.denoiser, self.denoiser
        try:
            return self._scored(policy, transitions, steps)
        finally:
            policy.denoiser = own

    @staticmethod
    def _scored(policy: DiffusionPolicy, transitions: Transitions, steps: Tensor) -> Evaluation:
        with policy.log_probs_alone():
            found: Evaluation = policy(transitions, steps)
        return found


def _absent(model: str) -> dict[str, None]:
    """Parts that a pipeline was saved without; diffusers asks for them unless it is told."""
    index = Path(model, "model_index.json")
    if not index.is_file():
        return {}
    return {name: None for name, found in json.loads(index.read_text()).items() if found == [None, None]}


def scheduler_class(name: str, key: str) -> Callable[..., object]:
    """The class of diffusers called `name`, which the config has under `key`.

    Raises:
        ValueError: there is none.
    """
    found = getattr(diffusers, name, None)
    if found is None or not name.endswith("Scheduler"):
        known = [other for other in dir(diffusers) if other.endswith("Scheduler")]
        near = (difflib.get_close_matches(name, known, n=1) or ["LCMScheduler"])[0]
        raise ValueError(f"{key} {name!r} is not a scheduler of diffusers: give a class such as {near}")
    return found  # type: ignore[no-any-return]


def _use_xformers(pipeline: DiffusionPipeline) -> None:
    try:
        pipeline.enable_xformers_memory_efficient_attention()
    except (ModuleNotFoundError, ValueError, AttributeError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"policy.attention is 'xformers', which cannot be used here ({why}): it needs the package "
            "xformers and a GPU; 'sdpa' needs neither"
        ) from error
