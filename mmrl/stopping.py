"""When a run ends by itself, and which of its checkpoints was the best: both read the metrics it logs.

stop:
  - {metric: accuracy, drops: 0.02, evaluations: 2, then: keep_best}
  - {metric: kl, above: 8.0}
  - {metric: reward_std, below: 0.1x_start}
save: {every: 25, keep: 2, best: accuracy}
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mmrl.checkpoint import SaveConfig
from mmrl.state import State

FAMILIES = ("eval", "update", "rollout", "reward", "watch")
"""Where a metric is looked for that is given by its last name alone, in this order."""
TIMES_START = re.compile(r"([0-9.]+)x_start$")


@dataclass(frozen=True)
class StopRule:
    """Ends training when `metric` was bad in so many measurements (`evaluations`) in a row: `drops` below its
    best so far by more than this, `above` a bound, or `below` one. A bound is a number, or "2x_start", a multiple
    of the first value. `then: keep_best` makes the best checkpoint (see `save.best`) the result of the run."""

    metric: str
    drops: float | None = None
    above: float | str | None = None
    below: float | str | None = None
    evaluations: int = 1
    then: Literal["stop", "keep_best"] = "stop"

    def __post_init__(self) -> None:
        if sum(bound is not None for bound in (self.drops, self.above, self.below)) != 1:
            raise ValueError(f"stop: the rule on {self.metric!r} needs exactly one of drops, above and below")
        for bound in (self.above, self.below):
            if isinstance(bound, str) and not TIMES_START.match(bound):
                raise ValueError(f"stop: the bound {bound!r} of {self.metric!r} is neither a number nor like 2x_start")
        if self.evaluations < 1:
            raise ValueError(f"stop: evaluations is {self.evaluations} for {self.metric!r}: give 1 or more")

    def look(self, memory: dict[str, float], metrics: Mapping[str, float]) -> str | None:
        """The sentence that says why to stop now, or None. `memory` holds start, best and bad measurements in a
        row, and is changed."""
        name = find_metric(self.metric, metrics)
        if name is None:
            return None
        value = metrics[name]
        start, best = memory.setdefault("start", value), max(memory.get("best", -math.inf), value)
        memory["best"] = best
        limit = self._limit(start, best)
        bad = value > limit if self.above is not None else value < limit
        memory["in_a_row"] = memory.get("in_a_row", 0.0) + 1 if bad else 0.0
        if memory["in_a_row"] < self.evaluations:
            return None
        side = "above" if self.above is not None else "below"
        why = f"its best {best:.4g} less {self.drops:.4g}" if self.drops is not None else f"{limit:.4g}"
        times = f", {self.evaluations} times in a row" if self.evaluations > 1 else ""
        return f"{name} is {value:.4g}, {side} {why}{times}"

    def _limit(self, start: float, best: float) -> float:
        if self.drops is not None:
            return best - self.drops
        bound = self.above if self.above is not None else self.below
        found = TIMES_START.match(str(bound))
        return float(found.group(1)) * start if found else float(str(bound))


@dataclass(frozen=True)
class Watch:
    """The stop rules and `save.best` of a run; what they remember is in its State, and so in its checkpoints."""

    rules: tuple[StopRule, ...]
    saving: SaveConfig

    def __post_init__(self) -> None:
        if self.saving.best is None and any(rule.then == "keep_best" for rule in self.rules):
            raise ValueError("a stop rule says then: keep_best, and save.best is not set: name the metric that is best")

    def look(self, state: State, metrics: Mapping[str, float]) -> bool:
        """Whether a rule ends the run now. Before the first step it only takes note of where the run starts."""
        known = {**metrics, **{f"eval/{name}": 0.0 for name in state.eval_before}}
        for rule in self.rules:
            if find_metric(rule.metric, known) not in metrics:  # kl of evaluations is not that of steps between
                continue
            said = rule.look(state.watched.setdefault(repr(rule), {}), metrics)
            if said is not None and state.step > 0 and not state.stopped_by:
                state.stopped_by, state.keep_best = said, rule.then == "keep_best"
        return bool(state.stopped_by)

    def note_best(self, state: State, metrics: Mapping[str, float]) -> bool:
        """Whether this is the best yet by `save.best`, which is looked at whenever there is an evaluation. While a stop
        rule finds something bad, nothing counts as best: a reward that rises as it is hacked would."""
        wanted, evaluated = self.saving.best, any(name.startswith("eval/") for name in metrics)
        if wanted is None or not evaluated or (state.step == 0 and find_metric(wanted, metrics) is None):
            return False
        if state.step > 0 and any(state.watched.get(repr(rule), {}).get("in_a_row", 0.0) > 0 for rule in self.rules):
            return False
        value = metrics[require_metric(wanted, "save.best", metrics)]
        better = value < state.best_value if self.saving.lowest else value > state.best_value
        if state.best_step is not None and not better:
            return False
        state.best_step, state.best_value, state.best_eval = state.step, value, state.eval_after
        return True

    def check_names(self, state: State, metrics: Mapping[str, float]) -> None:
        """After the first step, when every metric has been logged once.

        Raises:
            ValueError: a rule, or `save.best`, names a metric that this run does not log.
        """
        known = {**metrics, **{f"eval/{name}": 0.0 for name in state.eval_before}}
        for rule in self.rules:
            require_metric(rule.metric, "stop", known)
        if self.saving.best is not None:
            require_metric(self.saving.best, "save.best", known)


def find_metric(name: str, metrics: Mapping[str, float]) -> str | None:
    """The logged metric that `name` means: itself, or `name` in one of the families."""
    return next((n for n in (name, *(f"{family}/{name}" for family in FAMILIES)) if n in metrics), None)


def require_metric(name: str, key: str, metrics: Mapping[str, float]) -> str:
    """As `find_metric`.

    Raises:
        ValueError: no such metric is logged; names the nearest ones.
    """
    found = find_metric(name, metrics)
    if found is None:
        short = {known.partition("/")[2]: known for known in metrics}
        near = difflib.get_close_matches(name, [*short, *metrics], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"logged are {', '.join(sorted(metrics))}"
        raise ValueError(f"{key} names the metric {name!r}, which this run does not log: {hint}")
    return found
