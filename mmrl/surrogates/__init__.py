"""Losses per decision, one a file: policy gradients, and objectives of whole groups."""

from mmrl.surrogates.a_lol import ALoL
from mmrl.surrogates.aipo import AIPO
from mmrl.surrogates.cispo import CISPO
from mmrl.surrogates.cpl import CPL
from mmrl.surrogates.dpo import DPO
from mmrl.surrogates.gppo import GPPO
from mmrl.surrogates.gspo import GSPO
from mmrl.surrogates.guided import Guided
from mmrl.surrogates.importance import Importance
from mmrl.surrogates.pacs import PACS
from mmrl.surrogates.ppo_clip import PPOClip
from mmrl.surrogates.pre_clip import PreClip
from mmrl.surrogates.reinforce import Reinforce
from mmrl.surrogates.rover import ROVER

__all__ = [
    "AIPO",
    "CISPO",
    "CPL",
    "DPO",
    "GPPO",
    "GSPO",
    "PACS",
    "ROVER",
    "ALoL",
    "Guided",
    "Importance",
    "PPOClip",
    "PreClip",
    "Reinforce",
]
