"""Pairs of outputs with known preferences: what a reward is measured on."""

from __future__ import annotations

import abc
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL import Image

from mmrl.types import Samples
from rewards.pictures.base import find_path, need_package

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two outputs for one prompt, texts or pictures in RGB, and which of them is better: 0, 1, or None where they are
    as good as each other. Pairs cut from one ranking have the same `cluster`: they are not independent cases."""

    id: str
    prompt: str
    outputs: tuple[object, object]
    better: int | None
    categories: tuple[str, ...] = ()
    cluster: str = ""
    columns: Mapping[str, object] = field(default_factory=dict)


class Source(abc.ABC):
    """Where pairs come from."""

    @abc.abstractmethod
    def pairs(self) -> list[Pair]:
        """All of them, in a fixed order.

        Raises:
            ValueError: they cannot be read.
        """


class Layout(abc.ABC):
    """How one row of a file says what was preferred to what."""

    @abc.abstractmethod
    def pairs(self, row: Row, name: str, folder: Path) -> list[Pair]:
        """The pairs of a row called `name`; its pictures are in `folder`. None where it says nothing.

        Raises:
            ValueError: the row is not of this layout.
        """


@dataclass(frozen=True)
class Plain(Layout):
    """Our own: `{"prompt", "chosen", "rejected"}`, `{"prompt", "a", "b", "better": "a" | "b" | "tie"}`, or a ranking
    `{"prompt", "outputs": [...], "ranks": [...]}` in which 1 is the best. What ends in .png, .jpg, .jpeg or .webp is a
    picture beside the file. `id` and `category` may be given; other keys reach the reward as columns."""

    def pairs(self, row: Row, name: str, folder: Path) -> list[Pair]:
        name = str(row.get("id", name))
        if "outputs" in row:
            outputs, ranks, known = row["outputs"], row.get("ranks"), {"outputs", "ranks"}
            if not isinstance(ranks, list) or len(ranks) != len(outputs):
                raise ValueError(f"ranks is {ranks!r} for {len(outputs)} outputs: give one a output")
        elif "chosen" in row:
            outputs, ranks, known = [row["chosen"], need(row, "rejected")], [1, 2], {"chosen", "rejected"}
        else:
            places = {"a": [1, 2], "b": [2, 1], "tie": [1, 1]}
            better = str(need(row, "better"))
            if better not in places:
                raise ValueError(f"better is {better!r}: give a, b or tie")
            outputs, ranks, known = [need(row, "a"), need(row, "b")], places[better], {"a", "b", "better"}
        columns = {key: value for key, value in row.items() if key not in {*known, "id", "prompt", "category"}}
        categories = (str(row["category"]),) if "category" in row else ()
        shown = [shown_of(output, folder) for output in outputs]
        return ranked(name, str(row.get("prompt", "")), shown, ranks, categories, columns)


@dataclass(frozen=True)
class Pairs(Source):
    """The rows of a .jsonl, .json or .parquet file, or of the set of this name in `datasets`. `images` is the folder
    of its pictures, by default that of the file; `limit` reads so many rows."""

    path: str
    layout: Layout = Plain()
    split: str = "test"
    images: str = ""
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"pairs.limit is {self.limit}: give 1 row or more, or null")
        check_rows(self.path)

    def pairs(self) -> list[Pair]:
        file = find_path(self.path)
        folder = Path(self.images) if self.images else file.parent
        found: list[Pair] = []
        refused: list[str] = []
        for number, row in enumerate(read_rows(self.path, self.split)[: self.limit], start=1):
            try:
                found += self.layout.pairs(row, f"{file.stem}-{number}", folder)
            except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
                refused.append(f"row {number} ({str(error) or type(error).__name__})")
        if refused:
            kind = type(self.layout).__name__
            raise ValueError(
                f"pairs.path {self.path}: {len(refused)} rows are not of the layout {kind}: {', '.join(refused[:5])}"
            )
        if not found:
            raise ValueError(f"pairs.path {self.path} has no pair with a preference: look at its rows")
        return found


def check_rows(path: str, field: str = "pairs.path") -> None:
    """That `path`, the value of `field`, is a file, or may be the name of a set.

    Raises:
        ValueError: it is neither.
    """
    file = find_path(path)
    if file.is_file():
        return
    if file.suffix or path.count("/") != 1:
        raise ValueError(f"{field} {path!r} is not there: give a .jsonl, .json or .parquet file, or owner/name")
    need_package(field, "datasets", "datasets")


def read_rows(path: str, split: str, field: str = "pairs.path") -> list[Row]:
    """The rows of a file, or of a set of `datasets`.

    Raises:
        ValueError: there is no such file or set, or it holds something else.
    """
    check_rows(path, field)
    file = find_path(path)
    if not file.is_file():
        import datasets

        return list(datasets.load_dataset(path, split=split))
    if file.suffix == ".parquet":
        need_package(field, "pyarrow", "pyarrow")
        import pyarrow.parquet

        rows: list[Row] = pyarrow.parquet.read_table(file).to_pylist()
        return rows
    text = file.read_text(encoding="utf-8")
    try:
        rows = json.loads(text) if file.suffix == ".json" else [json.loads(s) for s in text.splitlines() if s.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{field} {path} is not JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{field} {path} holds no list of objects: give one a line (.jsonl), or a list (.json)")
    return rows


def need(row: Row, key: str) -> Any:
    """row[key].

    Raises:
        ValueError: it is not there.
    """
    if key not in row:
        raise ValueError(f"no {key!r} among {sorted(row)}")
    return row[key]


def picture(value: object, folder: Path) -> Image.Image:
    """A picture in RGB from a path in `folder`, bytes, `{"bytes": ...}` as parquet files have it, or itself.

    Raises:
        ValueError: it is none of these, or cannot be read.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    if not isinstance(value, bytes | str):
        raise ValueError(f"{type(value).__name__} is no picture")
    try:
        with Image.open(io.BytesIO(value) if isinstance(value, bytes) else folder / value) as found:
            return found.convert("RGB")
    except OSError as error:
        told = repr(value) if isinstance(value, str) else f"{len(value)} bytes"
        raise ValueError(f"{told} cannot be read as a picture") from error


