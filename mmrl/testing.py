"""Contract checks for one's own policy, collector or reward; call them from a test, or before spending.

Each raises `ContractError`, an AssertionError, with one sentence that says what broke and where to look.
They leave weights, gradients, modes and positions as they found them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmrl.metrics import PARITY_LIMIT
from mmrl.runtime import acting
from mmrl.types import Collector, Evaluation, Policy, RewardFunction, Rollout, Samples, Scores


class ContractError(AssertionError):
    """A part does not keep the contract of its interface."""


def check_policy(policy: Policy, rollout: Rollout) -> None:
    """That `policy` scores its own `rollout` again as recorded, whatever the split, and can be trained.

    Raises:
        ContractError: log-probs differ by more than 1e-5 per decision dimension, depend on the order of the
            rows or, if it declares `windowable`, on the window; its mode changes; no parameter gets a gradient.
    """
    before = _modes(policy)
    steps = torch.arange(rollout.logprobs.shape[1], device=rollout.mask.device).expand(len(rollout), -1)
    everything = torch.arange(len(rollout), device=rollout.mask.device)
    whole = _scored(policy, rollout, everything, steps)
    if not rollout.demonstration:
        _same(whole, rollout.logprobs, rollout, "re-scored log-probs differ from the recorded ones")
    flipped = everything.flip(0)
    again = _scored(policy, rollout, flipped, steps)[flipped]
    _same(again, whole, rollout, "log-probs depend on the order of the rows")
    alone = torch.cat([_scored(policy, rollout, row, steps[:1]) for row in everything.split(1)])
    _same(alone, whole, rollout, "log-probs of a row depend on the other rows of its batch")
    if policy.windowable:
        windows = [_scored(policy, rollout, everything, window) for window in steps.split(1, dim=1)]
        _same(torch.cat(windows, dim=1), whole, rollout, "windowable is True and log-probs depend on the window")
    _check_gradient(policy, rollout, everything, steps)
    if _modes(policy) != before:
        raise ContractError(f"{_name(policy)} changes its train/eval mode when it is called: leave that to the caller")


def check_collector(collector: Collector, policy: Policy, generator: Callable[[], torch.Generator]) -> None:
    """That two collections in a row can be repeated from the same seed and from a saved position.
    `generator` makes a fresh, equally seeded generator at each call.

    Raises:
        ContractError: the same seed or `state_dict` does not give the same rollout, something carries a
            gradient, the policy's mode is changed, a group is incomplete, or a field cannot be trained on.
    """
    start, modes = _saved(collector), _modes(policy)
    draws = generator()
    first = _collected(collector, policy, draws)
    position, randomness = _saved(collector), draws.get_state()
    second = _collected(collector, policy, draws)
    if _modes(policy) != modes:
        raise ContractError(f"{_name(collector)} leaves the policy in another train/eval mode than it found it in")
    for rollout in (first, second):
        _check_rollout(_name(collector), rollout)
    collector.load_state_dict(start)
    repeated = _collected(collector, policy, generator())
    _equal(first, repeated, f"{_name(collector)}: the same seed and position give another rollout")
    collector.load_state_dict(position)
    continued = generator()
    continued.set_state(randomness)
    resumed = _collected(collector, policy, continued)
    collector.load_state_dict(start)
    _equal(second, resumed, f"{_name(collector)}: load_state_dict does not continue where state_dict was taken")


def check_reward(function: RewardFunction, samples: Samples, malformed: Sequence[object] = ("",)) -> None:
    """That `function` gives each sample a score of its own, also to empty and malformed outputs. The
    `malformed` ones are tried with the columns of the first sample.

    Raises:
        ContractError: a batch gives other scores than its samples one by one, or not one finite number each.
    """
    if not len(samples):
        raise ContractError("check_reward needs at least one sample")
    name = _name(function)
    batch = function(samples)
    _check_scores(name, batch, len(samples))
    for index in range(len(samples)):
        one = function(_sample(samples, index, samples.outputs[index]))
        _check_scores(name, one, 1)
        _same_scores(name, one, batch, index)
    for output in malformed:
        try:
            scores = function(_sample(samples, 0, output))
        except Exception as error:
            raise ContractError(f"{name} raised {type(error).__name__} on the output {output!r}: {error}") from error
        _check_scores(f"{name} on the output {output!r}", scores, 1)


def _name(part: object) -> str:
    return type(part).__name__


def _modes(policy: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in policy.named_modules()}


def _scored(policy: Policy, rollout: Rollout, rows: Tensor, steps: Tensor) -> Tensor:
    with acting(policy):
        found: Evaluation = policy(rollout.transitions.rows(rows), steps)
    if found.logprobs.shape != steps.shape:
        raise ContractError(
            f"{_name(policy)} gave log-probs of shape {tuple(found.logprobs.shape)} for steps of shape "
            f"{tuple(steps.shape)}: they are (b, t)"
        )
    for field in ("entropy", "values"):
        tensor = vars(found)[field]
        if tensor is not None and tensor.shape != steps.shape:
            raise ContractError(f"{_name(policy)} gave {field} of shape {tuple(tensor.shape)}: it is (b, t)")
    return found.logprobs


def _same(found: Tensor, wanted: Tensor, rollout: Rollout, complaint: str) -> None:
    difference = (found.double() - wanted.double()).abs() / rollout.decision_size
    difference = torch.where(rollout.mask, difference.nan_to_num(nan=float("inf")), 0.0)
    if float(difference.max()) > PARITY_LIMIT:
        row, step = divmod(int(difference.argmax()), difference.shape[1])
        raise ContractError(
            f"{complaint}: by {float(difference.max()):.1e} per decision dimension at row {row}, decision {step} "
            f"({float(found[row, step]):.6g} against {float(wanted[row, step]):.6g}, limit {PARITY_LIMIT:.0e})"
        )


def _check_gradient(policy: Policy, rollout: Rollout, rows: Tensor, steps: Tensor) -> None:
    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    logprobs = policy(rollout.transitions.rows(rows), steps).logprobs
    if not trainable or not logprobs.requires_grad:
        raise ContractError(f"{_name(policy)}: log-probs carry no gradient to a trainable parameter")
    total = torch.where(rollout.mask, logprobs, 0.0).sum()
    gradients = torch.autograd.grad(total, trainable, allow_unused=True)
    found = [gradient for gradient in gradients if gradient is not None]
    if not all(bool(torch.isfinite(gradient).all()) for gradient in found):
        raise ContractError(f"{_name(policy)}: the gradient of its log-probs is not finite")
    if not any(bool(gradient.any()) for gradient in found):
        raise ContractError(f"{_name(policy)}: the gradient of its log-probs is zero in every trainable parameter")


def _saved(collector: Collector) -> dict[str, object]:
    """A state that went through JSON, as a checkpoint's does."""
    state = collector.state_dict()
    try:
        found: dict[str, object] = json.loads(json.dumps(state))
    except TypeError as error:
        raise ContractError(f"{_name(collector)}.state_dict() is not JSON: {error}") from error
    return found


