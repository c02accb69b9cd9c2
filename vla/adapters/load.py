"""From a folder or a name to an adapter."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pi0 import PI0Policy
from lerobot.policies.pi05 import PI05Policy
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.smolvla import SmolVLAPolicy
from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep
from safetensors import safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from vla.adapters import files
from vla.adapters.base import Adapter
from vla.adapters.paligemma import Pi0Adapter, Pi05Adapter
from vla.adapters.small import SmallAdapter
from vla.adapters.smolvla import SmolVLAAdapter
from vla.embedded import SmallFlowPolicy
from vla.mapping import EMPTY_CAMERA

ADAPTERS: dict[type[PreTrainedPolicy], type[Adapter]] = {
    SmallFlowPolicy: SmallAdapter,
    PI0Policy: Pi0Adapter,
    PI05Policy: Pi05Adapter,
    SmolVLAPolicy: SmolVLAAdapter,
}
"""By the class of the policy."""
READ_OUT = "action_out_proj.weight"
"""In every flow-matching policy of lerobot."""
UNLIKE = {"adapt_to_pi_aloha": "Aloha's own units", "use_relative_actions": "actions relative to the state"}
"""Switches of lerobot's configs that the adapters do not follow."""


def load(path: str, device: str, denoise_steps: int | None, execute: int | None) -> Adapter:
    """The policy at `path`, a folder of lerobot's `save_pretrained` or a name on the hub, in float32, with its own
    processors. `denoise_steps` and `execute` null: the policy's own.

    Raises:
        ValueError: it cannot be read, there is no adapter for it, or its statistics are not of its features.
    """
    try:
        config = _config(path, device)
        with contextlib.redirect_stdout(io.StringIO()):  # what it says in passing is checked below
            policy = get_policy_class(config.type).from_pretrained(path, config=config)
        overrides: dict[str, dict[str, str]] = {"device_processor": {"device": device}}
        tokenizer = files.tokenizer_of(path)
        if tokenizer is not None:
            overrides[files.STEP] = {"tokenizer_name": tokenizer}
        processors = make_pre_post_processors(config, path, preprocessor_overrides=overrides)
    except (OSError, ValueError) as error:
        here = f"the folder {path} exists" if Path(path).is_dir() else "there is no such folder here"
        raise ValueError(
            f"policy.path {path!r} could not be loaded as a policy of lerobot ({here}): give a folder with "
            "config.json, model.safetensors and its processors, or a hub name and a network "
            f"({str(error).splitlines()[0]})"
        ) from error
    if type(policy) not in ADAPTERS:
        known = ", ".join(sorted(found.name for found in ADAPTERS))
        raise ValueError(
            f"policy.path {path!r} is a {config.type}, for which there is no adapter; there is for {known}"
        )
    for name, means in UNLIKE.items():
        if vars(config).get(name):
            raise ValueError(f"policy.path {path!r} has {name}, {means}, which is not supported: train one without it")
    _check_weights(path, policy)
    _check_statistics(path, config, processors)
    return ADAPTERS[type(policy)](policy.float(), processors, denoise_steps, execute)


def _config(path: str, device: str) -> PreTrainedConfig:
    """Of a policy in float32 whose weights are all its own: no VLM is downloaded, nothing compiled."""
    config = PreTrainedConfig.from_pretrained(path)
    config.device = device
    plain = {"dtype": "float32", "load_vlm_weights": False, "compile_model": False, "gradient_checkpointing": False}
    vars(config).update({name: value for name, value in plain.items() if name in vars(config)})
    if "vlm_model_name" in vars(config):
        vars(config)["vlm_model_name"] = files.vlm_of(path, vars(config)["vlm_model_name"])
    return config


def _check_weights(path: str, policy: PreTrainedPolicy) -> None:
    """lerobot's pi0 and pi0.5 say so in passing and go on with random weights if theirs cannot be read.

    Raises:
        ValueError: that has happened.
    """
    with safe_open(cached_file(path, "model.safetensors"), "pt") as stored:
        name = next((key for key in stored.keys() if key.endswith(READ_OUT)), None)  # noqa: SIM118  # no mapping
        own = policy.get_parameter(f"model.{READ_OUT}")
        same = name is not None and torch.equal(stored.get_tensor(name).to(own), own)
    if not same:
        raise ValueError(f"policy.path {path!r}: its model.safetensors was not read as the weights of this policy")


def _check_statistics(path: str, config: PreTrainedConfig, processors: tuple[Any, Any]) -> None:
    """lerobot leaves a feature as it is where it has no statistics, without a word.

    Raises:
        ValueError: there is such a feature.
    """
    sides = (
        (processors[0], NormalizerProcessorStep, config.input_features or {}),
        (processors[1], UnnormalizerProcessorStep, config.output_features or {}),
    )
    for processor, kind, features in sides:
        steps = [step for step in processor.steps if isinstance(step, kind)]
        known = _shapes(steps[0].state_dict()) if steps else {}
        for name, feature in features.items():
            if _mode(config, feature) is NormalizationMode.IDENTITY or EMPTY_CAMERA in name:
                continue
            if steps and name in steps[0].features and name in known and _fits(known[name], feature):
                continue
            sizes = ", ".join(f"{key} {shape}" for key, shape in known.items()) or "none"
            raise ValueError(
                f"policy.path {path!r}: its {name} {tuple(feature.shape)} is to be normalised, and the statistics in "
                f"its processors are of {sizes}: save them with make_pre_post_processors(config, dataset_stats=...) "
                "of the data that it was trained on"
            )


def _mode(config: PreTrainedConfig, feature: PolicyFeature) -> NormalizationMode:
    return config.normalization_mapping.get(feature.type.value, NormalizationMode.IDENTITY)


def _shapes(stored: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Of each feature's statistics, which are stored by the feature's name and their own."""
    own = {name.rsplit(".", 1)[0]: tensor for name, tensor in stored.items() if not name.endswith(".count")}
    return {name: tuple(tensor.shape) for name, tensor in own.items()}


def _fits(shape: tuple[int, ...], feature: PolicyFeature) -> bool:
    whole = tuple(feature.shape)
    return shape[:1] == whole[:1] if feature.type is FeatureType.VISUAL else shape == whole  # one a channel
