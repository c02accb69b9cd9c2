"""Rewards and watchdogs of pictures."""

from rewards.pictures.aesthetic import Aesthetic
from rewards.pictures.base import PictureReward
from rewards.pictures.clip import ClipAccuracy, ClipScore
from rewards.pictures.jpeg import Compressibility, Incompressibility
from rewards.pictures.judge import Judge
from rewards.pictures.preference import HPSv2, ImageReward, PickScore
from rewards.pictures.similarity import LPIPS, SSIM
from rewards.pictures.watchdogs import ColourEntropy, DarkShare, Diversity, default_watchdogs

__all__ = [
    "LPIPS",
    "SSIM",
    "Aesthetic",
    "ClipAccuracy",
    "ClipScore",
    "ColourEntropy",
    "Compressibility",
    "DarkShare",
    "Diversity",
    "HPSv2",
    "ImageReward",
    "Incompressibility",
    "Judge",
    "PickScore",
    "PictureReward",
    "default_watchdogs",
]
