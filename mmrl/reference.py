"""The policy that a KL penalty keeps close to."""

from __future__ import annotations

import abc
from pathlib import Path

from mmrl.types import Policy


class Reference(Policy, abc.ABC):
    """A policy that is scored and never trained, and so neither saved nor loaded."""

    def save_pretrained(self, folder: Path) -> None:
        raise TypeError("a reference is not saved: it is made again from where the run started")

    def load_weights(self, folder: Path) -> None:
        raise TypeError("a reference is not loaded: it is made again from where the run started")
