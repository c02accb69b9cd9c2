"""How good a reward is, and what happens when one pushes on it. `mmrl rewards evaluate` runs `Evaluate`."""

from rewards.evaluation.bars import Bar
from rewards.evaluation.evaluate import Evaluate, Probes, Push
from rewards.evaluation.features import Feature
from rewards.evaluation.gold import GoldPairs, WritePairs
from rewards.evaluation.labelled import Labelled
from rewards.evaluation.overoptimisation import Candidates
from rewards.evaluation.pairs import Pair, Pairs, Source

__all__ = [
    "Bar",
    "Candidates",
    "Evaluate",
    "Feature",
    "GoldPairs",
    "Labelled",
    "Pair",
    "Pairs",
    "Probes",
    "Push",
    "Source",
    "WritePairs",
]
