"""A critic that is trained apart from its policy: at its own learning rate, and at times alone.

While a critic knows nothing its advantages are noise, so that the first steps of a run may go to it alone (value
pretraining, VC-PPO, arXiv 2503.01491; in RLinf's recipes of pi_RL, arXiv 2510.25889, a critic learns about 20 times as
fast as the policy).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmrl.types import Policy


def parameter_groups(policy: Policy, critic_lr: float | None, lr: float) -> list[dict[str, object]]:
    """What an optimiser is given: all trained parameters, or the critic's apart where it has its own rate. `factor` is
    of the group's rate to the policy's.

    Raises:
        ValueError: there is a rate and no critic.
    """
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if critic_lr is None:
        return [{"params": trained, "factor": 1.0}]
    critic = {id(parameter) for parameter in policy.critic_parameters()}
    if not critic:
        raise ValueError(
            f"train.critic_lr is {critic_lr} and {type(policy).__name__} has no critic apart: set it to null"
        )
    groups = ([p for p in trained if id(p) not in critic], [p for p in trained if id(p) in critic])
    return [{"params": groups[0], "factor": 1.0}, {"params": groups[1], "factor": critic_lr / lr}]


def hold_policy(policy: nn.Module) -> None:
    """Take the gradients away from everything but the critic, so that the next step leaves it where it is, momentum or
    not.

    Raises:
        ValueError: the policy has no critic apart.
    """
    inner = policy.module if isinstance(policy, DistributedDataParallel) else policy
    assert isinstance(inner, Policy)
    critic = {id(parameter) for parameter in inner.critic_parameters()}
    if not critic:
        raise ValueError(
            f"{type(inner).__name__} has no critic apart, which could be trained alone: set train.critic_warmup and "
            "update.critic_epochs to 0"
        )
    for parameter in inner.parameters():
        if id(parameter) not in critic:
            parameter.grad = None


def scale_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group from that of the policy."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)
