"""THE update: the same for tokens, denoise steps and action chunks.

rewards -> advantages on full groups over all ranks -> weights and scales planned on the whole rollout ->
for each epoch and minibatch (one optimiser step each) -> for each micro-batch: evaluate, surrogate x
weights + penalties + value loss, x scale, backward -> clip, step. A critic may be trained alone before that.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmrl.algorithm import Algorithm
from mmrl.batching import Plan, UpdateConfig, micro_batches, minibatches
from mmrl.critic import hold_policy
from mmrl.ledger import Ledger
from mmrl.masked import masked_max, masked_sum
from mmrl.metrics import Tally, rollout_metrics
from mmrl.regularisers.kl import k3
from mmrl.runtime import Runtime
from mmrl.scoring import score
from mmrl.surrogates.ratio import log_ratio
from mmrl.types import Batch, Evaluation, Rollout


def update(
    policy: nn.Module,
    rollout: Rollout,
    algorithm: Algorithm,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    config: UpdateConfig,
    critic_only: bool = False,
) -> dict[str, float]:
    """Improve `policy` (wrapped) on this rank's `rollout`, or only its critic; returns metrics over all ranks."""
    if (runtime.reduced_precision or config.rescore) and not rollout.demonstration:
        recomputed = score(policy, rollout, config.micro_rows)
        if rollout.replayed is not None:  # their ratio is to the policy of then
            recomputed = torch.where(rollout.replayed[:, None], rollout.logprobs, recomputed)
        acted = rollout.logprobs if rollout.behaviour_logprobs is None else rollout.behaviour_logprobs
        rollout = rollout.with_(logprobs=recomputed, behaviour_logprobs=acted)
    ledger = runtime.gather(rollout)
    plan = make_plan(ledger, algorithm)
    tally, stopped = Tally(), False
    for epoch in range(-config.critic_epochs, config.epochs):
        alone = critic_only or epoch < 0
        for number, rows in enumerate(minibatches(plan, config, runtime)):
            first_pass = epoch == -config.critic_epochs and number == 0
            while True:
                try:
                    fitting = replace(config, micro_rows=min(config.micro_rows, runtime.rows_that_fit))
                    batches = list(micro_batches(policy, rollout, plan, rows, algorithm, fitting))
                    measured = accumulate(policy, rollout, batches, algorithm, runtime, first_pass, alone)
                    break
                except torch.OutOfMemoryError as error:
                    optimizer.zero_grad()
                    runtime.halve_rows(fitting.micro_rows, error)
            tally.include(measured)
            too_far = config.max_kl is not None and measured.mean("update/approx_kl", runtime) > config.max_kl
            stopped = stopped or (too_far and not alone)
            if stopped:
                optimizer.zero_grad()
                break
            if alone:
                hold_policy(policy)
            tally.add("update/grad_norm", finite_norm(runtime.clip_gradients(policy, config.max_grad_norm), batches))
            optimizer.step()
            optimizer.zero_grad()
        if stopped:
            break
    if config.max_kl is not None:
        tally.add("update/stopped_by_kl", float(stopped))
    return {**rollout_metrics(ledger.rollout), **tally.over_ranks(runtime), **credit_metrics(plan)}


def accumulate(
    policy: nn.Module, rollout: Rollout, batches: list[Batch], algorithm: Algorithm, runtime: Runtime,
    first_pass: bool, critic_only: bool,
) -> Tally:  # fmt: skip
    """Add up the gradient of a minibatch, one micro-batch at a time; returns what was measured on the way."""
    tally, loss_sum = Tally(), 0.0
    for position, batch in enumerate(batches):
        last = position + 1 == len(batches)
        with runtime.synchronised(policy, last):
            evaluation = policy(batch.transitions, batch.steps)
            if critic_only:
                loss = value_loss(evaluation, batch, algorithm, tally)
            else:
                loss = batch_loss(evaluation, batch, algorithm, tally)
            runtime.backward(policy, loss, last)
        loss_sum += float(loss.detach())
        if not rollout.demonstration and (first_pass or not critic_only):
            tally_ratio(evaluation, batch, tally, first_pass, rollout.decision_size)
    if not critic_only:
        tally.add("update/loss", loss_sum, count=1 / runtime.world)
    return tally


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
        credit = algorithm.assign(shaped)
        weights, counted, touched = algorithm.weigh(shaped, credit)
        notes, chosen = algorithm.note(shaped, credit)
    moving = (credit.advantages * weights != 0) & shaped.mask
    for part in algorithm.regularisers:
        moving = moving | (notes[part.only_where] & shaped.mask) if part.only_where else moving
    active = moving.any(-1) if algorithm.skips_zero_advantage else shaped.mask.any(-1)
    everyone = Ledger(shaped, ledger.rows_per_rank, ledger.rank)
    return Plan(everyone, credit, weights, counted, active, notes, {**touched, **chosen})


