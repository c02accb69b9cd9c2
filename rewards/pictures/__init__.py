"""Rewards of pictures: `Samples.outputs` are RGB pictures of PIL."""

from rewards.pictures.jpeg import Compressibility, Incompressibility

__all__ = ["Compressibility", "Incompressibility"]
