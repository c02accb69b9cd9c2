"""How much likelier a decision is under the old policy once its unlikeliest alternatives are taken out: the proxy of
Lp-Reg, arXiv 2510.03222.

Tokens: those with pi(v) >= kappa max pi stay (min-p), renormalised; the gain is -log of the mass that stayed, 0 for a
token that is taken out. Gaussians: numbers with exp(-z^2 / 2) >= kappa stay, a box around the mean; the gain of each
is -log of its mass, erf(sqrt(-log kappa)), and a vector with a number outside has a negative one. In hundreds of
dimensions nearly every vector has one, unless kappa is tiny: 1e-6 is a box of 5 deviations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.statistics import Statistic

OUTSIDE = -1e4
"""Gain of a number that is taken out; a sum or mean over dimensions that holds it is negative."""


@dataclass(frozen=True)
class ProxyGain(Statistic):
    """log proxy - log pi (...) of the decision that was drawn; not above 0 where the proxy leaves it out."""

    kappa: float = 0.02

    @property
    def name(self) -> str:
        return f"proxy_gain_{self.kappa:g}"

    def of_categorical(self, log_softmax: Tensor, drawn: Tensor) -> Tensor:
        floor = log_softmax.amax(-1, keepdim=True) + math.log(self.kappa)
        stays = log_softmax >= floor
        mass = torch.where(stays, log_softmax.exp(), 0.0).sum(-1)
        return torch.where(stays.gather(-1, drawn[..., None]).squeeze(-1), -mass.log(), 0.0).clamp(min=0.0)

    def of_gaussian(self, standard: Tensor, log_std: Tensor) -> Tensor:
        inside = -0.5 * standard.square() >= math.log(self.kappa)
        mass = math.erf(math.sqrt(-math.log(self.kappa)))
        return torch.where(inside, -math.log(mass), OUTSIDE)
