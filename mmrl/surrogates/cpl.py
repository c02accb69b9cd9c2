"""Contrastive preference learning, CPL, arXiv 2310.13639, eq. 5: of two trajectories the better one is the likelier.

S_i = sum_t alpha log pi, or alpha (log pi - log ref) with `reference`
L = -log [ e^{S+} / (e^{S+} + e^{bias S-}) ], the mean over all pairs of a group whose rewards differ, laid on its
decisions

Under `aggregates.SequenceMean` that is the mean over groups by their size. Advantages are not read. S is a sum: of two
lengths the shorter is favoured, and with a bias below 1 the constant of a density counts. A pair of alternatives with
rewards 1 and 0 is a labelled preference.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import softplus

from mmrl.algorithm import Stats, Surrogate
from mmrl.masked import group_sum, masked_sum
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Batch


@dataclass(frozen=True)
class CPL(Surrogate):
    """Preference without a reward model and without a policy gradient."""

    alpha: float = 0.1
    bias: float = 0.5
    reference: bool = False
    whole_trajectories = True
    whole_groups = True
    silent_at_zero = False

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        """Whether scores are relative to it."""
        return self.reference

    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        assert batch.rewards is not None
        if self.reference and batch.ref_logprobs is None:
            raise ValueError(f"{type(self).__name__} needs Rollout.ref_logprobs: give the trainer a reference policy")
        by = batch.ref_logprobs if self.reference and batch.ref_logprobs is not None else logprobs.new_zeros(())
        terms = log_ratio(logprobs, by, batch.mask) if self.reference else logprobs
        score, there = self.alpha * masked_sum(terms, batch.mask, dim=-1), batch.mask.any(-1)
        alike = (batch.group_ids[:, None] == batch.group_ids) & there[:, None] & there
        better = (alike & (batch.rewards[:, None] > batch.rewards)).to(score.dtype)  # (i, j): i is better than j
        losses = better * softplus(self.bias * score - score[:, None])
        pairs = group_sum(better.sum(-1), there, batch.group_ids).clamp(min=1)
        loss = group_sum(losses.sum(-1), there, batch.group_ids) / pairs
        won = group_sum((better * (score[:, None] > score)).sum(-1), there, batch.group_ids) / pairs
        return loss[:, None].expand_as(logprobs), {"preferred": won.detach()[:, None].expand_as(logprobs)}
