"""THE update: the same for tokens, denoise steps and action chunks.

rewards -> advantages on full groups over all ranks -> weights and scales planned on the whole rollout ->
for each epoch and minibatch (one optimiser step each) -> for each micro-batch: evaluate, surrogate x
weights + penalties + value loss, x scale, backward -> clip, step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmrl.algorithm import Algorithm, Credit
from mmrl.masked import masked_max, masked_sum
from mmrl.metrics import Tally, rollout_metrics
from mmrl.regularisers.kl import k3
from mmrl.runtime import Ledger, Runtime
from mmrl.scoring import decisions, score
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Batch, Evaluation, Rollout


@dataclass(frozen=True)
class UpdateConfig:
    """How often and in what portions a rollout is used. `micro_rows` bounds memory and never changes the
    gradient; a group is split only if it alone has more rows. `micro_steps` cuts trajectories into windows."""

    epochs: int = 1
    minibatches: int = 1
    micro_rows: int = 64
    micro_steps: int | None = None
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "minibatches", "micro_rows"):
            if vars(self)[name] < 1:
                raise ValueError(f"update.{name} is {vars(self)[name]}: give 1 or more")
        if self.max_grad_norm <= 0:
            raise ValueError(f"update.max_grad_norm is {self.max_grad_norm}: give more than 0, 1 is usual")
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


def update(
    policy: nn.Module,
    rollout: Rollout,
    algorithm: Algorithm,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    config: UpdateConfig,
) -> dict[str, float]:
    """Improve `policy` (wrapped) on this rank's `rollout`; returns metrics over all ranks."""
    if runtime.reduced_precision and not rollout.demonstration:
        recomputed = score(policy, rollout, config.micro_rows)
        rollout = rollout.with_(logprobs=recomputed, behaviour_logprobs=rollout.logprobs)
    ledger = runtime.gather(rollout)
    plan = make_plan(ledger, algorithm)
    tally = Tally()
    for epoch in range(config.epochs):
        for number, rows in enumerate(minibatches(plan, config, runtime)):
            first_pass = epoch == 0 and number == 0
            batches = list(micro_batches(policy, rollout, plan, rows, algorithm, config))
            loss_sum = 0.0
            for position, batch in enumerate(batches):
                last = position + 1 == len(batches)
                with runtime.synchronised(policy, last):
                    evaluation = policy(batch.transitions, batch.steps)
                    loss = batch_loss(evaluation, batch, algorithm, tally)
                    runtime.backward(policy, loss, last)
                loss_sum += float(loss.detach())
                if not rollout.demonstration:
                    tally_ratio(evaluation, batch, tally, first_pass, rollout.decision_size)
            tally.add("update/loss", loss_sum, count=1 / runtime.world)
            tally.add("update/grad_norm", finite_norm(runtime.clip_gradients(policy, config.max_grad_norm), batches))
            optimizer.step()
            optimizer.zero_grad()
    return {**rollout_metrics(ledger.rollout), **tally.over_ranks(runtime), **credit_metrics(plan)}


def finite_norm(norm: float, batches: list[Batch]) -> float:
    """`norm`, if the step can be taken.

    Raises:
        FloatingPointError: the gradient is not finite; the weights are as they were before this step.
    """
    if not math.isfinite(norm):
        largest = max(float(batch.advantages.abs().max()) for batch in batches)
        raise FloatingPointError(
            f"the gradient is not finite (norm {norm}, largest advantage {largest:.3g}): no step was taken; lower "
            "train.lr, or look for extreme rewards in metrics.jsonl, then --resume from the last checkpoint"
        )
    return norm


def make_plan(ledger: Ledger, algorithm: Algorithm) -> Plan:
    """Shape rewards, assign credit and plan weights on whole groups."""
    with torch.no_grad():
        shaped = algorithm.shape(ledger.rollout)
        credit = algorithm.advantage(shaped)
        weights, counted = algorithm.weigh(shaped, credit)
    moving = (credit.advantages * weights != 0) & shaped.mask
    active = moving.any(-1) if algorithm.skips_zero_advantage else shaped.mask.any(-1)
    return Plan(Ledger(shaped, ledger.rows_per_rank, ledger.rank), credit, weights, counted, active)


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
        return torch.where(mask, tensor[chosen, begin:end], 0.0)

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
        returns=cut_if(plan.credit.returns),
        old_values=cut_if(everyone.values),
    )


def batch_loss(evaluation: Evaluation, batch: Batch, algorithm: Algorithm, tally: Tally) -> Tensor:
    """The share of one micro-batch in the loss of its minibatch."""
    logprobs = torch.where(batch.mask, evaluation.logprobs.float(), 0.0)
    loss, stats = algorithm.surrogate(logprobs, batch)
    loss = loss * batch.weights
    tally.add_masked("update", stats, batch.mask)
    for regulariser in algorithm.regularisers:
        penalty, stats = regulariser(evaluation, batch)
        loss = loss + penalty
        tally.add_masked("update", stats, batch.mask)
    if algorithm.value_loss is not None:
        error, stats = algorithm.value_loss(evaluation, batch)
        loss = loss + error
        tally.add_masked("update", stats, batch.mask)
    return masked_sum(loss * batch.scale, batch.mask)


def tally_ratio(evaluation: Evaluation, batch: Batch, tally: Tally, first_pass: bool, decision_size: int) -> None:
    """Approximate KL to the acting policy and, before the first optimiser step, log-prob parity."""
    moved = log_ratio(evaluation.logprobs.detach().float(), batch.old_logprobs, batch.mask)
    tally.add_masked("update", {"approx_kl": k3(-moved)}, batch.mask)
    if not bool(batch.mask.any()):
        return
    tally.maximum("update/ratio_max", float(masked_max(moved, batch.mask).exp()))
    if first_pass:
        difference = float(masked_max(moved.double().abs() / decision_size, batch.mask))
        tally.maximum("parity/logprob_diff_max", difference)
        tally.maximum("parity/first_pass_ratio_max", float(masked_max(moved.abs(), batch.mask).exp()))


def credit_metrics(plan: Plan) -> dict[str, float]:
    """How many decisions can teach anything, and how good the critic is."""
    rollout = plan.ledger.rollout
    metrics = {"update/active_rows": float(plan.active.float().mean())}
    if plan.credit.returns is not None and rollout.values is not None and int(rollout.mask.sum()) > 1:
        returns, values = plan.credit.returns[rollout.mask], rollout.values[rollout.mask]
        unexplained = (returns - values).var() / returns.var().clamp(min=1e-8)
        metrics["update/explained_variance"] = float(1.0 - unexplained)
    return metrics
