"""What pi0, pi0.5 and SmolVLA have in common: a VLM whose keys and values an action expert reads.

The VLM is run once for each observation; its keys and values are kept while the chunk is denoised. What is recorded
of an observation is what the model is given (resized images, tokens, masks, state), so that training runs the VLM
again from it, without gradient where it is frozen.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache

from vla.adapters import files
from vla.adapters import lora as loras
from vla.adapters.base import Adapter, Inputs, Prefix, Reads, Trained
from vla.adapters.lora import LoRA, put_on
from vla.sim.base import Observations

IMAGE, MASK, TOKENS, STATE = "image", "mask", "tokens", "state"


@dataclass(frozen=True)
class Cached(Prefix):
    """What the VLM made of n observations of L tokens."""

    mask: Tensor  # (n, L) bool: no padding
    keys: tuple[Tensor, ...]  # each layer's (n, heads, L, size)
    values: tuple[Tensor, ...]
    pooled: Tensor  # (n, Wv), the mean of its last hidden vectors that are no padding, without gradient
    state: Tensor  # (n, S), padded

    def rows(self, index: Tensor) -> Self:
        if len(index) == len(self.mask) and torch.equal(index, torch.arange(len(index), device=index.device)):
            return self  # keys and values are large
        keys, values = (tuple(layer[index] for layer in layers) for layers in (self.keys, self.values))
        return type(self)(self.mask[index], keys, values, self.pooled[index], self.state[index])

    def cache(self) -> DynamicCache:
        """As the expert reads it. What it adds to it is not kept."""
        return DynamicCache(zip(self.keys, self.values, strict=True))


class VLMAdapter(Adapter):
    """One hidden vector for each action of a chunk. Trained is the expert, with what embeds actions and reads
    velocities, or a LoRA on it, or with `full` all but the VLM's unused head.

    A critic reads, with `expert`, the mean hidden vector over the chunk at t = 1 from a chunk of zeros: one fixed
    evaluation, where RLinf takes the mean over the denoise steps of the rollout, which would have to be run again in
    every update. With `vlm` it reads the mean of the VLM's last hidden vectors over tokens that are no padding. Neither
    sends a gradient back.
    """

    expert: ClassVar[str]
    """The layers of the expert, within `policy.model`: what a LoRA is put on."""
    before_the_expert: ClassVar[tuple[str, ...]]
    """Modules of `policy.model` that the prefix is computed with: the VLM."""
    steps_key: ClassVar[str]
    """What K is called in the policy's config."""
    usual_reads: ClassVar[Reads]
    """What a critic reads where the config does not say."""
    policy: PreTrainedPolicy

    def __init__(
        self, policy: PreTrainedPolicy, processors: tuple[Any, Any], denoise_steps: int | None, execute: int | None
    ) -> None:
        super().__init__()
        config: Any = policy.config
        self.policy, self.processors, self.frozen, self.reads = policy, processors, False, self.usual_reads
        self.lora: LoRA | None = None
        self.chunk = (config.chunk_size, config.max_action_dim)
        self.action_size, self.execute = config.output_features[ACTION].shape[0], execute or config.n_action_steps
        if not 1 <= self.execute <= self.chunk[0]:
            raise ValueError(f"policy.execute is {self.execute}: this policy's chunks have {self.chunk[0]} actions")
        self.denoise_steps = denoise_steps or vars(config)[self.steps_key]
        self.hidden_size = self._model.action_out_proj.in_features
        self.noise_outputs = self.chunk[1]
        vars(config).update(
            {"n_action_steps": self.execute, self.steps_key: self.denoise_steps}
        )  # for what is exported

    @property
    def _model(self) -> Any:
        return self.policy.model

    @property
    def feature_size(self) -> int:  # type: ignore[override]
        """Of what a critic reads."""
        return self.hidden_size if self.reads == "expert" else self._vlm_size

    @property
    @abc.abstractmethod
    def _vlm_size(self) -> int:
        """Wv."""

    def prepare(
        self, train: Trained | None, lora: LoRA | None, reads: Reads | None, generator: torch.Generator
    ) -> None:
        if lora is not None and train == "full":
            raise ValueError("policy.train is full and policy.adapter is a LoRA on the expert: leave one of them out")
        self.reads, self.lora, self.frozen = reads or self.usual_reads, lora, train != "full"
        for name, parameter in self._model.named_parameters():
            within = any(name.startswith(f"{part}.") for part in self.before_the_expert)
            parameter.requires_grad_("lm_head" not in name and not (self.frozen and within))
        if lora is not None:
            self._model.requires_grad_(False)
            put_on(self._model.get_submodule(self.expert), lora, generator)

    def inputs(self, observations: Observations) -> Inputs:
        batch = self.processors[0](self.read(observations))
        images, masks = self._images(batch)
        tokens, valid = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK].bool()
        missing = max(self.policy.config.tokenizer_max_length - tokens.shape[1], 0)  # one length for all rows and times
        found = {TOKENS: pad(tokens, (0, missing)), f"{TOKENS}_{MASK}": pad(valid, (0, missing))}
        for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
            found |= {f"{IMAGE}_{number}": image, f"{IMAGE}_{number}_{MASK}": mask}
        found[STATE] = self._state(batch)
        device = self._model.action_out_proj.weight.device
        return {name: tensor.to(device) for name, tensor in found.items()}

    @abc.abstractmethod
    def _images(self, batch: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Images (n, 3, Y, X) as the vision tower takes them, and whether each is one (n,)."""

    def _state(self, batch: dict[str, Any]) -> Tensor:
        """The padded state (n, S)."""
        found: Tensor = self.policy.prepare_state(batch)
        return found

    def prefix(self, inputs: Inputs) -> Cached:
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            mask, hidden, cache = self._see(inputs)
            weights = mask[..., None].to(hidden.dtype)
            pooled = ((hidden * weights).sum(1) / weights.sum(1)).detach().float()
            keys, values = (tuple(getattr(layer, name) for layer in cache.layers) for name in ("keys", "values"))
            return Cached(mask, keys, values, pooled, inputs[STATE])

    @abc.abstractmethod
    def _see(self, inputs: Inputs) -> tuple[Tensor, Tensor, DynamicCache]:
        """Which tokens are no padding (n, L), the VLM's last hidden vectors (n, L, Wv), its keys and values."""

    def velocity(self, prefix: Prefix, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(prefix, Cached)
        with inputs_of(self._model.action_out_proj) as heard:
            found = self._denoise(prefix, x_t, time)
        return found, heard[0]

    @abc.abstractmethod
    def _denoise(self, prefix: Cached, x_t: Tensor, time: Tensor) -> Tensor:
        """lerobot's own velocity (n, H, A)."""

    def features(self, inputs: Inputs, prefix: Prefix) -> Tensor:
        assert isinstance(prefix, Cached)
        if self.reads == "vlm":
            return prefix.pooled
        n = len(prefix.mask)
        with torch.no_grad():
            zeros, ones = prefix.pooled.new_zeros(n, *self.chunk), prefix.pooled.new_ones(n)
            return self.velocity(prefix, zeros, ones)[1].mean(1)

    def actions(self, chunk: Tensor) -> Tensor:
        found: Tensor = self.processors[1](chunk[:, : self.execute, : self.action_size])
        return found

    def save(self, folder: Path) -> None:
        """The whole policy, or the LoRA alone."""
        if self.lora is not None:
            loras.save(self._model, folder)
            return
        super().save(folder)

    def load_weights(self, folder: Path) -> None:
        if self.lora is not None:
            loras.load(self._model, folder)
            return
        super().load_weights(folder)

    def export(self, folder: Path) -> None:
        """A LoRA is in the weights of what is written. A tokenizer that is a folder is copied beside them."""
        state = None if self.lora is None else loras.merged(self.policy)
        self.policy.save_pretrained(folder, state_dict=state)
        for processor in self.processors:
            processor.save_pretrained(folder)
        files.bring_along(self.policy.config, self.processors[0], folder)


def images_of(inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    """The images that a model is given, and whether each is one."""
    numbers = range(sum(name.startswith(IMAGE) for name in inputs) // 2)
    return [inputs[f"{IMAGE}_{n}"] for n in numbers], [inputs[f"{IMAGE}_{n}_{MASK}"] for n in numbers]


@contextlib.contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what a module is given: lerobot's denoise step returns a velocity, not what it was read from."""
    heard: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    try:
        yield heard
    finally:
        handle.remove()
