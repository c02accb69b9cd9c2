"""LoRA on the denoiser of a pipeline: a new one, one to go on from, and the start as a second adapter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn

from mmrl import lora

TRAINED, START = "default", "start"
WEIGHTS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class LoRA(lora.LoRA):
    """A new low-rank adapter on the attention of the denoiser; `targets` are names of its modules."""

    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")


def put_on(pipeline: DiffusionPipeline, name: str, adapter: LoRA | str) -> None:
    """Freeze the denoiser `name` but for an adapter: a new one, or that of a file or folder in diffusers' or kohya's
    form.

    Raises:
        ValueError: there is no adapter for this denoiser there.
    """
    denoiser: nn.Module = pipeline.components[name]
    denoiser.requires_grad_(False)
    if isinstance(adapter, LoRA):
        config = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=list(adapter.targets))
        denoiser.add_adapter(config, adapter_name=TRAINED)  # type: ignore[operator]
    else:
        try:
            pipeline.load_lora_weights(adapter, adapter_name=TRAINED)
        except (OSError, ValueError, AttributeError, KeyError) as error:
            raise ValueError(
                f"policy.adapter {adapter!r} could not be loaded as a LoRA of this pipeline "
                f"({str(error).splitlines()[0]}): give what load_lora_weights reads, or rank and alpha of a new one"
            ) from error
        if not any(isinstance(module, BaseTunerLayer) for module in denoiser.modules()):
            raise ValueError(f"policy.adapter {adapter!r} has nothing for the {name} of this pipeline")
    for key, parameter in denoiser.named_parameters():
        parameter.requires_grad_(f".{TRAINED}." in key)


def copy_start(denoiser: nn.Module) -> None:
    """Keep the adapter as it is now as a second one, for a reference."""
    config = denoiser.peft_config[TRAINED]  # type: ignore[union-attr, index]
    with warnings.catch_warnings():  # peft warns of a second adapter
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        denoiser.add_adapter(config, adapter_name=START)  # type: ignore[operator]
    state = get_peft_model_state_dict(denoiser, adapter_name=TRAINED)
    set_peft_model_state_dict(denoiser, state, adapter_name=START)
    denoiser.set_adapter(TRAINED)  # type: ignore[operator]
    for key, parameter in denoiser.named_parameters():
        parameter.requires_grad_(f".{TRAINED}." in key)


@contextmanager
def using(denoiser: nn.Module, name: str | None) -> Iterator[None]:
    """Another adapter, or none, for a while; what requires a gradient stays as it was."""
    before = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]
    if name is None:
        denoiser.disable_adapters()  # type: ignore[operator]
    else:
        denoiser.set_adapter(name)  # type: ignore[operator]
    try:
        yield
    finally:
        if name is None:
            denoiser.enable_adapters()  # type: ignore[operator]
        denoiser.set_adapter(TRAINED)  # type: ignore[operator]
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


def save(pipeline: DiffusionPipeline, name: str, folder: Path) -> None:
    """Write the trained adapter so that a plain pipeline's `load_lora_weights(folder)` reads it, alpha included."""
    told: dict[str, object] = {}
    for part in (name, "text_encoder", "text_encoder_2"):  # the file that was gone on from may have had some of these
        module = pipeline.components.get(part)
        if TRAINED not in getattr(module, "peft_config", {}):
            continue
        state = {k: v.contiguous() for k, v in get_peft_model_state_dict(module, adapter_name=TRAINED).items()}
        config = module.peft_config[TRAINED].to_dict()
        plain = {k: v for k, v in config.items() if v is None or isinstance(v, (int, float, str, bool, dict))}
        about = {**plain, "target_modules": sorted(config["target_modules"])}
        told |= {f"{part}_lora_layers": state, f"{part}_lora_adapter_metadata": about}
    pipeline.save_lora_weights(folder, **told, safe_serialization=True)


def load(denoiser: nn.Module, name: str, folder: Path) -> None:
    """Read back, exactly, what `save` wrote."""
    state = load_file(folder / WEIGHTS)
    own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    found = set_peft_model_state_dict(denoiser, own, adapter_name=TRAINED)
    if found is not None and found.unexpected_keys:
        raise ValueError(f"{folder} holds a LoRA of other modules, such as {found.unexpected_keys[0]}")
