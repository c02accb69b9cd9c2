"""ROVER, arXiv 2509.24981: the policy's log-prob as the value of acting at random from here on.

Q_t = rho (log pi_t - log pi_old_t);   y_t = A + rho (u_{t+1} - u_old_{t+1}), without the second term at the last
decision L_t = (Q_t - sg(y_t))^2, with u_t the mean of log pi(. | s_t) over all alternatives, and A the centred reward,
at every t

Take `GroupRelative(normalise=false)`; one of the authors' two code bases registers a reward variant that its script
does not use, and another has A in deviations. In a tree with rewards of 0 and 1 acting greedily on Q is optimal. While
the policy is the one that acted, the gradient is twice REINFORCE's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.algorithm import Stats, Surrogate
from mmrl.statistics import Statistic
from mmrl.surrogates.mean_logprob import MeanLogProb
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Batch


@dataclass(frozen=True)
class ROVER(Surrogate):
    """Regression to values of the uniform policy. Needs alternatives: of vectors there is no uniform choice."""

    rho: float = 1.0
    whole_trajectories = True
    silent_at_zero = False

    @property
    def plans_on(self) -> tuple[Statistic, ...]:
        return (MeanLogProb(),)

    @property
    def reads(self) -> tuple[Statistic, ...]:
        return (MeanLogProb(),)

    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        value = self.rho * log_ratio(logprobs, batch.old_logprobs, batch.mask)
        change = (batch.current[MeanLogProb.name] - batch.stats[MeanLogProb.name]).detach()
        following = pad(torch.where(batch.mask, change, 0.0)[:, 1:], (0, 1))
        target = batch.advantages + self.rho * following
        return (value - target).square(), {"rover_value": value.detach()}
