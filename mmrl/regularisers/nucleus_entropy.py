"""Entropy of the nucleus alone, as SIREN, arXiv 2509.25133, regularises it: what the long tail of a vocabulary adds to
an entropy is noise, and raising it makes noise.

V_p = the likeliest alternatives up to and with the one that reaches mass p;   q = pi / pi(V_p) on V_p;   H^p = -sum q
log q

The authors' code leaves out the alternative that crosses p, so that a nucleus can be empty; here it belongs to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.statistics import Statistic


@dataclass(frozen=True)
class NucleusEntropy(Statistic):
    """H^p (...), with gradient through the renormalised q and none through what is in the nucleus."""

    mass: float = 0.8
    noises = ("categorical",)

    @property
    def name(self) -> str:
        return f"nucleus_entropy_{self.mass:g}"

    def of_categorical(self, log_softmax: Tensor, drawn: Tensor) -> Tensor:
        ordered = log_softmax.sort(dim=-1, descending=True).values
        probability = ordered.exp()
        before = probability.cumsum(-1) - probability
        inside = (before < self.mass).detach()
        inside = inside & (ordered > float("-inf"))
        kept = torch.where(inside, ordered, float("-inf"))
        log_q = kept - torch.logsumexp(kept, -1, keepdim=True)
        return -(log_q.exp() * torch.where(inside, log_q, 0.0)).sum(-1)
