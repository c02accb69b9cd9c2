"""Electroluminescence pictures of solar cells: the ELPV benchmark, 2,624 grey pictures of 300 x 300 pixels
cut out of 44 photovoltaic modules (Buerhop-Lutz et al. 2018, Deitsch et al. 2019, 2021). Their licence
is CC BY-NC-SA 4.0 (no commercial use): they are only read from the PyPI package `elpv-dataset`, never
shipped."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from PIL import Image

from vision.data.base import Example, Source

KINDS = {"mono": "monocrystalline", "poly": "polycrystalline"}


@dataclass(frozen=True)
class ELPV(Source):
    """Is the solar cell defective? `size` in pixels.

    The experts' judgements are 0, 1/3, 2/3 and 1: a functional or a defective cell, sure (0, 1) or not.
    `certain_only` leaves out the 401 pictures about which they were not sure."""

    size: int = 64
    certain_only: bool = True

    def examples(self) -> Sequence[Example]:
        try:
            folder = files("elpv_dataset") / "data"
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'The ELPV source needs the package elpv-dataset: run `pip install ".[vision]"`.',
                name=error.name,
            ) from error
        found = []
        for line in (folder / "labels.csv").read_text(encoding="utf-8").splitlines():
            path, probability, module = line.split()
            defect = float(probability)
            if self.certain_only and defect not in (0.0, 1.0):
                continue
            with Image.open(io.BytesIO(folder.joinpath(path).read_bytes())) as cell:
                picture = cell.resize((self.size, self.size), Image.Resampling.BOX).convert("RGB")
            number = path.removeprefix("images/cell").removesuffix(".png")
            found.append(
                Example(
                    f"elpv-{number}",
                    (picture,),
                    "Is the solar cell defective?",
                    "defective" if defect > 0.5 else "functional",
                    {"module": module},
                )
            )
        return found

    def thought(self, example: Example) -> str:
        """True, but it says nothing about the answer: `thought_agrees` stays None for this source."""
        return f"The cell is {KINDS[str(example.columns['module'])]}."
