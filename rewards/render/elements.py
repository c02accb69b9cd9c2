"""What of a chart's program is right, element by element: read from its syntax tree, and never run.

These read the gold program, so they are metrics for evaluation and no rewards.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmrl.types import RewardFunction, Samples, Scores
from rewards.render.programs import program_of

KINDS = {"bar": (1, "height"), "plot": (-1, ""), "pie": (0, "x")}
"""Functions of pyplot, and the place and the name of the argument that holds the values."""
COLOURS = ("color", "colors", "c")
MOST_LETTERS = 4000
"""Of a program; longer ones are not read."""


@dataclass(frozen=True)
class Chart:
    """What a program says: `values` of a pie are shares of 1."""

    kind: str
    values: tuple[float, ...]
    colours: tuple[str, ...]


def chart_of(program: str) -> Chart | None:
    """The chart of the last call of plt.bar, plt.plot or plt.pie; None if there is none, or it is no Python."""
    try:
        calls = [node for node in ast.walk(ast.parse(program[:MOST_LETTERS])) if isinstance(node, ast.Call)]
        charts = [found for call in calls if (found := _chart(call)) is not None]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return charts[-1] if charts else None


def _chart(call: ast.Call) -> Chart | None:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if name not in KINDS:
        return None
    place, word = KINDS[name]
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    lists = [argument for argument in call.args if isinstance(argument, ast.List | ast.Tuple)]
    given = lists if place < 0 else call.args  # plt.plot([1, 2], "r"): of x and y, the last list is y
    numbers = _numbers(given[place] if given[place:] else named.get(word))
    colours = next((_words(named[key]) for key in COLOURS if key in named), ())
    if name == "pie" and sum(numbers) > 0:
        numbers = tuple(number / sum(numbers) for number in numbers)
    return Chart(name, numbers, colours)


def _numbers(node: ast.expr | None) -> tuple[float, ...]:
    if not isinstance(node, ast.List | ast.Tuple):
        return ()
    found = [one.value for one in node.elts if isinstance(one, ast.Constant) and type(one.value) in (int, float)]
    return tuple(float(str(number)) for number in found) if len(found) == len(node.elts) else ()


def _words(node: ast.expr) -> tuple[str, ...]:
    many = node.elts if isinstance(node, ast.List | ast.Tuple) else [node]
    return tuple(str(one.value) for one in many if isinstance(one, ast.Constant) and isinstance(one.value, str))


def right_elements(found: Chart | None, gold: Chart) -> tuple[int, int]:
    """How many elements are right, and of how many: the kind, each value and each colour, in their places. One that is
    too many or missing is wrong."""
    of = 1 + max(len(gold.values), len(found.values) if found else 0)
    of += max(len(gold.colours), len(found.colours) if found else 0)
    if found is None:
        return 0, of
    values = sum(abs(a - b) < 1e-6 for a, b in zip(found.values, gold.values, strict=False))
    colours = sum(a == b for a, b in zip(found.colours, gold.colours, strict=False))
    return (found.kind == gold.kind) + values + colours, of


@dataclass(frozen=True)
class ElementAccuracy(RewardFunction):
    """The share of right elements of a chart's program: kind, values, colours."""

    def __call__(self, samples: Samples) -> Scores:
        pairs = _compared(samples)
        return _scores([right / of for right, of in pairs])


@dataclass(frozen=True)
class AllElements(RewardFunction):
    """1 if every element of a chart's program is right."""

    def __call__(self, samples: Samples) -> Scores:
        return _scores([float(right == of) for right, of in _compared(samples)])


@dataclass(frozen=True)
class ValueAccuracy(RewardFunction):
    """The share of the values of a chart's program that are right, in their places: what has to be measured by eye."""

    def __call__(self, samples: Samples) -> Scores:
        found = []
        for ours, gold in _pairs(samples):
            values = ours.values if ours is not None and ours.kind == gold.kind else ()
            right = sum(abs(a - b) < 1e-6 for a, b in zip(values, gold.values, strict=False))
            found.append(right / max(len(values), len(gold.values)))
        return _scores(found)


def _compared(samples: Samples) -> list[tuple[int, int]]:
    return [right_elements(ours, gold) for ours, gold in _pairs(samples)]


def _pairs(samples: Samples) -> list[tuple[Chart | None, Chart]]:
    """What was written, and what was to be, of each sample."""
    if "answer" not in samples.columns:
        raise ValueError(f"elements are compared with the column 'answer', and the data has {sorted(samples.columns)}")
    pairs: list[tuple[Chart | None, Chart]] = []
    for said, answer in zip(samples.outputs, samples.columns["answer"], strict=True):
        gold = chart_of(str(answer))
        if gold is None:
            raise ValueError(f"the answer {str(answer)[:80]!r} is no chart whose elements can be compared")
        pairs.append((chart_of(program_of(str(said))), gold))
    return pairs


def _scores(values: Sequence[float]) -> Scores:
    return Scores(torch.tensor(values, dtype=torch.float32), torch.ones(len(values), dtype=torch.bool))
