"""Real photographs that come with packages, so that nothing is downloaded: those of the wheels of scikit-image (public
domain or CC0) and scikit-learn (CC BY 2.0)."""

from __future__ import annotations

import io
from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image, ImageOps

PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "bricks": ("skimage", "data/brick.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "stars": ("skimage", "data/hubble_deep_field.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
"""What is seen on each, and where it lies."""


@cache
def photograph(name: str) -> Image.Image:
    """One of `PHOTOGRAPHS`, RGB.

    Raises:
        ModuleNotFoundError: the package that holds it is missing.
    """
    package, path = PHOTOGRAPHS[name]
    try:
        data = (files(package) / path).read_bytes()
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    return Image.open(io.BytesIO(data)).convert("RGB")


def photographs() -> list[Image.Image]:
    """All of them, in a fixed order."""
    return [photograph(name) for name in PHOTOGRAPHS]


def crop(picture: Image.Image, size: int, chance: np.random.Generator) -> Image.Image:
    """A square of it with 20 to 60 % of its shorter side, `size` pixels large, mirrored every other time."""
    side = chance.uniform(0.2, 0.6) * min(picture.size)
    left, top = chance.uniform(0, picture.width - side), chance.uniform(0, picture.height - side)
    box = (left, top, left + side, top + side)
    found = picture.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    return ImageOps.mirror(found) if chance.random() < 0.5 else found


def missing_package(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """What to do about it."""
    return ModuleNotFoundError(
        f'What is drawn here needs the package {error.name}: run `pip install ".[vision]"`.', name=error.name
    )
