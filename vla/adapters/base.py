"""What the rest of the domain asks of a flow-matching policy: what it reads of an observation, its velocity, and how a
denoised chunk becomes actions. The denoise loop is ours (`vla.chains`)."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors.torch import load_model
from torch import Tensor, nn

from vla.adapters.lora import LoRA
from vla.mapping import Observe, Told, Wiring, check_actions, wire
from vla.sim.base import Observations, Simulator

Trained = Literal["expert", "full"]
Reads = Literal["expert", "vlm"]

Inputs = Mapping[str, Tensor]
"""What a model is given of n observations, by name, (n, ...): normalised, tokenised, resized. This is recorded."""


class Prefix(abc.ABC):
    """What a model has computed of n observations before the first denoise step, such as keys and values."""

    @abc.abstractmethod
    def rows(self, index: Tensor) -> Self:
        """Those of `index` (LongTensor)."""


class Adapter(nn.Module, abc.ABC):
    """A policy of lerobot with its processors. Letters: n rows, H and A of a chunk as it is denoised (both may be more
    than is executed), K denoise steps, W numbers of a hidden layer.

    Made from the policy, its processors, and `denoise_steps` and `execute` of the config (null: the policy's own)."""

    policy: PreTrainedPolicy
    chunk: tuple[int, int]  # H, A
    action_size: int
    """Actions of the controller; what of A is beyond is padding."""
    execute: int
    """Actions of a chunk that are executed before the next observation."""
    denoise_steps: int  # K
    hidden_size: int  # W
    noise_outputs: int
    """Numbers that a noise head gives for one hidden vector: A where there is one a chunk's action, else H * A."""
    feature_size: int
    """Of what a critic reads."""
    wiring: Wiring | None = None
    """Which cameras and numbers its features are; None: matched with what it is shown."""

    def prepare(
        self, train: Trained | None, lora: LoRA | None, reads: Reads | None, generator: torch.Generator
    ) -> None:
        """Choose what is trained and what a critic reads; null is the policy's usual. Here: all of a small policy.

        Raises:
            ValueError: the policy has no such part.
        """
        for name, given in (("train", train if train != "full" else None), ("adapter", lora), ("critic.reads", reads)):
            if given is not None:
                raise ValueError(
                    f"policy.{name} is {given!r}, and a {self.policy.config.type} has no action expert beside a VLM: "
                    "leave it out"
                )

    def connect(self, simulator: Simulator, observe: Observe | None) -> None:
        """Find where in `simulator` each feature comes from (`vla.mapping.wire`), and check the controller.

        Raises:
            ValueError: something does not fit; both sides are named.
        """
        self.wiring = wire(self.policy.config.input_features, Told.of(simulator), observe)
        check_actions(self.action_size, simulator)

    def read(self, seen: Observations) -> dict[str, Any]:
        """What the preprocessor takes of n observations."""
        wiring = self.wiring
        if wiring is None:
            told = Told("the task", tuple(seen.images), seen.state.shape[1], {})
            wiring = wire(self.policy.config.input_features, told, None)
        return wiring(seen)

    @abc.abstractmethod
    def inputs(self, observations: Observations) -> Inputs:
        """What the model is given of n observations, after the policy's own preprocessor."""

    @abc.abstractmethod
    def prefix(self, inputs: Inputs) -> Prefix:
        """Everything that does not depend on the noisy chunk."""

    @abc.abstractmethod
    def velocity(self, prefix: Prefix, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity (n, H, A) at x_t (n, H, A) and time (n,), and the hidden vectors before it, (n, W) or (n, H, W)."""

    @abc.abstractmethod
    def features(self, inputs: Inputs, prefix: Prefix) -> Tensor:
        """What a critic reads (n, feature_size), without gradient."""

    @abc.abstractmethod
    def actions(self, chunk: Tensor) -> Tensor:
        """Actions (n, execute, action_size) for the controller, of a denoised chunk (n, H, A)."""

    processors: tuple[Any, Any]
    """The policy's own, before and after."""

    def export(self, folder: Path) -> None:
        """A folder that lerobot's own loader takes."""
        self.save(folder)

    def save(self, folder: Path) -> None:
        """What `load_weights` reads back."""
        self.policy.save_pretrained(folder)
        for processor in self.processors:
            processor.save_pretrained(folder)

    def load_weights(self, folder: Path) -> None:
        """Read back what `save` wrote."""
        load_model(self.policy, folder / "model.safetensors")
