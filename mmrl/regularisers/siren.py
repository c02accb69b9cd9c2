"""SIREN, arXiv 2509.25133: entropy of the nucleus, at its peaks in each answer, is held at what it was at the start.

H = mean over trajectories of the mean of H^p over the decisions above the `peak` quantile of their trajectory
penalty = coef (H - H_0)^2, in both directions; H_0 is H in the first rollout, and a checkpoint remembers it

Its gradient is 2 coef (H - H_0) that of H: the factor is measured once, on the rollout of all ranks; the authors' code
squares the difference of each micro-batch, which adds the noise of its mean. The value that is logged means nothing.
With `aggregates.SequenceMean` the mean is exactly H's, with others that of their weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.algorithm import Credit, Regulariser, Stats
from mmrl.masked import masked_mean
from mmrl.memory import Remembering
from mmrl.regularisers.nucleus_entropy import NucleusEntropy
from mmrl.statistics import Entropy, Noise, Statistic
from mmrl.types import Batch, Evaluation, Rollout


@dataclass(frozen=True)
class Siren(Remembering, Regulariser):
    """Holds entropy where it is high. `mass` is the nucleus's p; 1 is the plain entropy, which Gaussians of learned
    spread have too."""

    coef: float = 0.005
    mass: float = 0.8
    peak: float = 0.8

    @property
    def plans_on(self) -> tuple[Statistic, ...]:
        return (Entropy(),) if self.mass >= 1 else (NucleusEntropy(self.mass),)

    @property
    def reads(self) -> tuple[Statistic, ...]:
        return self.plans_on

    def objection(self, noise: Noise) -> str:
        said = super().objection(noise)
        return "with mass below 1 has no nucleus there: set mass: 1" if said and noise == "learned" else said

    def plan(self, rollout: Rollout, credit: Credit) -> dict[str, Tensor]:
        entropy = rollout.stats[self.plans_on[0].name].double()
        height = torch.where(rollout.mask, entropy, float("nan")).nanquantile(self.peak, dim=-1, keepdim=True)
        peaks = rollout.mask & (entropy > height)
        share = peaks.sum(-1, keepdim=True) / rollout.mask.sum(-1, keepdim=True).clamp(min=1)
        there = peaks.any(-1)
        level = float(masked_mean(masked_mean(entropy, peaks, dim=-1), there))
        start = self._memory.setdefault("entropy", level) if bool(there.any()) else level
        pull = 2.0 * self.coef * (level - start) / share.clamp(min=1e-9)
        return {"Siren": peaks, "siren_pull": torch.where(peaks, pull, 0.0).to(rollout.logprobs.dtype)}

    def __call__(self, evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Stats]:
        entropy = batch.current[self.reads[0].name]
        return batch.stats["siren_pull"] * entropy, {"anchored_entropy": entropy.detach()}
