"""Columns of real tables, as scikit-learn and vega-datasets bring them in their wheels: nothing is fetched."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SKLEARN = ("iris", "wine", "diabetes", "breast_cancer", "linnerud")
VEGA = ("barley", "burtin", "cars", "crimea", "driving", "iowa-electricity", "ohlc", "seattle-weather", "sf-temps",
        "stocks", "us-employment", "wheat")  # fmt: skip
FEWEST = 12
"""Different values of a column that is worth drawing."""
MOST = 600
"""Rows that are kept of a column, evenly from first to last."""


@dataclass(frozen=True)
class Column:
    """The numbers of one column of a table, in the table's order."""

    table: str
    name: str
    numbers: tuple[float, ...]


@cache
def columns() -> tuple[Column, ...]:
    """All columns of numbers, always in the same order.

    Raises:
        ModuleNotFoundError: vega-datasets is missing.
    """
    found = [*_of_sklearn(), *_of_vega()]
    return tuple(column for column in found if len(set(column.numbers)) >= FEWEST)


def _thinned(numbers: Sequence[float]) -> tuple[float, ...]:
    step = max(1, -(-len(numbers) // MOST))
    return tuple(numbers[::step])


def _of_sklearn() -> Iterator[Column]:
    from sklearn import datasets

    for name in SKLEARN:
        load = vars(datasets)[f"load_{name}"]
        data = load(scaled=False) if name == "diabetes" else load()
        for title, numbers in zip(data.feature_names, data.data.T, strict=True):
            yield Column(name, str(title), _thinned([float(number) for number in numbers]))


def _of_vega() -> Iterator[Column]:
    folder = _vega_folder()
    for name in VEGA:
        rows = _rows(next(folder.glob(f"{name}.*")))
        for title in rows[0]:
            numbers = [number for row in rows if (number := _number(row.get(title))) is not None]
            if len(numbers) >= len(rows) // 2:
                yield Column(name, title, _thinned(numbers))


def _vega_folder() -> Path:
    """The data of vega-datasets, without importing it: it would import pandas."""
    found = importlib.util.find_spec("vega_datasets")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("charts are drawn from tables of vega-datasets: pip install 'mmrl-workbench[vision]'")
    return Path(found.submodule_search_locations[0]) / "_data"


def _rows(file: Path) -> list[dict[str, object]]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        return [dict(row) for row in json.loads(text)]
    return [dict(row) for row in csv.DictReader(text.splitlines())]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
