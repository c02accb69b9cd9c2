"""A supervised start: few demonstrations, through the same update as RL with an advantage of 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmrl.advantages import Likelihood
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.settings import TrainConfig
from mmrl.surrogates import Reinforce
from vision import embedded
from vision.data import Example, Source, Split
from vision.prompts import Direct, Prompt, Think

MAXIMUM_LIKELIHOOD = Algorithm(Likelihood(), Reinforce(), TokenMean())


@dataclass(frozen=True)
class WarmupConfig:
    """How `mmrl warmup` makes a base policy. `model` null starts from `policy.model`, otherwise from a new
    small one. Every batch of `rows` demonstrations mixes the prompt styles. `also_reads` are further texts for the
    vocabulary, such as what a tool answers: they are trained on no further."""

    output: str = "assets/vision/digits"
    model: embedded.EmbeddedConfig | None = embedded.EmbeddedConfig()
    styles: tuple[Prompt, ...] = (Think(), Direct())
    also_reads: tuple[str, ...] = ()
    rows: int = 32
    train: TrainConfig = TrainConfig(steps=160, lr=1e-3, weight_decay=0.05)


def written_texts(source: Source, split: Split, styles: tuple[Prompt, ...]) -> list[str]:
    """All that the model will read and write on the demonstrations, for its vocabulary. Every label is
    among them, since a label that was never split into tokens can still be spelt."""
    found = []
    for style in styles:
        for example in split.demonstrations:
            found.append(style.text(example, split.labels))
            found.append(style.demonstration(example.answer, source.thought(example)))
    return [*found, *split.labels]


def make_model(config: WarmupConfig, source: Source, split: Split, seed: int, folder: Path) -> None:
    """A new small model in `folder`."""
    if config.model is None:
        raise ValueError("warmup.model is null: there is no new model to make")
    texts = [*written_texts(source, split, config.styles), *config.also_reads]
    embedded.save(config.model, texts, seed, folder)


def thoughts_of(source: Source, examples: list[Example]) -> list[str]:
    """The thought of each demonstration."""
    return [source.thought(example) for example in examples]
