"""Parts that remember numbers from one rollout to the next: anchors, and coefficients that a controller moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Remembering:
    """Numbers by name, which a checkpoint has. Stands before the kind of part in a list of bases."""

    _memory: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def state_dict(self) -> dict[str, object]:
        """Them, as JSON."""
        return dict(self._memory)

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Remember what `state_dict` told, and nothing else."""
        self._memory.clear()
        self._memory.update({name: float(str(value)) for name, value in state.items()})
