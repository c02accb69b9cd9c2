"""What a run remembers between two steps, as state.json of a checkpoint has it."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path


@dataclass
class State:
    """Everything about the past of a run that is not a weight, an optimiser moment or a generator."""

    step: int = 0
    cpu_s: float = 0.0
    eval_cpu_s: float = 0.0
    wall_s: float = 0.0
    decisions: int = 0
    samples: int = 0
    collector: dict[str, object] = field(default_factory=dict)
    advantage: dict[str, object] = field(default_factory=dict)
    parts: dict[str, object] = field(default_factory=dict)
    """What the other parts of the algorithm remember."""
    eval_before: dict[str, dict[str, float]] = field(default_factory=dict)
    eval_after: dict[str, dict[str, float]] = field(default_factory=dict)
    parity: dict[str, float] = field(default_factory=dict)
    watched: dict[str, dict[str, float]] = field(default_factory=dict)
    """What each stop rule remembers."""
    stopped_by: str = ""
    keep_best: bool = False
    best_step: int | None = None
    best_value: float = 0.0
    best_eval: dict[str, dict[str, float]] = field(default_factory=dict)
    unevaluated: bool = False
    """Whether an evaluation after this step failed, on a reward say, and is to be made up for."""
    looked: int = 0
    """The last step after which it was looked whether to evaluate, to stop and to save."""
    evaluated: int = 0
    """The last step with a whole evaluation, as before and after a run."""

    def owes_a_look(self, done: bool) -> bool:
        """Whether a run that goes on has to look first: it was ended between a step and its look, or is done with
        figures that are of an earlier step."""
        return self.unevaluated or self.looked != self.step or (done and self.evaluated != self.step)


def read_state(found: Path) -> State:
    """What the checkpoint `found` remembers.

    Raises:
        ValueError: state.json is not what `save` wrote.
    """
    try:
        told = json.loads((found / "state.json").read_text())
        known = {
            f.name: type(f.default if f.default_factory is MISSING else f.default_factory()) for f in fields(State)
        }
        if not isinstance(told, dict) or not told.keys() <= known.keys():
            raise ValueError("it has other keys than this version writes")
        for name, value in told.items():
            kind = known[name]
            kinds = {float: (int, float), type(None): (int, type(None))}.get(kind, kind)
            if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"{name} is {str(value)[:40]!r}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"state.json: {error}") from error
    return State(**told)
