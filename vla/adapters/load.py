"""From a folder or a name to an adapter."""

from __future__ import annotations

from pathlib import Path

from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

from vla.adapters.base import Adapter
from vla.adapters.small import SmallAdapter
from vla.embedded import SmallFlowPolicy

ADAPTERS: dict[type, type[Adapter]] = {SmallFlowPolicy: SmallAdapter}
"""By the class of the policy."""


def load(path: str, device: str, denoise_steps: int | None, execute: int | None) -> Adapter:
    """The policy at `path`, a folder of lerobot's `save_pretrained` or a name on the hub, in float32, with its own
    processors. `denoise_steps` and `execute` null: the policy's own.

    Raises:
        ValueError: it cannot be read, or there is no adapter for it.
    """
    try:
        config = PreTrainedConfig.from_pretrained(path)
        config.device = device
        policy = get_policy_class(config.type).from_pretrained(path, config=config)
        overrides = {"device_processor": {"device": device}}
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
    return ADAPTERS[type(policy)](policy.float(), processors, denoise_steps, execute)
