"""Small reward models of one's own. `mmrl rewards train` runs `TrainBradleyTerry`, which `Trained` uses,
`TrainPairwise`, which `TrainedPairwise` does, or `TrainPrinciples`, which `TrainedYesNo` does."""

from rewards.training.backbones import OpenClip, Transformers
from rewards.training.bradley_terry import TrainBradleyTerry
from rewards.training.emoji_rows import EmojiPrinciples
from rewards.training.feedback import Feedback
from rewards.training.pairwise import TrainedPairwise, TrainPairwise
from rewards.training.principles import TrainedYesNo, TrainPrinciples
from rewards.training.rows import PrinciplePairs, PrincipleRows
from rewards.training.trained import Trained

__all__ = [
    "EmojiPrinciples",
    "Feedback",
    "OpenClip",
    "PrinciplePairs",
    "PrincipleRows",
    "TrainBradleyTerry",
    "TrainPairwise",
    "TrainPrinciples",
    "Trained",
    "TrainedPairwise",
    "TrainedYesNo",
    "Transformers",
]
