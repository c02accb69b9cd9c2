"""Advantage estimators, one a file."""

from mmrl.advantages.batch_scaled import BatchScaled
from mmrl.advantages.entropy_aware import EntropyAware
from mmrl.advantages.gae import GAE
from mmrl.advantages.group_relative import GroupRelative
from mmrl.advantages.history_median import HistoryMedian
from mmrl.advantages.leave_one_out import LeaveOneOut
from mmrl.advantages.likelihood import Likelihood
from mmrl.advantages.prompt_history import PromptHistory
from mmrl.advantages.reinforce_plus_plus import ReinforcePlusPlus, ReinforcePlusPlusBaseline

__all__ = [
    "GAE",
    "BatchScaled",
    "EntropyAware",
    "GroupRelative",
    "HistoryMedian",
    "LeaveOneOut",
    "Likelihood",
    "PromptHistory",
    "ReinforcePlusPlus",
    "ReinforcePlusPlusBaseline",
]