def batch_loss(evaluation: Evaluation, batch: Batch, algorithm: Algorithm, tally: Tally) -> Tensor:
    """The share of one micro-batch in the loss of its minibatch."""
    logprobs = torch.where(batch.mask, evaluation.logprobs.float(), 0.0)
    current = {name: torch.where(batch.mask, found.float(), 0.0) for name, found in evaluation.stats.items()}
    batch = replace(batch, current=current)
    loss, stats = algorithm.loss(logprobs, batch)
    loss = loss * batch.weights * algorithm.again(logprobs, batch)
    tally.add_masked("update", stats, batch.mask)
    for regulariser in algorithm.regularisers:
        penalty, stats = regulariser(evaluation, batch)
        loss = loss + penalty
        tally.add_masked("update", stats, batch.mask)
    policy_loss = masked_sum(loss * batch.scale, batch.mask)
    if algorithm.value_loss is None:
        return policy_loss
    return policy_loss + value_loss(evaluation, batch, algorithm, tally)


def value_loss(evaluation: Evaluation, batch: Batch, algorithm: Algorithm, tally: Tally) -> Tensor:
    """The critic's part of that."""
    if algorithm.value_loss is None:
        raise ValueError(
            "a critic is to be trained alone (train.critic_warmup, update.critic_epochs) and the algorithm has no "
            "value_loss: give mmrl.value_loss.ValueRegression, or set both to 0"
        )
    error, stats = algorithm.value_loss(evaluation, batch)
    tally.add_masked("update", stats, batch.mask)
    return masked_sum(error * batch.scale, batch.mask)


def tally_ratio(evaluation: Evaluation, batch: Batch, tally: Tally, first_pass: bool, decision_size: int) -> None:
    """Approximate KL to the acting policy and, before the first optimiser step, log-prob parity."""
    mask = batch.mask if batch.replayed is None else batch.mask & ~batch.replayed[:, None]
    moved = log_ratio(evaluation.logprobs.detach().float(), batch.old_logprobs, mask)
    tally.add_masked("update", {"approx_kl": k3(-moved)}, mask)
    if not bool(mask.any()):
        return
    tally.maximum("update/ratio_max", float(masked_max(moved, mask).exp()))
    own = mask if batch.staleness is None else mask & (batch.staleness == 0)[:, None]  # drawn by this very policy
    if first_pass and bool(own.any()):
        difference = float(masked_max(moved.double().abs() / decision_size, own))
        tally.maximum("parity/logprob_diff_max", difference)
        tally.maximum("parity/first_pass_ratio_max", float(masked_max(moved.abs(), own).exp()))


def credit_metrics(plan: Plan) -> dict[str, float]:
    """How many decisions can teach anything, and how good the critic is."""
    rollout = plan.ledger.rollout
    metrics = {"update/active_rows": float(plan.active.float().mean()), **plan.metrics}
    if plan.credit.returns is not None and rollout.values is not None and int(rollout.mask.sum()) > 1:
        returns, values = plan.credit.returns[rollout.mask], rollout.values[rollout.mask]
        unexplained = (returns - values).var() / returns.var().clamp(min=1e-8)
        metrics["update/explained_variance"] = float(1.0 - unexplained)
    return metrics
