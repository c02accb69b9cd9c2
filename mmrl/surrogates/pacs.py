"""PACS, arXiv 2509.02522: a verifier's verdict as the label of a classification whose score is the policy's own.

psi_i = beta sum_t (log pi - log pi_old);   s_i = psi_i - mean of the others in its group, with gradient
L_i = w_i BCE(sigmoid(s_i), y_i), y_i = 1[R_i >= right];   w_i = n / (2 n_class) where a group has both classes, else 1

Laid on every decision of trajectory i: under `aggregates.SequenceMean` that is the paper's mean over trajectories. The
authors' code sums without the mask; this does not. Advantages are not read. Where psi is of hundreds of decisions or
dimensions the sigmoid saturates: then beta is small, or `mean` takes the place of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mmrl.algorithm import Stats, Surrogate
from mmrl.masked import group_sizes, group_sum, masked_mean, masked_sum
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Batch


@dataclass(frozen=True)
class PACS(Surrogate):
    """Right answers are told from wrong ones by how much likelier they became."""

    beta: float = 1.0
    right: float = 1.0
    mean: bool = False
    whole_trajectories = True
    whole_groups = True
    silent_at_zero = False

    def __call__(self, logprobs: Tensor, batch: Batch) -> tuple[Tensor, Stats]:
        assert batch.rewards is not None
        moved, there, groups = log_ratio(logprobs, batch.old_logprobs, batch.mask), batch.mask.any(-1), batch.group_ids
        psi = self.beta * (masked_mean if self.mean else masked_sum)(moved, batch.mask, dim=-1)
        others = (group_sizes(there, groups) - 1).clamp(min=1)
        score = psi - (group_sum(psi, there, groups) - psi) / others
        label = (batch.rewards >= self.right).to(psi.dtype)
        same = [group_sizes(there & (label == kind), groups) for kind in (0, 1)]
        of_class, size = torch.where(label > 0, same[1], same[0]), group_sizes(there, groups)
        weight = torch.where(of_class < size, size / (2 * of_class.clamp(min=1)), 1.0)
        loss = weight * binary_cross_entropy_with_logits(score, label, reduction="none")
        told = ((score.detach() > 0) == (label > 0)).float()[:, None].expand_as(logprobs)
        return loss[:, None].expand_as(logprobs), {"pacs_accuracy": told}
