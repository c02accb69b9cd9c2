"""Questions of one's own: a JSON object a line, with the picture(s), the question, the answer and anything else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vision.data.base import Example, Source, read_picture


@dataclass(frozen=True)
class JSONL(Source):
    """One question a line: `{"image": "img/1.jpg", "question": "How many?", "answer": "3", ...}`.

    `image` is a path or a list of paths, relative to the file; a line without it has no picture. `columns` says
    what these three are called in the file, `question` asks the same of every line. All other keys reach rewards
    and metrics as keyword arguments, and the prompt's template as {key}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: rows that cannot be used, listed by number with the reason (unless `skip_bad`, which leaves
            them out and prints the list), or none that can.
    """

    path: str
    columns: dict[str, str] = field(default_factory=dict)
    question: str | None = None
    skip_bad: bool = False

    def examples(self) -> Sequence[Example]:
        file = Path(self.path)
        if not file.is_file():
            raise FileNotFoundError(f"the data {self.path!r} is not there: give a file of one JSON object a line")
        found, refused = [], []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                found.append(self._example(number, line, file.parent))
            except ValueError as error:
                refused.append(f"row {number} ({error})")
        if refused:
            more = f" and {len(refused) - 10} more" if len(refused) > 10 else ""
            of = len(refused) + len(found)
            said = f"{self.path}: {len(refused)} of {of} rows are refused: {', '.join(refused[:10])}{more}"
            if not (self.skip_bad and found):
                raise ValueError(
                    f"{said}; mend them, or name {{class_path: vision.data.JSONL}} in place of the path, with "
                    "skip_bad=true, to go on without them"
                )
            print(said)
        return found

    def _example(self, number: int, line: str, folder: Path) -> Example:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise ValueError(f"holds {type(row).__name__}, not an object")
        names = {name: self.columns.get(name, name) for name in ("image", "question", "answer")}
        question = self.question if self.question is not None else _text(row, names["question"])
        answer = _text(row, names["answer"])
        given = row.get(names["image"]) or []
        files = tuple(folder / str(name) for name in (given if isinstance(given, list) else [given]))
        for file in files:
            read_picture(file)  # whether it can be decoded is found out now, not in step 300
        rest = {key: value for key, value in row.items() if key not in names.values()}
        return Example(f"{Path(self.path).stem}-{number}", files, question, answer, rest)


def _text(row: Mapping[str, object], column: str) -> str:
    value = row.get(column)
    if value is None or not str(value).strip():
        raise ValueError(f"no {column!r}; it has {', '.join(sorted(row))}: see `columns`")
    return str(value)
