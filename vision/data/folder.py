"""Pictures of one's own: a folder with one sub-folder a class, or any data set of Hugging Face `datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """A classification set of Hugging Face `datasets`, by hub name or local path, with an image column and a
    label column (class index or text)."""

    name: str
    split: str = "train"
    image: str = "image"
    label: str = "label"
    question: str = "What type of object is in the photo?"

    def examples(self) -> Sequence[Example]:
        from datasets import ClassLabel, load_dataset, load_from_disk

        on_disk = Path(self.name, "dataset_info.json").exists() or Path(self.name, "dataset_dict.json").exists()
        loaded = load_from_disk(self.name) if on_disk else load_dataset(self.name)
        rows = loaded[self.split] if isinstance(loaded, dict) else loaded
        for column in (self.image, self.label):
            if column not in rows.column_names:
                raise ValueError(f"data.source {self.name} has no column {column!r}; it has {rows.column_names}")
        feature = rows.features[self.label]
        found = []
        for number, row in enumerate(rows):
            value = row[self.label]
            answer = feature.int2str(value) if isinstance(feature, ClassLabel) else str(value)
            found.append(Example(f"{self.split}-{number}", (row[self.image].convert("RGB"),), self.question, answer))
        return found
