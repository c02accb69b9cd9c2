"""Prompts of one's own: a text file, one a line, or JSON objects with further columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from mmrl.recipes import find_asset
from mmrl.types import Samples


@dataclass(frozen=True)
class Asked:
    """One prompt; its columns reach rewards as keyword arguments."""

    id: str
    prompt: str
    columns: Mapping[str, object] = field(default_factory=dict)


def as_samples(
    asked: Sequence[Asked], pictures: Sequence[object], anchors: Mapping[str, Sequence[object]] | None = None
) -> Samples:
    """What rewards and metrics read: pictures with the columns of their prompts. Of `anchors`, by prompt, the k-th
    picture of a prompt has the k-th in the column `anchor`, and from the first again where there are fewer."""
    names = {name: None for one in asked for name in one.columns}
    columns: dict[str, Sequence[object]] = {name: [one.columns.get(name) for one in asked] for name in names}
    columns["prompt"] = [one.prompt for one in asked]
    if anchors:
        following = {prompt: cycle(mine) for prompt, mine in anchors.items()}
        columns["anchor"] = [next(following[one.prompt]) for one in asked]
    return Samples(pictures, columns, [one.id for one in asked])


def read_prompts(path: str, key: str) -> list[Asked]:
    """The prompts of a .txt file, one a line, or of a .jsonl file, `{"prompt": ..., ...}` a line. `key` is what the
    config calls it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: lines that cannot be used, by number, or no prompt at all.
    """
    file = Path(find_asset(path))
    if not file.is_file():
        raise FileNotFoundError(f"{key} {path!r} is not there: give a .txt file of one prompt a line, or a .jsonl file")
    found, refused = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found.append(_asked(f"{file.stem}-{number}", line, file.suffix == ".jsonl"))
        except ValueError as error:
            refused.append(f"line {number} ({error})")
    if refused:
        raise ValueError(f"{key} {path}: {len(refused)} lines are refused: {', '.join(refused[:10])}")
    if not found:
        raise ValueError(f"{key} {path!r} is empty: write one prompt a line")
    return found


def _asked(name: str, line: str, as_json: bool) -> Asked:
    if not as_json:
        return Asked(name, line.strip())
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from error
    if not isinstance(row, dict) or not str(row.get("prompt", "")).strip():
        raise ValueError("no 'prompt' in it")
    return Asked(name, str(row["prompt"]), {key: value for key, value in row.items() if key != "prompt"})


@dataclass(frozen=True)
class DataConfig:
    """`train` is sampled from in training; of each prompt of `eval`, `eval_pictures` are drawn before and after. No
    prompt stands in both."""

    train: str
    eval: str
    eval_pictures: int = 2

    def __post_init__(self) -> None:
        if self.eval_pictures < 1:
            raise ValueError(f"data.eval_pictures is {self.eval_pictures}: give 1 or more")

    def read(self) -> tuple[Sequence[Asked], Sequence[Asked]]:
        """Both.

        Raises:
            ValueError: a prompt stands in both.
        """
        train, held_out = read_prompts(self.train, "data.train"), read_prompts(self.eval, "data.eval")
        shared = {asked.prompt for asked in train} & {asked.prompt for asked in held_out}
        if shared:
            raise ValueError(
                f"{len(shared)} prompts stand both in data.train and in data.eval, such as {min(shared)!r}"
            )
        return train, held_out