def _collected(collector: Collector, policy: Policy, generator: torch.Generator) -> Rollout:
    with acting(policy):
        rollout = collector.collect(policy, generator)
        if any(_modes(policy).values()):
            raise ContractError(f"{_name(collector)} puts the policy into train mode while it acts")
    return rollout


def _tensors(rollout: Rollout) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in vars(rollout).items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, Mapping):
            found.update({f"{name}[{key!r}]": tensor for key, tensor in value.items()})
    return found


def _check_rollout(name: str, rollout: Rollout) -> None:
    for field, tensor in _tensors(rollout).items():
        if tensor.requires_grad:
            raise ContractError(f"{name}: Rollout.{field} carries a gradient: collect without one")
    if not bool(rollout.mask.any()):
        raise ContractError(f"{name}: no decision of the rollout has mask True, so nothing would be trained")
    discounts = rollout.discounts[rollout.alive]
    if not bool(((discounts >= 0) & (discounts <= 1)).all()):
        raise ContractError(f"{name}: Rollout.discounts of living decisions must be from 0 to 1")
    valid = rollout.alive.any(-1)
    for part, values in rollout.reward_parts.items():
        if values.shape != valid.shape:
            raise ContractError(f"{name}: Rollout.reward_parts[{part!r}] needs one number per trajectory")
    drawn = torch.ones_like(valid) if rollout.replayed is None else ~rollout.replayed
    sizes = torch.unique(rollout.group_ids[drawn], return_counts=True)[1]
    if len(torch.unique(sizes)) > 1:
        raise ContractError(
            f"{name}: groups have {int(sizes.min())} to {int(sizes.max())} trajectories: a failed one stays in its "
            "group with alive False, so that groups are complete"
        )


def _equal(first: Rollout, second: Rollout, complaint: str) -> None:
    one, other = _tensors(first), _tensors(second)
    if one.keys() != other.keys():
        raise ContractError(f"{complaint}: other fields are filled")
    for field, tensor in one.items():
        if tensor.shape != other[field].shape or not torch.equal(_bits(tensor), _bits(other[field])):
            raise ContractError(f"{complaint}: Rollout.{field} differs")


def _bits(tensor: Tensor) -> Tensor:
    """NaN (allowed where nothing is read) equal to itself."""
    return tensor.nan_to_num(nan=1.25e30) if tensor.is_floating_point() else tensor


def _sample(samples: Samples, index: int, output: object) -> Samples:
    columns = {name: [values[index]] for name, values in samples.columns.items()}
    return Samples([output], columns, [samples.ids[index]] if samples.ids else ())


def _check_scores(name: str, scores: Scores, count: int) -> None:
    if scores.values.shape != (count,) or scores.applicable.shape != (count,):
        raise ContractError(
            f"{name} gave {tuple(scores.values.shape)} values and {tuple(scores.applicable.shape)} applicable flags "
            f"for {count} samples: one each, in order"
        )
    if scores.applicable.dtype != torch.bool:
        raise ContractError(f"{name}: Scores.applicable is {scores.applicable.dtype}: it must be bool")
    if not bool(torch.isfinite(scores.values).all()):
        raise ContractError(f"{name} gave a value that is not finite: give a number, and 0 where not applicable")
    if bool((scores.values[~scores.applicable] != 0).any()):
        raise ContractError(f"{name} gave a value other than 0 where it is not applicable")
    for part, inner in scores.parts.items():
        _check_scores(f"{name}.{part}", inner, count)


def _same_scores(name: str, one: Scores, batch: Scores, index: int) -> None:
    close = torch.allclose(one.values[0], batch.values[index], rtol=1e-5, atol=1e-6)
    if not close or bool(one.applicable[0] != batch.applicable[index]):
        raise ContractError(
            f"{name} gives sample {index} the score {float(batch.values[index]):.6g} in a batch and "
            f"{float(one.values[0]):.6g} alone: a score must depend on its own sample only"
        )
    for part, inner in one.parts.items():
        _same_scores(f"{name}.{part}", inner, batch.parts[part], index)
