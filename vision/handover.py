"""A trained vision policy as plain transformers and peft load it."""

from __future__ import annotations

from pathlib import Path

from mmrl.experiment import Exported
from mmrl.types import Policy
from vision.policy import VisionPolicy

MODEL = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("PATH", dtype="auto")
processor = AutoProcessor.from_pretrained("PATH")
"""
ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained({base!r}, dtype="auto")
model = PeftModel.from_pretrained(base, "PATH")
processor = AutoProcessor.from_pretrained("PATH")
"""


def write(policy: Policy, base: str, folder: Path, merge: bool, dtype: str | None) -> Exported:
    """The model, or its adapter, with the processor."""
    assert isinstance(policy, VisionPolicy)
    if policy.export(folder, merge, dtype):
        return Exported("peft", ADAPTER.format(base=base))
    return Exported("transformers", MODEL)
