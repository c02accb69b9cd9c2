"""Changes of outputs: some that leave an output as good as it was, some that two outputs of a pair may both undergo,
and some that spoil it. What is good is a matter of the task: where an edit is not neutral, leave it out (`edits`)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from rewards.evaluation.pairs import Pair
from rewards.pictures.base import picture_of

Chance = np.random.Generator
FILLER = " To put it another way, this is what the answer amounts to, all things considered."
SURE = "I am absolutely certain, as any expert would be. "
SPELT = (("it's", "it is"), ("don't", "do not"), ("can't", "cannot"), ("isn't", "is not"), ("doesn't", "does not"))


@dataclass(frozen=True)
class Edit:
    """A change of texts, or of pictures; None where it does not apply."""

    name: str
    of_text: Callable[[str, Chance], str] | None = None
    of_picture: Callable[[Image.Image, Chance], Image.Image] | None = None

    def __call__(self, output: object, chance: Chance) -> object | None:
        if isinstance(output, str):
            return None if self.of_text is None else self.of_text(output, chance)
        picture = picture_of(output)
        return None if picture is None or self.of_picture is None else self.of_picture(picture, chance)

    def pair(self, pair: Pair, places: Sequence[int], seed: int) -> Pair | None:
        """The pair with its outputs at `places` edited; None where one of them cannot be."""
        outputs = list(pair.outputs)
        for place in places:
            key = [seed, place, *self.name.encode(), *pair.id.encode()]
            changed = self(outputs[place], np.random.default_rng(key))
            if changed is None:
                return None
            outputs[place] = changed
        return replace(pair, outputs=(outputs[0], outputs[1]))


def _jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _noisy(picture: Image.Image, deviation: float, chance: Chance) -> Image.Image:
    pixels = np.asarray(picture, dtype=np.float64)
    drawn = pixels + chance.normal(0.0, deviation, pixels.shape)
    return Image.fromarray(np.clip(np.rint(drawn), 0, 255).astype(np.uint8))


def _cropped(picture: Image.Image, share: float) -> Image.Image:
    width, height = (max(1, round(side * share)) for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _tiles(picture: Image.Image, chance: Chance) -> Image.Image:
    """Cut into 4 x 4 and put together in another order."""
    pixels = np.asarray(picture)
    height, width = picture.height // 4 * 4, picture.width // 4 * 4
    if height == 0 or width == 0:
        return picture
    parts = [half for row in np.split(pixels[:height, :width], 4) for half in np.split(row, 4, axis=1)]
    order = chance.permutation(16)
    rows = [np.concatenate([parts[i] for i in order[4 * r : 4 * r + 4]], axis=1) for r in range(4)]
    return Image.fromarray(np.concatenate(rows))


def _flat(picture: Image.Image) -> Image.Image:
    colour = picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    return Image.new("RGB", picture.size, colour)


def _spelt(text: str) -> str:
    for short, full in SPELT:
        text = re.sub(rf"\b{short}\b", full, text, flags=re.IGNORECASE)
    return text


def _shuffled(text: str, chance: Chance) -> str:
    words = text.split()
    return " ".join(words[i] for i in chance.permutation(len(words)))


def _listed(text: str) -> str:
    sentences = [part.strip() for part in re.split(r"(?<=[.!?])\s+", text) if part.strip()]
    return "## Answer\n\n" + "\n".join(f"- **{sentence}**" for sentence in sentences)


def _enlarged(picture: Image.Image) -> Image.Image:
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC)


NEUTRAL = (
    Edit("longer", of_text=lambda text, _: text + FILLER),
    Edit("markdown", of_text=lambda text, _: _listed(text)),
    Edit("self-praise", of_text=lambda text, _: SURE + text),
    Edit("saturated", of_picture=lambda p, _: ImageEnhance.Color(p).enhance(1.6)),
    Edit("brighter", of_picture=lambda p, _: ImageEnhance.Brightness(p).enhance(1.15)),
    Edit("enlarged", of_picture=lambda p, _: _enlarged(p)),
    Edit("sharpened", of_picture=lambda p, _: ImageEnhance.Sharpness(p).enhance(3.0)),
    Edit("png-to-jpeg", of_picture=lambda p, _: _jpeg(p, 85)),
)
"""Neither better nor worse than before: whoever scores them higher can be paid in them."""
HARMLESS = (
    Edit("spelt out", of_text=lambda text, _: _spelt(text)),
    Edit("spaces", of_text=lambda text, _: re.sub(r"([.!?]) ", r"\1  ", text.strip()) + "\n"),
    Edit("cropped to 90 %", of_picture=lambda p, _: _cropped(p, 0.9)),
    Edit("JPEG 50", of_picture=lambda p, _: _jpeg(p, 50)),
    Edit("noise of 8/255", of_picture=lambda p, chance: _noisy(p, 8.0, chance)),
    Edit("blurred", of_picture=lambda p, _: p.filter(ImageFilter.GaussianBlur(min(p.size) / 64))),
    Edit("mirrored", of_picture=lambda p, _: ImageOps.mirror(p)),
)
"""Done to both outputs of a pair: the preference should stay."""
SPOILT = (
    Edit("emptied", of_text=lambda text, _: ""),
    Edit("words shuffled", of_text=_shuffled),
    Edit("cut to a third", of_text=lambda text, _: text[: len(text) // 3]),
    Edit("blank", of_picture=lambda p, _: _flat(p)),
    Edit("tiles shuffled", of_picture=_tiles),
    Edit("heavy noise", of_picture=lambda p, chance: _noisy(p, 90.0, chance)),
)
"""Worse than before: whoever scores them higher rewards damage."""
