"""Draws SVG with resvg. What points outside the document is refused, where resvg would leave it out silently."""

from __future__ import annotations

import io
import re
from pathlib import Path
from xml.parsers import expat  # contained: a hostile document has this process to itself

import resvg_py
from PIL import Image

from rewards.render.inside.fork_server import Bounds
from rewards.render.inside.frames import Answer, Failure, Refused

FONTS = "/fonts"
OUTSIDE = re.compile(r"url\(\s*['\"]?(?!\s*['\"]?\s*(?:#|data:))|@import", re.IGNORECASE)
"""A reference in CSS that is neither a fragment of the document nor data."""


def draw(program: bytes, bounds: Bounds) -> Answer:
    """The drawing of `program` (UTF-8), as large as fits into the settings `height` and `width`, centred on white.

    Raises:
        Refused: it is no XML, no SVG, or refers to something outside itself.
    """
    try:
        text = program.decode()
        _check(program)
    except (UnicodeDecodeError, expat.ExpatError) as error:
        raise Refused(Failure.SYNTAX_ERROR, str(error)) from error
    height, width = int(str(bounds.settings["height"])), int(str(bounds.settings["width"]))
    fonts = sorted(str(path) for path in Path(FONTS).glob("DejaVu*.ttf")) if "<text" in text or ":text" in text else []
    try:
        png = resvg_py.svg_to_bytes(
            svg_string=text, width=width, height=height, skip_system_fonts=True, font_files=fonts,
            font_family="DejaVu Sans", serif_family="DejaVu Serif", sans_serif_family="DejaVu Sans",
            monospace_family="DejaVu Sans Mono",
        )  # fmt: skip
    except ValueError as error:
        raise Refused(Failure.SYNTAX_ERROR, str(error)) from error
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if drawn.width * drawn.height > bounds.max_pixels:
        raise Refused(Failure.TOO_LARGE, f"it has {drawn.width} x {drawn.height} pixels of at most {bounds.max_pixels}")
    drawn.thumbnail((width, height))
    page = Image.new("RGB", (width, height), "white")
    page.paste(drawn, ((width - drawn.width) // 2, (height - drawn.height) // 2), drawn)
    return Answer(height=height, width=width, pixels=page.tobytes())


def _check(program: bytes) -> None:
    """Read the document once, looking at what it refers to."""
    parser = expat.ParserCreate(namespace_separator=" ")
    style: list[str] = []

    def element(name: str, attributes: dict[str, str]) -> None:
        style.append(name)
        for key, value in attributes.items():
            if key.rpartition(" ")[2] in ("href", "src") and not value.strip().lower().startswith(("#", "data:")):
                raise Refused(Failure.FORBIDDEN, f"{key.rpartition(' ')[2]} {value[:100]!r} lies outside the document")
            _check_style(value)

    def text(data: str) -> None:
        if style and style[-1].endswith("style"):
            _check_style(data)

    def entity(name: str, *_: object) -> None:
        raise Refused(Failure.FORBIDDEN, f"it declares the entity {name[:100]!r}")

    def instruction(target: str, _: str) -> None:
        if target == "xml-stylesheet":
            raise Refused(Failure.FORBIDDEN, "it asks for a style sheet outside the document")

    parser.StartElementHandler = element
    parser.EndElementHandler = lambda _: style.pop()
    parser.CharacterDataHandler = text
    parser.EntityDeclHandler = entity
    parser.ProcessingInstructionHandler = instruction
    parser.buffer_text = True
    parser.Parse(program, True)


def _check_style(text: str) -> None:
    if found := OUTSIDE.search(text):
        raise Refused(Failure.FORBIDDEN, f"{text[found.start() :][:100]!r} lies outside the document")
