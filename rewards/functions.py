"""Plain Python functions as rewards: no class, no import of ours.

TRL's way: `def score(completions, answer, **columns) -> list[float | None]`, dataset columns as keyword arguments,
None for "not applicable". DDPO's way: `def score(outputs, prompts, metadata) -> (numbers, info)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmrl.importing import import_code, place
from mmrl.types import RewardFunction, Samples, Scores

DDPO = ["prompts", "metadata"]


@dataclass(frozen=True)
class Function(RewardFunction):
    """The function at the dotted path `path`, such as `reward.score` for `score` in a reward.py beside the config.

    Raises:
        ValueError: it cannot be imported, or asks for a column that the data has not.
    """

    path: str

    def __call__(self, samples: Samples) -> Scores:
        function = find_function(self.path)
        names = list(inspect.signature(function).parameters)
        if names[1:3] == DDPO:
            return as_scores(function(list(samples.outputs), _prompts(samples), _rows(samples))[0])
        return as_scores(function(**self._arguments(function, samples)))

    def called(self, error: Exception) -> str:
        """The function's name and, where its own code raised this, the line."""
        raised = place(error)
        return self.path if str(Path(__file__).parent) in raised else f"{self.path}, {raised}"

    def _arguments(self, function: Callable[..., Any], samples: Samples) -> dict[str, object]:
        given = {"completions": list(samples.outputs), **{n: list(c) for n, c in samples.columns.items()}}
        given.setdefault("images", given["completions"])  # a column of that name is the user's
        given.setdefault("prompts", given.get("prompt", given.get("question", [""] * len(samples))))
        parameters = inspect.signature(function).parameters.values()
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            wanted: dict[str, object] = dict(given)
        else:
            wanted = {p.name: given[p.name] for p in parameters if p.name in given}
        missing = [p.name for p in parameters if p.default is p.empty and p.name not in wanted and p.kind not in (2, 4)]
        if missing:
            raise ValueError(f"{self.path} asks for {missing}, and the data has {sorted(given)}")
        return wanted


def find_function(path: str) -> Callable[..., Any]:
    """The function at a dotted path.

    Raises:
        ValueError: there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_code(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"reward function {path!r} cannot be imported ({error}): put it beside the config or where you run"
        ) from error
    if not callable(found):
        raise ValueError(f"reward function {path!r} is {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def as_scores(numbers: object) -> Scores:
    """Numbers, or None where a reward does not apply, as scores.

    Raises:
        ValueError: they are words, or named.
        TypeError: they are no list, or hold what is no number.
    """
    if isinstance(numbers, str | bytes | Mapping):
        raise ValueError(f"it gave {type(numbers).__name__}: give a list with one number, or None, a sample")
    listed = numbers.tolist() if hasattr(numbers, "tolist") else list(numbers)  # type: ignore[call-overload]
    words = [number for number in listed if isinstance(number, str | bytes)]
    if words:
        raise ValueError(f"it gave {words[0]!r} among the scores: give numbers, or None where it does not apply")
    applicable = torch.tensor([number is not None for number in listed], dtype=torch.bool)
    values = torch.tensor([0.0 if number is None else float(number) for number in listed], dtype=torch.float32)
    return Scores(values, applicable)


def _prompts(samples: Samples) -> Sequence[object]:
    return list(samples.columns.get("prompt", samples.columns.get("question", [""] * len(samples))))


def _rows(samples: Samples) -> list[dict[str, object]]:
    return [{name: column[i] for name, column in samples.columns.items()} for i in range(len(samples))]
