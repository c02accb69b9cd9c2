"""Preferences of a known reward over what a policy draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmrl.types import RewardFunction
from rewards.compose import Part
from rewards.evaluation.overoptimisation import Candidates
from rewards.evaluation.pairs import Pair, Source, ranked
from rewards.evaluation.scoring import numbers
from rewards.pictures.base import groups_of, prompts_of


@dataclass(frozen=True)
class Labelled(Source):
    """Every two of the `candidates` of a prompt, of which that one is better which `gold` scores higher: what a reward
    model may learn where the truth is known. A prompt is one cluster."""

    candidates: Candidates
    gold: RewardFunction | str

    def pairs(self) -> list[Pair]:
        samples = self.candidates.draw()
        scores, prompts = numbers("gold", Part(self.gold).function, samples), prompts_of(samples, "Labelled")
        found: list[Pair] = []
        for number, group in enumerate(groups_of(samples, "Labelled").values()):
            known = [i for i in group if np.isfinite(scores[i])]
            outputs, ranks = [samples.outputs[i] for i in known], [-float(scores[i]) for i in known]
            found += ranked(f"prompt-{number}", prompts[group[0]], outputs, ranks)
        return found
