"""What pictures are compared with: those of the policy as it starts (Pairwise-RL's anchor of a prompt).

One of each training prompt; of a held-out prompt as many as an evaluation draws, from the same noise, so that before
training every picture is its own anchor. They are drawn once, before the first step, and lie in the run's folder:

anchors/{train,held_out}/<number>_<picture>.png, and anchors/anchors.json, written last: prompt -> files
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from diffusion.collector import PictureCollector
from diffusion.evaluation import ROWS, PictureEvaluator
from diffusion.policy import DiffusionPolicy
from diffusion.prompts import Asked
from diffusion.sampling import draw
from mmrl.checkpoint import write_atomically
from mmrl.parts import Parts
from mmrl.runtime import Runtime, acting

FOLDER, INDEX = "anchors", "anchors.json"
Drawn = dict[str, list[Image.Image]]
"""Prompt -> its pictures."""


def anchors_of(parts: Parts, runtime: Runtime, folder: Path | None) -> Mapping[str, Sequence[object]]:
    """Prompt -> its anchors: paths below the run's `folder`, drawn now if they are not there, or pictures without one.

    Raises:
        ValueError: the folder's are of other prompts, or one is gone.
    """
    if folder is None:
        drawn = drawn_by(parts, runtime)
        return {prompt: pictures for part in drawn.values() for prompt, pictures in part.items()}
    index = folder / FOLDER / INDEX
    if runtime.is_main and not index.is_file():
        write(drawn_by(parts, runtime), folder / FOLDER)
    runtime.wait()
    named: dict[str, list[str]] = json.loads(index.read_text())
    lost = [name for names in named.values() for name in names if not (index.parent / name).is_file()]
    if lost or named.keys() != {one.prompt for one in asked_of(parts)}:
        why = f"{lost[0]} is gone" if lost else "they are of other prompts"
        raise ValueError(f"the anchors in {index.parent} cannot be used ({why}): start a new run, which draws its own")
    return {prompt: [str(index.parent / name) for name in names] for prompt, names in named.items()}


def parts_of(parts: Parts) -> tuple[PictureCollector, PictureEvaluator, DiffusionPolicy]:
    """Those of a diffusion run."""
    collector, evaluator, policy = parts.collector, parts.evaluator, parts.policy
    assert isinstance(collector, PictureCollector)
    assert isinstance(evaluator, PictureEvaluator)
    assert isinstance(policy, DiffusionPolicy)
    return collector, evaluator, policy


def asked_of(parts: Parts) -> Iterable[Asked]:
    """All prompts of a run."""
    collector, evaluator, _ = parts_of(parts)
    return (*collector.prompts, *evaluator.prompts)


def drawn_by(parts: Parts, runtime: Runtime) -> dict[str, Drawn]:
    """The anchors by the policy as it is now, by part."""
    collector, evaluator, policy = parts_of(parts)
    parts.to(runtime.device)
    found: dict[str, Drawn] = {"train": {}, "held_out": {}}
    sampling = replace(collector.sampling, train_steps=None)
    with acting(policy), runtime.accelerator.autocast():
        generator = runtime.fresh_generator("anchors")
        for start in range(0, len(collector.prompts), ROWS):
            some = collector.prompts[start : start + ROWS]
            pictures = draw(policy, some, 1, sampling, generator).pictures
            found["train"] |= {one.prompt: [picture] for one, picture in zip(some, pictures, strict=True)}
        drawn = evaluator.drawn(policy, evaluator.prompts, evaluator.per_prompt, runtime.fresh_generator("evaluate"))
        pictures = [picture for portion in drawn for picture in portion.pictures]
        for number, one in enumerate(evaluator.prompts):
            mine = pictures[number * evaluator.per_prompt : (number + 1) * evaluator.per_prompt]
            found["held_out"].setdefault(one.prompt, []).extend(mine)
    return found


def write(drawn: Mapping[str, Drawn], folder: Path) -> None:
    """Write the pictures of each part, and then where they are."""
    named: dict[str, list[str]] = {}
    for part, by_prompt in drawn.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        for number, (prompt, pictures) in enumerate(by_prompt.items()):
            named[prompt] = [f"{part}/{number:05d}_{k}.png" for k in range(len(pictures))]
            for name, picture in zip(named[prompt], pictures, strict=True):
                picture.save(folder / name)
    write_atomically(folder / INDEX, json.dumps(named, indent=1, ensure_ascii=False))
