"""Outputs of which it is known whether they satisfy a principle: what a model of principles learns from."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.evaluation.pairs import Pair, Row, Source, check_rows, need, read_rows, shown_of
from rewards.pictures.base import find_path


@dataclass(frozen=True)
class PrincipleRow:
    """An output, a text or a picture in RGB, for `prompt`, and whether `principle` holds of it. Rows of one `cluster`
    are not independent: they are trained on together or not at all."""

    output: object
    prompt: str
    principle: str
    holds: bool
    cluster: str
    category: str = ""


class RowSource(abc.ABC):
    """Where such rows come from."""

    @abc.abstractmethod
    def rows(self) -> list[PrincipleRow]:
        """All of them, in a fixed order.

        Raises:
            ValueError: they cannot be read.
        """


@dataclass(frozen=True)
class PrincipleRows(RowSource):
    """The rows of a .jsonl, .json or .parquet file, or of the set of this name in `datasets`:
    `{"output", "principle", "holds": true | false}`, and if they are known "prompt", "cluster" (by default prompt and
    output) and "category". What ends in .png, .jpg, .jpeg or .webp is a picture beside the file, or in `images`."""

    path: str
    images: str = ""
    split: str = "train"

    def __post_init__(self) -> None:
        check_rows(self.path, "rows.path")

    def rows(self) -> list[PrincipleRow]:
        folder = Path(self.images) if self.images else find_path(self.path).parent
        found: list[PrincipleRow] = []
        refused: list[str] = []
        for number, row in enumerate(read_rows(self.path, self.split, "rows.path"), start=1):
            try:
                found.append(row_of(row, folder))
            except (ValueError, OSError) as error:
                refused.append(f"row {number} ({error})")
        if refused:
            raise ValueError(f"rows.path {self.path}: {len(refused)} rows cannot be read: {', '.join(refused[:5])}")
        if not found:
            raise ValueError(f"rows.path {self.path} has no row: give outputs with a principle that holds or not")
        return found


def row_of(row: Row, folder: Path) -> PrincipleRow:
    """A row of a file whose pictures are in `folder`.

    Raises:
        ValueError: it lacks a field, or one has a wrong value.
    """
    output, principle, holds = (need(row, key) for key in ("output", "principle", "holds"))
    if not isinstance(principle, str) or not principle.strip():
        raise ValueError(f"principle is {principle!r}: give a sentence")
    if not isinstance(holds, bool):
        raise ValueError(f"holds is {holds!r}: give true or false, and leave out what holds partly")
    prompt = str(row.get("prompt", ""))
    cluster = str(row.get("cluster", "")) or f"{prompt}\n{output if isinstance(output, str) else id(output)}"
    return PrincipleRow(shown_of(output, folder), prompt, principle, holds, cluster, str(row.get("category", "")))


@dataclass(frozen=True)
class PrinciplePairs(Source):
    """Rows as pairs, for `mmrl rewards evaluate` and for a Bradley-Terry model: of each principle the k-th output of
    which it holds is better than the k-th of which it does not. The principle is a column, which
    `Principles` reads with the text "{principle}"; the prompt is that of the better one."""

    rows: RowSource

    def pairs(self) -> list[Pair]:
        found = paired(self.rows.rows())
        if not found:
            raise ValueError("rows: no principle both holds of an output and fails of another: there are no pairs")
        return found


def paired(rows: Sequence[PrincipleRow]) -> list[Pair]:
    """Pairs of rows, each row in one at most. Which output is first alternates, and a pair is of the cluster of the
    better one."""
    known: dict[str, tuple[list[PrincipleRow], list[PrincipleRow]]] = {}
    for row in rows:
        known.setdefault(row.principle, ([], []))[0 if row.holds else 1].append(row)
    found = []
    for principle, (good, bad) in known.items():
        for number, (one, other) in enumerate(zip(good, bad, strict=False)):
            outputs, better = (one.output, other.output), 0
            if number % 2:
                outputs, better = (other.output, one.output), 1
            categories = (one.category,) if one.category else ()
            columns = {"principle": principle}
            name = f"{principle}-{number}"
            found.append(Pair(name, one.prompt, outputs, better, categories, one.cluster, columns))
    return found
