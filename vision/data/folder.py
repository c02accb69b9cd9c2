"""Pictures of one's own: a folder with one sub-folder a class, or any data set of Hugging Face `datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vision.data.base import Example, Source, read_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class ImageFolder(Source):
    """`path`/<class>/<picture>: the answer is the name of the sub-folder, with spaces for underscores.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: fewer than two classes, or pictures that cannot be read (all of them are listed).
    """

    path: str
    question: str = "What type of object is in the photo?"

    def examples(self) -> Sequence[Example]:
        root = Path(self.path)
        if not root.is_dir():
            raise FileNotFoundError(
                f"data.source.path {self.path!r} is not a folder: give one with a sub-folder a class"
            )
        classes = sorted(folder for folder in root.iterdir() if folder.is_dir())
        if len(classes) < 2:
            raise ValueError(
                f"data.source.path {self.path!r} holds {len(classes)} class folder(s): at least two are needed"
            )
        found, refused = [], []
        for folder in classes:
            for file in sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURES):
                try:
                    read_picture(file)  # whether it can be decoded is found out now, not in step 300
                except ValueError as error:
                    refused.append(str(error))
                    continue
                answer = folder.name.replace("_", " ")
                found.append(Example(f"{folder.name}/{file.name}", (file,), self.question, answer))
        if refused:
            more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
            raise ValueError(f"data.source.path: {'; '.join(refused[:5])}{more}: remove or replace them")
        return found


@dataclass(frozen=True)
class HubDataset(Source):
    """A data set of Hugging Face `datasets`, by hub name or local path. `columns` says what image, question and answer
    are called there (an answer may be a class index), `question` asks the same of every row; all other columns reach
    rewards and metrics as keyword arguments.

    Raises:
        ValueError: a column is missing, or rows have no picture or answer (listed by number).
    """

    name: str
    split: str = "train"
    columns: dict[str, str] = field(default_factory=dict)
    question: str | None = None

    def examples(self) -> Sequence[Example]:
        from datasets import ClassLabel, load_dataset, load_from_disk

        on_disk = Path(self.name, "dataset_info.json").exists() or Path(self.name, "dataset_dict.json").exists()
        loaded = load_from_disk(self.name) if on_disk else load_dataset(self.name)
        rows = loaded[self.split] if isinstance(loaded, dict) else loaded
        names = {name: self.columns.get(name, name) for name in ("image", "question", "answer")}
        for name, column in names.items():
            if column not in rows.column_names and not (name == "question" and self.question is not None):
                raise ValueError(
                    f"data set {self.name} has no column {column!r}; it has {rows.column_names}: see `columns`"
                )
        feature = rows.features[names["answer"]]
        found, refused = [], []
        for number, row in enumerate(rows):
            given, answer = row[names["image"]], row[names["answer"]]
            pictures = given if isinstance(given, list) else [given]
            if any(picture is None for picture in pictures) or answer is None or not str(answer).strip():
                refused.append(
                    f"row {number} ({'no answer' if all(p is not None for p in pictures) else 'no picture'})"
                )
                continue
            text = feature.int2str(answer) if isinstance(feature, ClassLabel) else str(answer)
            question = self.question if self.question is not None else str(row[names["question"]])
            rest = {key: value for key, value in row.items() if key not in names.values()}
            images = tuple(picture.convert("RGB") for picture in pictures)
            found.append(Example(f"{self.split}-{number}", images, question, text, rest))
        if refused:
            raise ValueError(f"data set {self.name}: {len(refused)} rows are refused: {', '.join(refused[:10])}")
        return found
