"""Rollout plans: how the answers of a group come about, where they are not all drawn one beside the other."""

from vision.plans.aepo import AEPO
from vision.plans.base import Plan
from vision.plans.cure import CURE
from vision.plans.hard_phases import HardPhases
from vision.plans.nlpo import NLPO
from vision.plans.refined import Refined
from vision.plans.spear import SPEAR
from vision.plans.swapped import Swapped
from vision.plans.ulorl import UloRL

__all__ = ["AEPO", "CURE", "NLPO", "SPEAR", "HardPhases", "Plan", "Refined", "Swapped", "UloRL"]
