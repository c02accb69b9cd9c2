"""Policy-gradient losses per decision, one a file."""

from mmrl.surrogates.cispo import CISPO
from mmrl.surrogates.gspo import GSPO
from mmrl.surrogates.importance import Importance
from mmrl.surrogates.ppo_clip import PPOClip
from mmrl.surrogates.reinforce import Reinforce

__all__ = ["CISPO", "GSPO", "Importance", "PPOClip", "Reinforce"]
