"""Heads that reinforcement learning puts beside a policy of any domain: perceptrons, such as a critic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmrl.bins import Bins

HEADS = "heads.safetensors"
"""The file that a domain keeps its heads in, beside the weights of its policy."""


@dataclass(frozen=True)
class CriticConfig:
    """Widths of the hidden layers of V(s). What it reads of a state is the domain's to say. With `bins` it classifies
    (`mmrl.hl_gauss`), and says the middle of their range at first instead of 0."""

    widths: tuple[int, ...] = (128, 128)
    bins: Bins | None = None

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"policy.critic.widths is {self.widths}: give one width or more")


class Perceptron(nn.Module):
    """Tanh layers, and a last linear one that starts at zero. First weights are of `generator`, or of torch's own."""

    def __init__(self, sizes: Sequence[int], generator: torch.Generator | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        initialise(self, generator)
        last = self.layers[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).tanh()
        found: Tensor = self.layers[-1](x)
        return found


class Critic(Perceptron):
    """V of features (..., F): a number, or a distribution over bins."""

    def __init__(self, features: int, config: CriticConfig, generator: torch.Generator | None) -> None:
        self.bins = config.bins
        outputs = 1 if config.bins is None else config.bins.count
        super().__init__((features, *config.widths, outputs), generator)

    def worth(self, features: Tensor) -> Worth:
        """Of states by their features (..., F), to which no gradient goes."""
        found = self(features.detach()).float()
        if self.bins is None:
            return Worth(found[..., 0])
        return Worth(self.bins.values(found), found, self.bins)


@dataclass(frozen=True)
class Worth:
    """What a critic says of states."""

    values: Tensor | None = None  # (...); None without a critic
    logits: Tensor | None = None  # (..., bins)
    bins: Bins | None = None


def make_critic(config: CriticConfig | None, features: int, generator: torch.Generator | None) -> Critic | None:
    """V of so many features; None where the config wants none."""
    return None if config is None else Critic(features, config, generator)


def load_head(head: nn.Module, file: Path, name: str = "") -> bool:
    """Read `head` back from `file`, where its tensors are under `name`; False where there are none and it stays new: a
    run goes on from one that had no such head.

    Raises:
        ValueError: it is there in another shape.
    """
    saved = load_file(file) if file.is_file() else {}
    own = {key.removeprefix(name): tensor for key, tensor in saved.items() if key.startswith(name)}
    if not own:
        return False
    there, wanted = ({key: tuple(t.shape) for key, t in found.items()} for found in (own, head.state_dict()))
    if there != wanted:
        raise ValueError(f"{file} holds a {name.rstrip('.') or 'critic'} of the shapes {there}, not {wanted}")
    head.load_state_dict(own)
    return True


def initialise(module: nn.Module, generator: torch.Generator | None) -> None:
    """Weights and biases of linear and convolutional layers, and embeddings, as torch draws them, but from
    `generator`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = (layer.weight.numel() // len(layer.weight)) ** -0.5
            for parameter in (layer.weight, layer.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)  # type: ignore[arg-type]
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, generator=generator)
