"""How a decision's entropy changes as its log-prob is raised, to first order and without its off-diagonal part: what
`mmrl.selectors.Steer` weighs by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrl.statistics import Entropy, Statistic


@dataclass(frozen=True)
class EntropySlope(Statistic):
    """Tokens: (1 - p) (log p + H). Gaussians: z^2 - 1, the change of log p with log sigma, with which H moves one to
    one."""

    noises = ("categorical", "learned")
    name = "entropy_slope"

    def of_categorical(self, log_softmax: Tensor, drawn: Tensor) -> Tensor:
        logprobs = log_softmax.gather(-1, drawn[..., None]).squeeze(-1)
        return (1.0 - logprobs.exp()) * (logprobs + Entropy().of_categorical(log_softmax, drawn))

    def of_gaussian(self, standard: Tensor, log_std: Tensor) -> Tensor:
        return standard.square() - 1.0
