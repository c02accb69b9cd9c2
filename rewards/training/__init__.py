"""Small reward models of one's own. `mmrl rewards train` runs `TrainBradleyTerry`; `Trained` uses what it wrote."""

from rewards.training.backbones import OpenClip, Transformers
from rewards.training.bradley_terry import TrainBradleyTerry
from rewards.training.trained import Trained

__all__ = ["OpenClip", "TrainBradleyTerry", "Trained", "Transformers"]
