"""Weights handed to a server in a folder that both see: never under their name before they are whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vision.policy import VisionPolicy


def hand_over(policy: VisionPolicy, folder: Path, version: str) -> Path:
    """The weights of `policy`, or of its adapter alone, in `folder / version`, as safetensors; as they are if they are
    there already."""
    target, unfinished = folder / version, folder / f".{version}.unfinished"
    if not target.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        policy.save_model(unfinished)
        for file in unfinished.iterdir():
            _settle(file)
        unfinished.replace(target)
        _settle(folder)
    return target.resolve()


def forget(folder: Path, version: str) -> None:
    """Remove them again."""
    shutil.rmtree(folder / version, ignore_errors=True)


def _settle(path: Path) -> None:
    """On the disk, and not only in this machine's memory, before another one is told to read it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
