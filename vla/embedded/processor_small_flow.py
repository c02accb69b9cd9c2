"""What stands before and after the small flow-matching policy: lerobot's usual pipelines, and a step for words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.configs import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.processor import (
    ObservationProcessorStep,
    ProcessorStepRegistry,
    TransitionKey,
    make_default_pre_post_processors,
)
from lerobot.utils.constants import OBS_LANGUAGE_TOKENS
from torch import Tensor

from vla.embedded.configuration_small_flow import SmallFlowConfig
from vla.embedded.encoders import BEGIN, NOTHING, UNKNOWN, WORDS_FROM


def words_of(sentence: str) -> list[str]:
    """Its words in lower case, without punctuation."""
    return re.findall(r"\w+", sentence.lower())


@dataclass
@ProcessorStepRegistry.register(name="small_flow_words")
class WordsStep(ObservationProcessorStep):
    """Adds `observation.language.tokens` (n, max_words + 1), long, of the sentences under `task`. `vocabulary` is saved
    with the pipeline, so that no tokenizer is needed. Every word that is not in it becomes one token of its own
    (`encoders.UNKNOWN`, which cloning has seen in place of random words); words beyond `max_words` are not read."""

    vocabulary: list[str] = field(default_factory=list)
    max_words: int = 16

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Raises:
        ValueError: nothing is told.
        """
        told = (self.transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}).get("task")
        if told is None:
            raise ValueError("this policy is told what to do: give the batch a `task`, a sentence for each row")
        return {**observation, OBS_LANGUAGE_TOKENS: self.tokens([told] if isinstance(told, str) else told)}

    def tokens(self, sentences: Sequence[str]) -> Tensor:
        """(n, max_words + 1) of n sentences."""
        known = {word: WORDS_FROM + number for number, word in enumerate(self.vocabulary)}
        found = torch.full((len(sentences), self.max_words + 1), NOTHING)
        for row, sentence in enumerate(sentences):
            read = [BEGIN, *(known.get(word, UNKNOWN) for word in words_of(sentence)[: self.max_words])]
            found[row, : len(read)] = torch.tensor(read)
        return found

    def get_config(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary, "max_words": self.max_words}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        tokens = PolicyFeature(FeatureType.LANGUAGE, (self.max_words + 1,))
        observed = {**features[PipelineFeatureType.OBSERVATION], OBS_LANGUAGE_TOKENS: tokens}
        return {**features, PipelineFeatureType.OBSERVATION: observed}


def make_small_flow_pre_post_processors(
    config: SmallFlowConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[Any, Any]:
    """The pre- and the postprocessor; `dataset_stats` as lerobot computes them."""
    before, after = make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
    if config.vocabulary:
        before.steps = [*before.steps[:2], WordsStep(config.vocabulary, config.max_words), *before.steps[2:]]
    return before, after
