"""LoRA on a part of a policy: put on, saved and read by itself, and taken into the weights for other tools."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmrl import lora

WEIGHTS = "lora.safetensors"
TRAINED = "default"


@dataclass(frozen=True)
class LoRA(lora.LoRA):
    """A new low-rank adapter on the action expert; `targets` are names of its linear layers."""

    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def put_on(module: nn.Module, adapter: LoRA, generator: torch.Generator) -> None:
    """Put a new adapter, which changes nothing at first, on `module`. Only it requires a gradient.

    Raises:
        ValueError: the module has no layer of these names.
    """
    config = LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, target_modules=list(adapter.targets), lora_dropout=0.0
    )  # dropout would make the ratio noise
    try:
        inject_adapter_in_model(config, module, TRAINED)
    except ValueError as error:
        raise ValueError(
            f"policy.adapter.targets is {list(adapter.targets)}, and the expert has no such linear layers: name some, "
            "such as q_proj and v_proj"
        ) from error
    for layer in layers(module).values():
        # NOTE: peft draws from torch's global generator; as it does, but from our own.
        nn.init.kaiming_uniform_(layer.lora_A[TRAINED].get_parameter("weight"), a=math.sqrt(5), generator=generator)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("lora_" in name)


def layers(module: nn.Module) -> dict[str, Linear]:
    """Those that have an adapter, by name; `put_on` puts it on linear ones alone."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Linear)}


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Of the adapter alone."""
    return {name: tensor for name, tensor in module.state_dict().items() if "lora_" in name}


def merged(module: nn.Module) -> dict[str, Tensor]:
    """The state of `module` as if it never had an adapter, with what the adapter adds in its weights."""
    added = {name: layer.get_delta_weight(TRAINED) for name, layer in layers(module).items()}
    found = {}
    for name, tensor in module.state_dict().items():
        if "lora_" in name:
            continue
        owner, _, last = name.rpartition(".base_layer.")
        plain = f"{owner}.{last}" if owner else name
        found[plain] = (tensor + added[owner] if owner and last == "weight" else tensor).contiguous()
    return found


def save(module: nn.Module, folder: Path) -> None:
    """Write the adapter alone."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights(module).items()}, folder / WEIGHTS)


def load(module: nn.Module, folder: Path) -> None:
    """Read back, exactly, what `save` wrote.

    Raises:
        ValueError: it is an adapter of other layers or another rank.
    """
    found, own = load_file(folder / WEIGHTS), weights(module)
    if {name: tensor.shape for name, tensor in found.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise ValueError(f"{folder / WEIGHTS} is a LoRA of other layers or another rank than policy.adapter says")
    for name, tensor in found.items():
        own[name].copy_(tensor)
