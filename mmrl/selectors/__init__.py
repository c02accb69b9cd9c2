"""Weights on decisions, planned on the whole rollout, one a file."""

from mmrl.selectors.clip_cov import ClipCov
from mmrl.selectors.drop_decided_groups import DropDecidedGroups
from mmrl.selectors.drop_mastered import DropMastered
from mmrl.selectors.drop_outliers import DropOutliers
from mmrl.selectors.drop_truncated import DropTruncated
from mmrl.selectors.forking_tokens import ForkingTokens
from mmrl.selectors.ice_pop import IcePop
from mmrl.selectors.steer import Steer
from mmrl.selectors.steer_exponential import SteerExponential
from mmrl.selectors.truncated_importance import TruncatedImportance

__all__ = [
    "ClipCov",
    "DropDecidedGroups",
    "DropMastered",
    "DropOutliers",
    "DropTruncated",
    "ForkingTokens",
    "IcePop",
    "Steer",
    "SteerExponential",
    "TruncatedImportance",
]
