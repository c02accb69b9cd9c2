"""Penalties per decision, one family a file."""

from mmrl.regularisers.entropy import Entropy
from mmrl.regularisers.kl import K1, K2, K3, K3StraightThrough

__all__ = ["K1", "K2", "K3", "Entropy", "K3StraightThrough"]
