"""Changes to rewards before credit is assigned, one a file."""

from mmrl.shapers.adaptive_kl import AdaptiveKLInReward
from mmrl.shapers.kl_in_reward import KLInReward
from mmrl.shapers.overlong import Overlong

__all__ = ["AdaptiveKLInReward", "KLInReward", "Overlong"]
