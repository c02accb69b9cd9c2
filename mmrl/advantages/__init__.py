"""Advantage estimators, one a file."""

from mmrl.advantages.gae import GAE
from mmrl.advantages.group_relative import GroupRelative
from mmrl.advantages.leave_one_out import LeaveOneOut
from mmrl.advantages.likelihood import Likelihood
from mmrl.advantages.prompt_history import PromptHistory
from mmrl.advantages.reinforce_plus_plus import ReinforcePlusPlus, ReinforcePlusPlusBaseline

__all__ = [
    "GAE",
    "GroupRelative",
    "LeaveOneOut",
    "Likelihood",
    "PromptHistory",
    "ReinforcePlusPlus",
    "ReinforcePlusPlusBaseline",
]
