"""Which decisions go through the policy together: minibatches of whole groups, and micro-batches that bound memory and
never change the gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmrl.algorithm import Algorithm, Credit
from mmrl.ledger import Ledger
from mmrl.runtime import Runtime
from mmrl.scoring import decisions
from mmrl.types import Batch, Rollout


@dataclass(frozen=True)
class UpdateConfig:
    """How often and in what portions a rollout is used. `micro_rows` bounds memory and never changes the
    gradient; a group is split only if it alone has more rows. `micro_steps` cuts trajectories into windows. Before its
    `epochs` come `critic_epochs` of the value loss alone; they end early, before a step, once the approximate KL to the
    acting policy is above `max_kl` (as in Stable-Baselines3's PPO, there 1.5 x target_kl). With `rescore` the old
    log-probs are those of the policy before the update, not of the one that acted (POIS, UloRL, arXiv 2507.19766);
    where the trainer is not of float32 they are so in any case."""

    epochs: int = 1
    minibatches: int = 1
    micro_rows: int = 64
    micro_steps: int | None = None
    max_grad_norm: float = 1.0
    critic_epochs: int = 0
    max_kl: float | None = None
    rescore: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "minibatches", "micro_rows"):
            if vars(self)[name] < 1:
                raise ValueError(f"update.{name} is {vars(self)[name]}: give 1 or more")
        if self.max_grad_norm <= 0:
            raise ValueError(f"update.max_grad_norm is {self.max_grad_norm}: give more than 0, 1 is usual")
        if self.critic_epochs < 0 or (self.max_kl is not None and self.max_kl <= 0):
            raise ValueError(
                f"update.critic_epochs is {self.critic_epochs} and update.max_kl is {self.max_kl}: give 0 or more, and "
                "more than 0 or null"
            )
        if self.micro_steps is not None and self.micro_steps < 1:
            raise ValueError(f"update.micro_steps is {self.micro_steps}: give 1 or more, or null for all steps at once")


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first gradient, on the decisions of all ranks."""

    ledger: Ledger
    credit: Credit
    weights: Tensor  # (B, T)
    counted: Tensor  # (B, T) bool: what denominators count
    active: Tensor  # (B,) bool: rows whose gradient can be other than zero
    notes: Mapping[str, Tensor] = field(default_factory=dict)  # (B, T), what penalties planned
    metrics: Mapping[str, float] = field(default_factory=dict)


def minibatches(plan: Plan, config: UpdateConfig, runtime: Runtime) -> Iterator[Tensor]:
    """Rows of the ledger (bool, B) of each minibatch: whole groups, the same partition on every rank."""
    groups = torch.unique(plan.ledger.rollout.group_ids)
    if config.minibatches > len(groups):
        raise ValueError(
            f"update.minibatches is {config.minibatches} and the rollout has {len(groups)} groups: "
            "a minibatch holds whole groups, so give at most as many"
        )
    if config.minibatches > 1:
        shuffle = torch.randperm(len(groups), generator=runtime.generator("shared_minibatches", shared=True))
        groups = groups[shuffle.to(groups.device)]
    for chunk in groups.tensor_split(config.minibatches):
        yield torch.isin(plan.ledger.rollout.group_ids, chunk)


def micro_batches(
    policy: nn.Module, rollout: Rollout, plan: Plan, rows: Tensor, algorithm: Algorithm, config: UpdateConfig
) -> Iterator[Batch]:
    """This rank's share of a minibatch. Every rank gets the same number of micro-batches, at least one:
    shorter ranks repeat a row with nothing in its mask, so that gradients can meet."""
    everyone, ledger = plan.ledger.rollout, plan.ledger
    scale = torch.zeros_like(everyone.logprobs)
    scale[rows] = algorithm.aggregate(plan.counted[rows])
    if algorithm.surrogate.whole_groups:
        largest = int(torch.unique(everyone.group_ids, return_counts=True)[1].max())
        if largest > config.micro_rows:
            raise ValueError(
                f"train.update.micro_rows is {config.micro_rows}, and {type(algorithm.surrogate).__name__} needs whole "
                f"groups, here of {largest}: give at least as many"
            )
    shares = [_pack(everyone.group_ids, rows & plan.active, ledger.rows_of(r), config.micro_rows)
              for r in range(len(ledger.rows_per_rank))]  # fmt: skip
    own, start = shares[ledger.rank], ledger.rows_of(ledger.rank).start
    width = config.micro_steps or everyone.logprobs.shape[1]
    windows = range(0, everyone.logprobs.shape[1], width)
    for number in range(max(1, *(len(share) for share in shares))):
        idle = number >= len(own)
        chosen = torch.tensor([start], device=rows.device) if idle else own[number]
        for begin in windows:
            empty = idle or begin >= rollout.logprobs.shape[1]
            window = range(0 if empty else begin, begin + width)
            yield _batch(policy, rollout, plan, chosen, window, scale, empty)


def _pack(group_ids: Tensor, wanted: Tensor, own: range, micro_rows: int) -> list[Tensor]:
    """Ledger rows of one rank in portions of at most `micro_rows`, whole groups where they fit."""
    index = torch.arange(own.start, own.stop, device=wanted.device)
    index = index[wanted[index]]
    portions: list[Tensor] = []
    current: list[Tensor] = []
    for group in torch.unique(group_ids[index]):
        for piece in index[group_ids[index] == group].split(micro_rows):
            if current and sum(len(p) for p in current) + len(piece) > micro_rows:
                portions.append(torch.cat(current))
                current = []
            current.append(piece)
    return [*portions, torch.cat(current)] if current else portions


def _batch(
    policy: nn.Module, rollout: Rollout, plan: Plan, chosen: Tensor, window: range, scale: Tensor, empty: bool
) -> Batch:
    everyone = plan.ledger.rollout
    local = chosen - plan.ledger.rows_of(plan.ledger.rank).start
    inside = decisions(policy, rollout.mask[local, window.start : window.stop])
    begin, end = window.start + inside.start, window.start + inside.stop
    mask = everyone.mask[chosen, begin:end] & (not empty)

    def cut(tensor: Tensor) -> Tensor:
        return tensor[chosen, begin:end].masked_fill(~mask, 0)

    def cut_if(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else cut(tensor)

    return Batch(
        transitions=rollout.transitions.rows(local),
        steps=torch.arange(begin, end, device=chosen.device).expand(len(chosen), -1),
        old_logprobs=cut(everyone.logprobs),
        advantages=cut(plan.credit.advantages),
        mask=mask,
        scale=cut(scale),
        weights=cut(plan.weights),
        group_ids=everyone.group_ids[chosen],
        ref_logprobs=cut_if(everyone.ref_logprobs),
        behaviour_logprobs=cut_if(everyone.behaviour_logprobs),
        returns=cut_if(plan.credit.returns),
        old_values=cut_if(everyone.values),
        replayed=None if everyone.replayed is None else everyone.replayed[chosen],
        staleness=None if everyone.staleness is None else everyone.staleness[chosen],
        rewards=everyone.returns()[chosen],
        stats={name: cut(tensor) for name, tensor in {**everyone.stats, **plan.notes}.items()},
    )
