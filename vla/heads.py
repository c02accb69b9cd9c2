"""What a critic of a VLA reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmrl import heads


@dataclass(frozen=True)
class CriticConfig(heads.CriticConfig):
    """Widths of the hidden layers of V(s), and what of a VLA it `reads`: what comes after its expert or after its VLM;
    null: as RLinf does, the expert of pi0 and the VLM of pi0.5, and so of SmolVLA. A small policy's reads the state."""

    reads: Literal["expert", "vlm"] | None = None
