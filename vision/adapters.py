"""LoRA adapters: a new one, one to go on from, and the one a run started from as its reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedModel

from mmrl import lora
from mmrl.reference import Reference
from mmrl.types import Evaluation, Transitions

if TYPE_CHECKING:
    from vision.policy import VisionPolicy

VISION_MODULE = re.compile(r"(^|\.)(visual|vision_tower|vision_model|vision_encoder)(\.|$)")
TRAINED, START = "default", "start"
"""Names of the adapter that is trained and of the copy that a run started from."""


@dataclass(frozen=True)
class LoRA(lora.LoRA):
    """A new low-rank adapter. `targets` is peft's: "all-linear", or a list of module names; those of the
    vision tower are left out unless `vision` is true."""

    targets: str | list[str] = "all-linear"
    vision: bool = False


def with_adapter(model: PreTrainedModel, adapter: LoRA | str) -> PeftModel:
    """`model` with a new adapter, or with the one in the folder (or of the hub name) `adapter`, to be trained further.

    Raises:
        ValueError: there is no adapter there, or it is not one of this model.
    """
    if isinstance(adapter, LoRA):
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            target_modules=adapter.targets,
            exclude_modules=None if adapter.vision else rf".*{VISION_MODULE.pattern}.*",
            lora_dropout=0.0,  # dropout would make the ratio noise
        )
        return get_peft_model(model, config)
    try:
        found = PeftModel.from_pretrained(model, adapter, adapter_name=TRAINED, is_trainable=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        there = Path(adapter, "adapter_config.json").is_file()
        why = str(error).splitlines()[0] if there else "there is no adapter_config.json in it"
        raise ValueError(
            f"policy.adapter {adapter!r} could not be put on this model ({why}): give a folder written by peft for the "
            "same model, or {rank: 16, alpha: 32} for a new adapter"
        ) from error
    if not any(parameter.requires_grad for parameter in found.parameters()):
        raise ValueError(f"policy.adapter {adapter!r} has nothing that can be trained: is it a LoRA?")
    return found


@contextmanager
def keeping_gradients(model: PeftModel) -> Iterator[None]:
    """peft decides anew what requires a gradient whenever adapters change; here it stays as it was."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


def copy_start(model: PeftModel) -> None:
    """Keep the adapter as it is now as a second one, for a reference."""
    with keeping_gradients(model):
        model.add_adapter(START, model.peft_config[TRAINED])
        state = get_peft_model_state_dict(model, adapter_name=TRAINED)
        set_peft_model_state_dict(model, state, adapter_name=START)
    for key, parameter in model.named_parameters():
        if f".{START}." in key:
            parameter.requires_grad_(False)


class OtherAdapter(Reference):
    """The same weights under another adapter, or under none."""

    windowable = False

    def __init__(self, policy: VisionPolicy, name: str | None) -> None:
        super().__init__()
        self._policy, self._name = (policy,), name  # in a tuple: its parameters are the policy's, not this module's

    def forward(self, transitions: Transitions, steps: object) -> Evaluation:
        with self._active():
            found: Evaluation = self._policy[0](transitions, steps)
        return found

    @contextmanager
    def _active(self) -> Iterator[None]:
        model = self._policy[0].model
        if self._name is None:
            with model.disable_adapter():
                yield
            return
        with keeping_gradients(model):
            model.set_adapter(self._name)
            try:
                yield
            finally:
                model.set_adapter(TRAINED)


def freeze_vision(model: PreTrainedModel) -> None:
    """Train everything but the vision tower."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not VISION_MODULE.search(name))
