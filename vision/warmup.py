"""A supervised start: few demonstrations, through the same update as RL with an advantage of 1."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from mmrl.advantages import Likelihood
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.settings import TrainConfig
from mmrl.surrogates import Reinforce
from vision import embedded
from vision.data import Source, Split
from vision.demonstrations import Corrections
from vision.prompts import Direct, Prompt, Think

SHOWN = 4
"""Completions of each demonstration that the vocabulary is made from, where they differ."""
REPLIES = 4
"""To drafts of each demonstration, that the vocabulary is made from."""
MAXIMUM_LIKELIHOOD = Algorithm(Likelihood(), Reinforce(), TokenMean())


@dataclass(frozen=True)
class WarmupConfig:
    """How `mmrl warmup` makes a base policy. `model` null starts from `policy.model`, otherwise from a new
    small one. Every batch of `rows` demonstrations mixes the prompt styles. A share `corrections` of them are second
    turns, after a draft of the source's and what the config's `tool` says to it."""

    output: str = "assets/vision/digits"
    model: embedded.EmbeddedConfig | None = embedded.EmbeddedConfig()
    styles: tuple[Prompt, ...] = (Think(), Direct())
    rows: int = 32
    corrections: float = 0.0
    train: TrainConfig = TrainConfig(steps=160, lr=1e-3, weight_decay=0.05)

    def __post_init__(self) -> None:
        if not 0 <= self.corrections < 1:
            raise ValueError(f"warmup.corrections is {self.corrections}: give a share, at least 0 and less than 1")


def written_texts(
    config: WarmupConfig, source: Source, split: Split, corrections: Corrections | None = None
) -> list[str]:
    """All that the model will read and write on the demonstrations, for its vocabulary. Every label is
    among them, since a label that was never split into tokens can still be spelt."""
    found, chance = [], random.Random(0)
    for style in config.styles:
        for example in split.demonstrations:
            found.append(style.text(example, split.labels))
            found += dict.fromkeys(style.shown(source, example, chance) for _ in range(SHOWN))
            for _ in range(REPLIES if corrections is not None else 0):
                written, reply = corrections.reply(source, example, style, chance)
                found += [written, reply.text]
    return [*found, *split.labels]


def make_model(
    config: WarmupConfig, source: Source, split: Split, seed: int, folder: Path, corrections: Corrections | None = None
) -> None:
    """A new small model in `folder`."""
    if config.model is None:
        raise ValueError("warmup.model is null: there is no new model to make")
    embedded.save(config.model, written_texts(config, source, split, corrections), seed, folder)
