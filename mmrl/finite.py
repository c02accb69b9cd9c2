"""Numbers that are read must be finite."""

from __future__ import annotations

import torch
from torch import Tensor


def check_finite(name: str, tensor: Tensor | None, where: Tensor) -> None:
    """Raises:
    ValueError: a number of Rollout.`name` (B, T) is not finite where it is read.
    """
    if tensor is None:
        return
    bad = ~torch.isfinite(tensor) & where
    if bool(bad.any()):
        row, step = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"Rollout.{name}[{row}, {step}] is {float(tensor[row, step])}: it must be finite wherever "
            f"it is read; find what produced it, or mark the trajectory as failed (alive False)"
        )