def shown_of(value: object, folder: Path) -> object:
    """An output as a reward sees it: a picture where it is one, or the path of one; else the text."""
    is_text = isinstance(value, str) and not value.lower().endswith(PICTURES)
    return value if is_text else picture(value, folder)


def ranked(
    name: str,
    prompt: str,
    outputs: Sequence[object],
    ranks: Sequence[float],
    categories: tuple[str, ...] = (),
    columns: Mapping[str, object] | None = None,
) -> list[Pair]:
    """Every two of `outputs`; a lower rank is better, an equal one a tie."""
    found = []
    for i, j in combinations(range(len(outputs)), 2):
        better = None if ranks[i] == ranks[j] else int(ranks[j] < ranks[i])
        label = name if len(outputs) == 2 else f"{name}-{i}-{j}"
        found.append(Pair(label, prompt, (outputs[i], outputs[j]), better, categories, name, columns or {}))
    return found


def as_samples(pairs: Sequence[Pair], swapped: bool = False) -> Samples:
    """Both outputs of every pair, one after the other (`swapped`: the second one first), with their prompt, the number
    of the pair as "group", and its columns: None where another pair has a column and this one not."""
    order = (1, 0) if swapped else (0, 1)
    names = {name: None for pair in pairs for name in pair.columns}
    columns: dict[str, Sequence[object]] = {
        name: [pair.columns.get(name) for pair in pairs for _ in order] for name in names
    }
    columns |= {
        "prompt": [pair.prompt for pair in pairs for _ in order],
        "group": [number for number in range(len(pairs)) for _ in order],
    }
    outputs = [pair.outputs[place] for pair in pairs for place in order]
    return Samples(outputs, columns, [f"{pair.id}/{place}" for pair in pairs for place in order])
