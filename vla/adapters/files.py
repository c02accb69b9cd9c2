"""Tokenizers and VLM configs that a checkpoint names as folders: found again where it was moved, and brought along.

A checkpoint of lerobot holds the names of its tokenizer and, for SmolVLA, of its VLM. A name of the hub holds
everywhere. A folder's name holds where it is; lerobot looks for it there or from the working directory. So a copy
beside the weights, in `tokenizer` or `vlm`, goes before the name here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lerobot.processor import TokenizerProcessorStep

TOKENIZER, VLM = "tokenizer", "vlm"
STEP = "tokenizer_processor"
"""What lerobot calls the step that tokenizes."""
PREPROCESSOR = "policy_preprocessor.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.msgpack", "*.h5")


def tokenizer_of(path: str) -> str | None:
    """The folder of the tokenizer of the checkpoint folder `path`; None where it is a name of the hub, or none."""
    file = Path(path) / PREPROCESSOR
    if not file.is_file():
        return None
    steps = json.loads(file.read_text())["steps"]
    names = [step.get("config", {}).get("tokenizer_name") for step in steps if step.get("registry_name") == STEP]
    return _folder(path, TOKENIZER, names[0]) if names else None


def vlm_of(path: str, name: str) -> str:
    """The folder of the VLM that the checkpoint `path` calls `name`; `name` itself where it is one of the hub."""
    return _folder(path, VLM, name) or name


def _folder(path: str, beside: str, name: str | None) -> str | None:
    """The first that exists: a copy beside the weights, then `name` from there, then from the working directory."""
    folder = Path(path)
    candidates = [folder / beside, *([folder / name, Path(name)] if name else [])]
    return next((str(found.resolve()) for found in candidates if found.is_dir()), None)


def bring_along(config: Any, preprocessor: Any, folder: Path) -> None:
    """Copy into `folder` the tokenizer and the VLM's config that `config` and `preprocessor` have from folders."""
    for step in preprocessor.steps:
        if isinstance(step, TokenizerProcessorStep) and step.tokenizer_name and Path(step.tokenizer_name).is_dir():
            step.input_tokenizer.save_pretrained(folder / TOKENIZER)
    vlm = vars(config).get("vlm_model_name")
    if vlm and Path(vlm).is_dir():
        shutil.copytree(vlm, folder / VLM, ignore=shutil.ignore_patterns(*WEIGHTS))


def beside(folder: Path) -> str:
    """Comments for the model card: how lerobot is told of the copies in `folder`; empty where there are none."""
    lines = []
    if (folder / VLM).is_dir():
        lines += [
            "# where the VLM's folder is not on this machine, before from_pretrained, which then takes config=config:"
        ]
        lines += [f'# config.vlm_model_name = "PATH/{VLM}"']
    if (folder / TOKENIZER).is_dir():
        lines += [f"# and the tokenizer's: make_pre_post_processors(..., preprocessor_overrides={{{STEP!r}:"]
        lines += [f'#     {{"tokenizer_name": "PATH/{TOKENIZER}"}}}})']
    return "".join(f"{line}\n" for line in lines)
