"""The requests to a judge: rubric, reference pictures, prompt and pictures, as chat completions with data: URLs."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rewards.messages import data_url, picture_part, text_part
from rewards.pictures.base import find_path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
Content = list[dict[str, object]]
Bodies = Mapping[str, dict[str, object]]


def picture_files(folder: str) -> list[Path]:
    """The pictures in a folder, by name."""
    path = find_path(folder)
    return sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES) if path.is_dir() else []


@functools.cache
def reference_urls(folder: str, max_side: int) -> tuple[str, ...]:
    """The pictures in a folder as data: URLs, read once per process."""
    found = []
    for file in picture_files(folder):
        with Image.open(file) as picture:
            found.append(data_url(picture.convert("RGB"), max_side))
    return tuple(found)


def content_of(prompt: str | None, shown: Sequence[str], labels: Sequence[str], references: Sequence[str]) -> Content:
    """What the user says: the references, the prompt and the labelled pictures."""
    parts: Content = (
        [text_part(f"{len(references)} reference pictures:"), *map(picture_part, references)] if references else []
    )
    if prompt is not None:
        parts.append(text_part(f"Prompt: {json.dumps(prompt, ensure_ascii=False)}"))
    for label, url in zip(labels, shown, strict=True):
        parts += [text_part(label), picture_part(url)]
    return parts


@dataclass(frozen=True)
class Question:
    """What is asked about `count` pictures."""

    count: int
    instruction: str
    content: Content

    def body(self, model: str, temperature: float, max_tokens: int) -> dict[str, object]:
        """The body of a request."""
        return {
            "model": model,
            "messages": [
                {"role": "system", "content": self.instruction},
                {"role": "user", "content": self.content},
            ],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
