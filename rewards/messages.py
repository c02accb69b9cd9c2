"""Parts of chat messages, as OpenAI-compatible servers read them: texts, and pictures as data: URLs."""

from __future__ import annotations

import base64
import io

from PIL import Image


def text_part(text: str) -> dict[str, object]:
    """A text."""
    return {"type": "text", "text": text}


def picture_part(url: str) -> dict[str, object]:
    """A picture by its URL."""
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(picture: Image.Image, max_side: int | None = None) -> str:
    """A picture in RGB as PNG, shrunk if a side is above `max_side`: lossless, since artefacts are to be seen."""
    if max_side is not None and max(picture.size) > max_side:
        picture = picture.copy()
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
