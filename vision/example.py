"""Data that the config of `mmrl init vision` reads: digits as questions, in the layout of one's own data."""

from __future__ import annotations

import json
from pathlib import Path

from vision.data.digits import NAMES, Digits
from vision.data.protocols import FewShot

TRAIN, HELD_OUT = 400, 200


def write(folder: Path) -> None:
    """`folder`/train.jsonl, val.jsonl and img/: real pictures (UCI Optical Recognition, CC BY 4.0), with a column
    `kind` beside question and answer."""
    split = FewShot(shots=4, evaluation=400, dev=200).split(Digits())  # as the small model was started: none it saw
    (folder / "img").mkdir(parents=True, exist_ok=True)
    for name, chosen in (("train", split.pool[:TRAIN]), ("val", split.evaluation[:HELD_OUT])):
        rows = []
        for found in chosen:
            picture = f"img/{found.id}.png"
            found.pictures()[0].save(folder / picture)
            kind = "even" if NAMES.index(found.answer) % 2 == 0 else "odd"
            rows.append({"image": picture, "question": found.question, "answer": found.answer, "kind": kind})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
