"""How pleasing a picture is, by a linear head on the picture vector of a CLIP model (LAION's aesthetic predictor)."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.types import Samples
from rewards.compose import RewardError
from rewards.pictures.base import PictureReward, find_path, said
from rewards.pictures.clip import check_model, load_tower

HEAD = "aesthetic.safetensors"


@dataclass(frozen=True)
class Aesthetic(PictureReward):
    """The head's number: about 1 to 10 for LAION's.

    `model` and `pretrained` as for ClipScore. `head` is a file of weights: LAION's
    sac+logos+ava1-l14-linearMSE.pth with `model: ViT-L-14`, `pretrained: openai`, or `weight` and `bias` of one
    linear layer. If left out, the aesthetic.safetensors in the folder `model`.
    """

    model: str
    pretrained: str = ""
    head: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model("Aesthetic", self.model, self.pretrained)
        if not find_path(self.head_file()).is_file():
            raise ValueError(
                f"Aesthetic.head {self.head_file()!r} is not there: give the file of a head that was fitted to this "
                "model, such as LAION's sac+logos+ava1-l14-linearMSE.pth for ViT-L-14 with openai's weights"
            )

    def head_file(self) -> str:
        """Where the head is."""
        return self.head or f"{self.model}/{HEAD}"

    def on_pixels(self, pixels: Tensor, samples: Samples) -> Tensor:
        weight, bias = load_head(self.head_file())
        found = load_tower(self.model, self.pretrained, self.device).pictures(pixels)
        if found.shape[-1] != len(weight):
            raise RewardError(
                f"Aesthetic.head {self.head_file()!r} reads vectors of {len(weight)} numbers and {self.model} gives "
                f"{found.shape[-1]}: give the head of this model"
            )
        return (found @ weight.to(found.device) + bias).to(pixels.device)


@functools.cache
def load_head(file: str) -> tuple[Tensor, float]:
    """Weight (D,) and bias of a head; a stack of linear layers, as LAION's, is multiplied out.

    Raises:
        RewardError: the file holds something else.
    """
    path = find_path(file)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights: Mapping[str, Tensor] = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        return multiplied_out(weights)
    except Exception as error:  # of any kind: what a file holds is anyone's guess
        raise RewardError(
            f"Aesthetic.head {file!r} holds no stack of linear layers to one number ({said(error)})"
        ) from error


def multiplied_out(weights: Mapping[str, Tensor]) -> tuple[Tensor, float]:
    """Weight (D,) and bias that do what the layers named `weight` or `<...><number>.weight` do one after the other."""
    names = [name for name in weights if name == "weight" or name.endswith(".weight")]
    names.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    left_over = set(weights) - {part for name in names for part in (name, _bias(name))}
    if not names or left_over:
        raise ValueError(f"it has {sorted(weights)}")
    width = weights[names[0]].shape[1]
    weight, bias = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for name in names:
        layer = weights[name].double()
        weight, bias = layer @ weight, layer @ bias + weights[_bias(name)].double()
    if weight.shape[0] != 1:
        raise ValueError(f"its last layer gives {weight.shape[0]} numbers")
    return weight[0].float(), float(bias)


def _bias(name: str) -> str:
    return name.removesuffix("weight") + "bias"
