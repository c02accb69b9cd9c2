"""Penalties per decision, one family a file."""

from mmrl.regularisers.entropy import Entropy
from mmrl.regularisers.exact_kl import ExactKL
from mmrl.regularisers.kl import K1, K2, K3, K3StraightThrough
from mmrl.regularisers.kl_cov import KLCov
from mmrl.regularisers.lp_reg import LpReg
from mmrl.regularisers.pathwise import Pathwise
from mmrl.regularisers.siren import Siren

__all__ = ["K1", "K2", "K3", "Entropy", "ExactKL", "K3StraightThrough", "KLCov", "LpReg", "Pathwise", "Siren"]
