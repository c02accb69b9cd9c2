"""The requests to a judge: rubric, reference pictures, prompt and pictures, as chat completions with data: URLs."""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

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


def data_url(picture: Image.Image, max_side: int) -> str:
    """A picture in RGB as PNG, shrunk if a side is above `max_side`: lossless, since artefacts are to be judged."""
    if max(picture.size) > max_side:
        picture = picture.copy()
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def content_of(prompt: str | None, shown: Sequence[str], labels: Sequence[str], references: Sequence[str]) -> Content:
    """What the user says: the references, the prompt and the labelled pictures."""
    parts: Content = [_text(f"{len(references)} reference pictures:"), *map(_picture, references)] if references else []
    if prompt is not None:
        parts.append(_text(f"Prompt: {json.dumps(prompt, ensure_ascii=False)}"))
    for label, url in zip(labels, shown, strict=True):
        parts += [_text(label), _picture(url)]
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


def _text(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def _picture(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}
