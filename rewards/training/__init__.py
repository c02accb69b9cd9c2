"""Small reward models of one's own. `mmrl rewards train` runs `TrainBradleyTerry`, which `Trained` uses, and
`TrainPairwise`, which `TrainedPairwise` does."""

from rewards.training.backbones import OpenClip, Transformers
from rewards.training.bradley_terry import TrainBradleyTerry
from rewards.training.pairwise import TrainedPairwise, TrainPairwise
from rewards.training.trained import Trained

__all__ = ["OpenClip", "TrainBradleyTerry", "TrainPairwise", "Trained", "TrainedPairwise", "Transformers"]
