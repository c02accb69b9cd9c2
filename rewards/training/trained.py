"""A head that was trained, on disk and as a reward."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import RewardError
from rewards.pictures.base import find_path, said
from rewards.training.backbones import Backbone, OpenClip, Transformers

WEIGHTS, ABOUT = "head.safetensors", "head.json"


class Head(nn.Module):
    """From vectors (..., D) to scores (...): shifted and scaled, then one linear layer, or two with a GELU between."""

    shift: Tensor
    scale: Tensor

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        layers = [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1)] if hidden else [nn.Linear(width, 1)]
        self.layers = nn.Sequential(*layers)

    @classmethod
    def new(cls, width: int, hidden: int, shift: Tensor, scale: Tensor, generator: torch.Generator) -> Head:
        """A fresh one: the last layer starts at 0, so that nothing is preferred; the rest is drawn."""
        head = cls(width, hidden)
        with torch.no_grad():
            head.shift.copy_(shift)
            head.scale.copy_(scale)
            for layer in head.layers:
                if isinstance(layer, nn.Linear):
                    last = layer.out_features == 1
                    drawn = torch.randn(layer.weight.shape, generator=generator) * layer.in_features**-0.5
                    layer.weight.copy_(torch.zeros_like(drawn) if last else drawn)
                    layer.bias.zero_()
        return head

    def forward(self, vectors: Tensor) -> Tensor:
        found: Tensor = self.layers((vectors - self.shift) / self.scale)
        return found.squeeze(-1)


def write_head(folder: Path, weights: Mapping[str, Tensor], backbone: Backbone, sizes: Mapping[str, int]) -> None:
    """Write weights as safetensors, and which backbone they read and their sizes as JSON."""
    save_file(dict(weights), folder / WEIGHTS)
    about = {"backbone": type(backbone).__name__, "fields": asdict(backbone), **sizes}
    (folder / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")


@functools.cache
def read_head(folder: Path) -> tuple[dict[str, Tensor], Backbone, dict[str, int]]:
    """Weights, backbone and sizes as they were written.

    Raises:
        RewardError: the files are not those of a head.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        kinds: dict[str, type[Backbone]] = {"OpenClip": OpenClip, "Transformers": Transformers}
        backbone = kinds[about.pop("backbone")](**about.pop("fields"))  # none but these: a file names no code
        return load_file(folder / WEIGHTS), backbone, {name: int(size) for name, size in about.items()}
    except Exception as error:  # of any kind: what files hold is anyone's guess
        raise RewardError(
            f"the folder {str(folder)!r} holds no head of `mmrl rewards train` ({said(error)}): train it again"
        ) from error


def filled(head: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Put weights from `folder` into a head, and freeze it.

    Raises:
        RewardError: they are those of another kind of head.
    """
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        raise RewardError(
            f"the folder {str(folder)!r} holds another kind of head ({said(error)}): rewards.training.Trained reads "
            "one of TrainBradleyTerry, TrainedYesNo one of TrainPrinciples"
        ) from error
    head.eval().requires_grad_(False)


def load_head(folder: Path, at_once: int = 1) -> tuple[Head, Backbone]:
    """The head in `folder`, of so many outputs at once, and the backbone that it was trained on.

    Raises:
        RewardError: the files are not those of such a head.
    """
    weights, backbone, sizes = read_head(folder)
    if (found := sizes.get("at_once", 1)) != at_once:
        use = {1: "rewards.training.Trained", 2: "rewards.training.TrainedPairwise"}
        raise RewardError(f"the head in {str(folder)!r} reads {found} outputs at once: use {use.get(found, 'its own')}")
    head = Head(len(weights.get("shift", ())), sizes.get("hidden", 0))
    filled(head, weights, folder)
    return head, backbone


def check_folder(reward: str, folder: str) -> None:
    """That there is a head.

    Raises:
        ValueError: there is none.
    """
    if not (find_path(folder) / ABOUT).is_file():
        raise ValueError(f"{reward}.folder {folder!r} has no {ABOUT}: give a folder that `mmrl rewards train` wrote")


@dataclass(frozen=True)
class Trained(RewardFunction):
    """The score of the head in `folder`; not applicable to what its backbone cannot read. It has no unit."""

    folder: str

    def __post_init__(self) -> None:
        check_folder("Trained", self.folder)

    def __call__(self, samples: Samples) -> Scores:
        head, backbone = load_head(find_path(self.folder).resolve())
        vectors, usable = backbone.features(samples)
        if not bool(usable.any()):
            return Scores(torch.zeros(len(samples)), usable)
        with torch.no_grad():
            return Scores(torch.where(usable, head(vectors), 0.0), usable)
