"""Penalties per decision, one family a file."""

from mmrl.regularisers.entropy import Entropy
from mmrl.regularisers.exact_kl import ExactKL
from mmrl.regularisers.kl import K1, K2, K3, K3StraightThrough
from mmrl.regularisers.pathwise import Pathwise

__all__ = ["K1", "K2", "K3", "Entropy", "ExactKL", "K3StraightThrough", "Pathwise"]
