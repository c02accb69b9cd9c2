"""THE update (invariants I2, I3, I4, I5, I14, I15), and the contract checks of mmrl.testing.

Bugs that were planted in a scratch copy of the package, and the test that fails on each:

| planted bug | caught by |
|---|---|
| micro-batch denominator: the scale from the mask of one micro-batch | test_gradient_does_not_depend_on_micro_rows |
| the same for windows of steps | test_gradient_does_not_depend_on_micro_steps |
| mask leak: padding counts in the token mean | test_first_pass_gradient_is_minus_advantage_grad_logprob |
| mask leak: log-probs of padding enter the loss | test_what_is_not_alive_changes_nothing |
| mask leak: rewards of padding enter the return | test_what_is_not_alive_changes_nothing |
| denominator shrinks with the skipped groups | test_skipping_zero_advantage_groups_changes_nothing |
| dropout left on in the update | test_dropout_is_off_in_the_update |
| old log-probs shifted by one decision | test_first_pass_ratio_is_1 |
| loss not multiplied by the world size under DDP | test_two_processes.test_gradients_equal_one_process |
| advantages from one rank's groups only | test_two_processes.test_advantages_equal_one_process |
| resume without generator state | test_checkpoint.test_resumed_run_is_the_uninterrupted_run |
| resume without optimiser state | test_checkpoint.test_resumed_run_is_the_uninterrupted_run |
| resume without the collector's position | test_checkpoint.test_resumed_run_is_the_uninterrupted_run |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mmrl.advantages import GAE, GroupRelative, LeaveOneOut, Likelihood
from mmrl.aggregates import ConstantLength, SequenceMean, TokenMean
from mmrl.algorithm import Advantage, Algorithm, Credit, Regulariser, Selector, Stats
from mmrl.batching import UpdateConfig
from mmrl.regularisers import K2, K3, Entropy
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.scoring import decisions, score
from mmrl.selectors import DropDecidedGroups, DropTruncated
from mmrl.shapers import KLInReward
from mmrl.sharding import full
from mmrl.surrogates import CISPO, GSPO, PPOClip, Reinforce
from mmrl.testing import ContractError, check_collector, check_policy
from mmrl.trainer import Parts, TrainConfig, Trainer
from mmrl.types import Batch, Evaluation, Policy, Rollout
from mmrl.update import update
from mmrl.value_loss import ValueRegression
from tests.toy import (
    CategoricalPolicy,
    RightActions,
    ToyCollector,
    ToyEvaluator,
    ToyPolicy,
    ToyPolicyConfig,
    ToyRollout,
    ToyTransitions,
    fixed_rollout,
)

NAN = float("nan")
RUNTIME = Runtime(RuntimeConfig(device="cpu"), 0)
GRPO = Algorithm(GroupRelative(), PPOClip(), TokenMean())
CRITIC = Algorithm(GAE(), PPOClip(), TokenMean(), value_loss=ValueRegression(clip=0.5))
EVERYTHING = Algorithm(
    GAE(), PPOClip(0.2, 0.28, 3.0), TokenMean(), (KLInReward(0.1),), (DropTruncated(),), (K3(0.1), Entropy(0.1)),
    ValueRegression(),
)  # fmt: skip
ALGORITHMS = {
    "grpo": GRPO,
    "dr_grpo": Algorithm(GroupRelative(normalise=False), PPOClip(), ConstantLength(8)),
    "sequence_mean": Algorithm(LeaveOneOut(), CISPO(), SequenceMean()),
    "gspo": Algorithm(GroupRelative(), GSPO(), SequenceMean()),
    "kl": Algorithm(GroupRelative(), Reinforce(), TokenMean(), regularisers=(K2(0.3),)),
    "critic": CRITIC,
    "everything": EVERYTHING,
}
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())


class Recorder(torch.optim.Optimizer):
    """Remembers the gradient of each step and moves the weights by lr x gradient."""

    def __init__(self, policy: Policy, lr: float = 0.0) -> None:
        super().__init__(policy.parameters(), {"lr": lr})
        self.seen: list[Tensor] = []

    def step(self, closure: object = None) -> None:
        parameters = self.param_groups[0]["params"]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        self.seen.append(torch.cat([full(grad).flatten() for grad in grads]).clone())
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter -= self.param_groups[0]["lr"] * grad


def toy(kind: str = "categorical", **fields: object) -> ToyPolicy:
    return ToyPolicyConfig(kind=kind, critic=True, **fields).make().eval()  # type: ignore[arg-type]


def prepared(policy: ToyPolicy, moved: float = 0.3, **shape: int) -> Rollout:
    """A rollout of `policy`, scored by a reference; then the weights are moved, so that no ratio is 1."""
    policy.report_entropy = True
    rollout = fixed_rollout(policy, gamma=0.9, **shape)
    reference = ToyPolicyConfig(kind=policy.config.kind, critic=True, init_seed=9).make()
    rollout = rollout.with_(ref_logprobs=score(reference, rollout, 64))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += moved * torch.randn(parameter.shape, generator=generator)
    return rollout


def run(
    policy: Policy, rollout: Rollout, algorithm: Algorithm, lr: float = 0.0, **config: object
) -> tuple[list[Tensor], dict[str, float]]:
    """Gradients of all optimiser steps, and metrics."""
    recorder = Recorder(policy, lr)
    fields = {"max_grad_norm": 1e9, **config}
    metrics = update(policy, rollout, algorithm, recorder, RUNTIME, UpdateConfig(**fields))  # type: ignore[arg-type]
    return recorder.seen, metrics


def assert_same_gradient(found: Tensor, wanted: Tensor, limit: float = 1e-6) -> None:
    assert float(wanted.norm()) > 1e-4
    assert float((found - wanted).norm() / wanted.norm()) < limit


# ---- I2, I3: the first pass -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_first_pass_ratio_is_1(kind: str) -> None:
    policy = toy(kind)
    _, metrics = run(policy, fixed_rollout(policy), GRPO)
    assert metrics["parity/logprob_diff_max"] <= 1e-6
    assert metrics["parity/first_pass_ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["update/approx_kl"] == pytest.approx(0.0, abs=1e-9)
    assert metrics["update/clip_frac_low"] == metrics["update/clip_frac_high"] == 0.0


def test_kl_to_the_reference_is_0_at_the_start() -> None:
    policy = toy()
    rollout = fixed_rollout(policy)
    rollout = rollout.with_(ref_logprobs=score(policy, rollout, 64))
    _, metrics = run(policy, rollout, replace(GRPO, regularisers=(K3(),)))
    assert metrics["update/kl"] == 0.0


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("surrogate", [Reinforce(), PPOClip(), PPOClip(dual_clip=3.0), GSPO(), CISPO()], ids=str)
@pytest.mark.parametrize("aggregate", [TokenMean(), SequenceMean(), ConstantLength(9)], ids=str)
def test_first_pass_gradient_is_minus_advantage_grad_logprob(kind, surrogate, aggregate) -> None:
    policy = toy(kind)
    rollout = fixed_rollout(policy)
    (found,), _ = run(policy, rollout, Algorithm(GroupRelative(), surrogate, aggregate), micro_rows=3)
    advantages = GroupRelative()(rollout).advantages
    lengths = rollout.alive.sum(-1, keepdim=True).float()
    rows, length = len(rollout), rollout.logprobs.shape[1]
    divisor = {TokenMean: lengths.sum(), SequenceMean: lengths * rows, ConstantLength: rows * 9.0}[type(aggregate)]
    logprobs = policy(rollout.transitions, torch.arange(length).expand(rows, -1)).logprobs
    loss = torch.where(rollout.alive, -advantages * logprobs / divisor, 0.0).sum()
    wanted = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(policy.parameters(), wanted, strict=True)]
    assert_same_gradient(found, torch.cat([g.flatten() for g in flat]))


def test_likelihood_with_reinforce_is_maximum_likelihood() -> None:
    policy = toy()
    rollout = replace(fixed_rollout(policy), demonstration=True)
    _, metrics = run(policy, rollout, Algorithm(Likelihood(), Reinforce(), TokenMean()))
    logprobs = score(policy, rollout, 64)
    assert metrics["update/loss"] == pytest.approx(-float(logprobs[rollout.mask].mean()), rel=1e-5)
    assert not [name for name in metrics if name.startswith("parity")]  # nobody sampled it


# ---- I4: the split changes nothing ------------------------------------------------------------------------


@each_algorithm
@pytest.mark.parametrize("micro_rows", [1, 3, 4, 6, 9])
def test_gradient_does_not_depend_on_micro_rows(algorithm: Algorithm, micro_rows: int) -> None:
    policy = toy()
    rollout = prepared(policy)
    (wanted,), whole = run(policy, rollout, algorithm)
    (found,), split = run(policy, rollout, algorithm, micro_rows=micro_rows)
    assert_same_gradient(found, wanted)
    assert whole.keys() == split.keys()
    for name, value in whole.items():
        assert split[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("micro_steps", [1, 2, 4, 5, 50])
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "sequence_mean", "everything"])
def test_gradient_does_not_depend_on_micro_steps(kind: str, micro_steps: int, name: str) -> None:
    policy = toy(kind)
    rollout = prepared(policy)
    (wanted,), whole = run(policy, rollout, ALGORITHMS[name])
    (found,), split = run(policy, rollout, ALGORITHMS[name], micro_steps=micro_steps, micro_rows=5)
    assert_same_gradient(found, wanted)
    assert split["update/loss"] == pytest.approx(whole["update/loss"], rel=1e-4, abs=1e-6)


class Tight(CategoricalPolicy):
    """Has room for so many trajectories at a time."""

    room = 3

    def forward(self, transitions: ToyTransitions, steps: Tensor) -> Evaluation:
        if len(steps) > self.room:
            raise torch.OutOfMemoryError
        return super().forward(transitions, steps)


def test_micro_batches_that_do_not_fit_are_halved_and_the_gradient_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RUNTIME, "rows_that_fit", RUNTIME.rows_that_fit)  # it remembers
    policy = toy()
    rollout = prepared(policy)
    (wanted,), whole = run(policy, rollout, GRPO)
    tight = Tight(policy.config)
    tight.load_state_dict(policy.state_dict())
    (found,), split = run(tight, rollout, GRPO)
    assert RUNTIME.rows_that_fit <= tight.room
    assert_same_gradient(found, wanted)
    assert split["update/loss"] == pytest.approx(whole["update/loss"], rel=1e-4, abs=1e-6)
    assert split["update/approx_kl"] == pytest.approx(whole["update/approx_kl"], rel=1e-4, abs=1e-6)
    tight.room = 0
    with pytest.raises(RuntimeError, match="a single trajectory does not fit"):
        run(tight, rollout, GRPO)


class Asked(CategoricalPolicy):
    """Remembers which decisions it was asked about: (rows, first, last) of each call."""

    def __init__(self, config: ToyPolicyConfig) -> None:
        super().__init__(config)
        self.asked: list[tuple[int, int, int]] = []

    def forward(self, transitions: ToyTransitions, steps: Tensor) -> Evaluation:
        assert bool((steps == steps[:1]).all())
        assert steps[0].tolist() == list(range(int(steps[0, 0]), int(steps[0, -1]) + 1))
        self.asked.append((len(steps), int(steps[0, 0]), int(steps[0, -1])))
        return super().forward(transitions, steps)


class Whole(Asked):
    windowable = False


def trained_only(rollout: Rollout, begin: int, end: int) -> Rollout:
    """The rollout, all alive, with only the decisions begin to end (exclusive) trained."""
    alive = torch.ones_like(rollout.alive)
    mask = torch.zeros_like(alive)
    mask[:, begin:end] = True
    mask[0, begin], mask[-1, end - 1] = False, False  # not of every row
    tensors = {"logprobs": torch.randn(mask.shape, generator=torch.Generator().manual_seed(3)) - 1.0}
    return rollout.with_(alive=alive, mask=mask, discounts=torch.ones_like(rollout.discounts), **tensors)


@each_algorithm
@pytest.mark.parametrize(("begin", "end"), [(0, 2), (1, 4), (3, 5)])
def test_only_the_columns_that_are_trained_are_evaluated(algorithm: Algorithm, begin: int, end: int) -> None:
    """And the gradient and the metrics are those of evaluating them all."""
    found = {}
    for kind in (Asked, Whole):
        policy = kind(ToyPolicyConfig(critic=True)).eval()
        policy.load_state_dict(toy().state_dict())
        rollout = trained_only(prepared(policy), begin, end)
        rollout = rollout.with_(ref_logprobs=torch.where(rollout.mask, rollout.logprobs - 0.1, 0.0))
        policy.asked.clear()
        found[kind] = run(policy, rollout, algorithm, micro_rows=5)
        rows = sum(rows for rows, _, _ in policy.asked)
        assert rows == len(rollout)
        assert {(first, last) for _, first, last in policy.asked} == {(0 if kind is Whole else begin, end - 1)}
    (first,), metrics = found[Asked]
    (second,), whole = found[Whole]
    assert_same_gradient(first, second)
    assert metrics == pytest.approx(whole, rel=1e-5, abs=1e-7)


def test_windows_and_scoring_leave_out_what_is_not_trained() -> None:
    policy = Asked(ToyPolicyConfig(critic=True)).eval()
    rollout = trained_only(fixed_rollout(policy), 1, 4)
    (wanted,), _ = run(policy, rollout, GRPO)
    policy.asked.clear()
    (found,), _ = run(policy, rollout, GRPO, micro_steps=2)
    assert_same_gradient(found, wanted)
    assert {(first, last) for _, first, last in policy.asked} >= {(1, 1), (2, 3)}  # of 0-1, 2-3 and 4
    assert all(last == first for _, first, last in policy.asked if first != 2)  # of a window without any: one column
    for kind, first in ((Asked, 1), (Whole, 0)):
        scorer = kind(ToyPolicyConfig(critic=True)).eval()
        scorer.load_state_dict(policy.state_dict())
        scored = score(scorer, rollout, 6)
        assert {(begin, last) for _, begin, last in scorer.asked} == {(first, 3)}
        everything = policy(rollout.transitions, torch.arange(5).expand(len(rollout), -1)).logprobs
        assert torch.allclose(scored, torch.where(rollout.mask, everything, 0.0), atol=1e-7)


def test_which_columns_must_be_scored() -> None:
    policy, whole = Asked(ToyPolicyConfig()), Whole(ToyPolicyConfig())
    mask = torch.tensor([[False, True, False, False], [False, False, True, False]])
    assert decisions(policy, mask) == range(1, 3)
    assert decisions(whole, mask) == range(3)
    assert decisions(policy, mask[:1]) == range(1, 2)
    for one in (policy, whole):
        assert decisions(one, torch.zeros_like(mask)) == range(1)
        assert decisions(one, torch.ones_like(mask)) == range(4)


def test_which_columns_must_be_scored_by_a_policy_in_ddp(tmp_path: Path) -> None:
    """The wrapper itself has no `windowable`."""
    import torch.distributed as dist

    mask = torch.tensor([[False, True, True, False]])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        for kind, wanted in ((Asked, range(1, 3)), (Whole, range(3))):
            assert decisions(DistributedDataParallel(kind(ToyPolicyConfig())), mask) == wanted
    finally:
        dist.destroy_process_group()


@each_algorithm
def test_gradient_does_not_depend_on_the_order_of_rows(algorithm: Algorithm) -> None:
    policy = toy()
    rollout = prepared(policy)
    order = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(1))
    (wanted,), _ = run(policy, rollout, algorithm)
    (found,), _ = run(policy, rows_of(rollout, order), algorithm, micro_rows=5)
    assert_same_gradient(found, wanted)


def rows_of(rollout: Rollout, index: Tensor) -> Rollout:
    tensors = {f.name: getattr(rollout, f.name) for f in dataclasses.fields(rollout)}
    cut = {name: value[index] for name, value in tensors.items() if isinstance(value, Tensor)}
    stats = {name: value[index] for name, value in rollout.stats.items()}
    return rollout.with_(
        transitions=rollout.transitions.rows(index), stats=stats, reward_parts={}, applicable={}, **cut
    )


@each_algorithm
@pytest.mark.parametrize("count", [2, 3])
def test_a_minibatch_is_the_mean_over_its_own_groups(algorithm: Algorithm, count: int) -> None:
    """Each step's gradient is that of a rollout of its groups alone, with the credit of the whole rollout."""
    policy = toy()
    rollout = prepared(policy)
    steps, _ = run(policy, rollout, algorithm, minibatches=count, micro_rows=3)
    assert len(steps) == count
    shaped = algorithm.shape(rollout)
    credit = algorithm.advantage(shaped)
    alone: dict[frozenset[int], Tensor] = {}
    groups = rollout.group_ids.unique().tolist()
    for subset in range(1, 2 ** len(groups)):
        chosen = frozenset(group for place, group in enumerate(groups) if subset >> place & 1)
        index = torch.isin(rollout.group_ids, torch.tensor(sorted(chosen))).nonzero()[:, 0]
        returns = None if credit.returns is None else credit.returns[index]
        given = replace(algorithm, advantage=Given(Credit(credit.advantages[index], returns)), shapers=())
        alone[chosen] = run(policy, rows_of(shaped, index), given)[0][0]
    matched = [{c for c, g in alone.items() if float((g - step).norm() / g.norm()) < 1e-6} for step in steps]
    assert all(len(candidates) == 1 for candidates in matched)
    union = [group for candidates in matched for chosen in candidates for group in chosen]
    assert sorted(union) == groups  # each group in exactly one minibatch


@dataclass(frozen=True)
class Given(Advantage):
    credit: Credit

    def __call__(self, rollout: Rollout) -> Credit:
        return self.credit


def test_epochs_and_minibatches_are_optimiser_steps() -> None:
    policy = toy()
    rollout = prepared(policy, 0.0)
    steps, metrics = run(policy, rollout, GRPO, lr=0.5, epochs=3, minibatches=2)
    assert len(steps) == 6
    assert metrics["update/ratio_max"] > 1.01  # later passes are off-policy
    assert metrics["update/approx_kl"] > 0
    assert metrics["parity/logprob_diff_max"] <= 1e-6  # measured before the first step only
    assert metrics["update/grad_norm"] == pytest.approx(sum(float(g.norm()) for g in steps) / 6, rel=1e-4)


def test_minibatches_are_drawn_anew_each_epoch() -> None:
    policy = toy()
    steps, _ = run(policy, prepared(policy), GRPO, epochs=6, minibatches=4)
    first = [[float((g - s).norm()) < 1e-6 for s in steps[:4]].index(True) for g in steps]
    assert len({tuple(first[start : start + 4]) for start in range(0, 24, 4)}) > 1


def test_too_many_minibatches() -> None:
    policy = toy()
    with pytest.raises(ValueError, match=r"update.minibatches is 5 and the rollout has 4 groups"):
        run(policy, fixed_rollout(policy), GRPO, minibatches=5)


@pytest.mark.parametrize("field", ["epochs", "minibatches", "micro_rows"])
def test_bad_counts_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"update.{field} is 0: give 1 or more"):
        UpdateConfig(**{field: 0})


@pytest.mark.parametrize("value", [-1, 0])
def test_bad_micro_steps_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match=r"update.micro_steps"):
        UpdateConfig(micro_steps=value)


def test_gradient_clipping() -> None:
    policy = toy()
    rollout = prepared(policy)
    (wanted,), _ = run(policy, rollout, GRPO)
    (clipped,), metrics = run(policy, rollout, GRPO, max_grad_norm=0.01)
    assert metrics["update/grad_norm"] == pytest.approx(float(wanted.norm()), rel=1e-5)
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-3)
    assert_same_gradient(clipped / clipped.norm() * wanted.norm(), wanted)


# ---- I5: what is not alive, what is not trained -----------------------------------------------------------


class Babbling(CategoricalPolicy):
    """Says NaN about every decision after the first action 0 of a row."""

    def forward(self, transitions: ToyTransitions, steps: Tensor) -> Evaluation:
        found = super().forward(transitions, steps)
        ended = ((transitions.actions == 0).long().cumsum(-1) - (transitions.actions == 0).long()) > 0
        dead = ended.gather(1, steps)
        parts = {name: tensor for name, tensor in vars(found).items() if isinstance(tensor, Tensor)}
        return replace(found, **{name: torch.where(dead, NAN, tensor) for name, tensor in parts.items()})


@each_algorithm
@pytest.mark.parametrize("micro_steps", [None, 2])
def test_what_is_not_alive_changes_nothing(algorithm: Algorithm, micro_steps: int | None) -> None:
    if algorithm.surrogate.whole_trajectories:
        micro_steps = None
    policy = toy()
    rollout = prepared(policy)
    assert bool((~rollout.alive).any())
    (wanted,), metrics = run(policy, rollout, algorithm, micro_steps=micro_steps, micro_rows=5)
    per_decision = ("logprobs", "rewards", "discounts", "values", "ref_logprobs")
    dirty = rollout.with_(**{name: vars(rollout)[name].where(rollout.alive, NAN) for name in per_decision})
    noise = torch.randint(0, 4, rollout.alive.shape, generator=torch.Generator().manual_seed(3))
    actions = rollout.transitions.actions.where(rollout.alive, noise)
    states = rollout.transitions.states.where(rollout.alive, noise)
    dirty = dirty.with_(transitions=ToyTransitions(states, actions))
    babbling = Babbling(policy.config).eval()
    babbling.load_state_dict(policy.state_dict())
    babbling.report_entropy = True
    (found,), same = run(babbling, dirty, algorithm, micro_steps=micro_steps, micro_rows=5)
    assert_same_gradient(found, wanted)
    assert same.keys() == metrics.keys()
    assert [name for name in metrics if same[name] != pytest.approx(metrics[name], rel=1e-5, abs=1e-7)] == []


@pytest.mark.parametrize("name", ["grpo", "sequence_mean", "everything"])
def test_more_padding_changes_nothing(name: str) -> None:
    policy = toy()
    rollout = prepared(policy)
    (wanted,), _ = run(policy, rollout, ALGORITHMS[name])

    def wider(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, 3))

    two = {n: wider(t) for n, t in vars(rollout).items() if isinstance(t, Tensor) and t.ndim == 2}
    transitions = ToyTransitions(wider(rollout.transitions.states), wider(rollout.transitions.actions))
    stats = {n: wider(t) for n, t in rollout.stats.items()}
    (found,), _ = run(policy, rollout.with_(transitions=transitions, stats=stats, **two), ALGORITHMS[name])
    assert_same_gradient(found, wanted)


def test_untrained_decisions_keep_their_reward_and_lose_their_logprobs() -> None:
    policy = toy()
    rollout = prepared(policy)
    mask = rollout.mask & (torch.arange(rollout.mask.shape[1]) % 2 == 0)
    holes = rollout.with_(mask=mask)
    (wanted,), _ = run(policy, holes, EVERYTHING)
    dirty = holes.with_(logprobs=holes.logprobs.where(mask, NAN), ref_logprobs=holes.ref_logprobs.where(mask, NAN))
    (found,), _ = run(policy, dirty, EVERYTHING, micro_steps=2)
    assert_same_gradient(found, wanted)
    other = holes.with_(rewards=torch.where(mask, holes.rewards, holes.rewards + torch.arange(16.0)[:, None]))
    (changed,), _ = run(policy, other.with_(rewards=other.rewards.where(rollout.alive, 0.0)), EVERYTHING)
    assert float((changed - wanted).norm()) > 1e-3  # a reward on a decision that is not trained still counts


def test_failed_rows_leave_the_update() -> None:
    policy = toy()
    rollout = prepared(policy)
    failed = torch.arange(len(rollout)) % 4 == 1
    gone = {"alive": rollout.alive & ~failed[:, None], "mask": rollout.mask & ~failed[:, None]}
    (found,), metrics = run(policy, rollout.with_(rewards=rollout.rewards.where(gone["alive"], NAN), **gone), GRPO)
    (wanted,), _ = run(policy, rows_of(rollout, (~failed).nonzero()[:, 0]), GRPO)
    assert_same_gradient(found, wanted)
    assert metrics["update/active_rows"] == 0.75


# ---- I15, groups that teach nothing -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:var")
@each_algorithm
def test_nothing_to_train_still_runs_backward(algorithm: Algorithm) -> None:
    policy = toy()
    rollout = prepared(policy)
    (found,), metrics = run(policy, rollout.with_(mask=torch.zeros_like(rollout.mask)), algorithm, micro_steps=None)
    assert all(parameter.grad is None for parameter in policy.parameters())  # zeroed after a real backward
    assert float(found.abs().sum()) == 0.0
    assert metrics["update/loss"] == metrics["update/grad_norm"] == 0.0


@pytest.mark.filterwarnings("ignore:var")
def test_metrics_are_finite_with_nothing_to_train() -> None:
    policy = toy()
    rollout = prepared(policy)
    _, metrics = run(policy, rollout.with_(mask=torch.zeros_like(rollout.mask)), CRITIC)
    assert all(math.isfinite(value) for value in metrics.values())


@dataclass(frozen=True)
class Nothing(Regulariser):
    """Penalty 0: only forbids that groups are skipped."""

    def __call__(self, evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Stats]:
        return torch.zeros_like(batch.old_logprobs), {}


class Counting(CategoricalPolicy):
    rows = 0

    def forward(self, transitions: ToyTransitions, steps: Tensor) -> Evaluation:
        Counting.rows += len(steps)
        return super().forward(transitions, steps)


@pytest.mark.parametrize("aggregate", [TokenMean(), SequenceMean(), ConstantLength(9)], ids=str)
def test_skipping_zero_advantage_groups_changes_nothing(aggregate) -> None:
    algorithm = Algorithm(GroupRelative(), PPOClip(), aggregate)
    policy = Counting(ToyPolicyConfig()).eval()
    rollout = fixed_rollout(policy)
    even = rollout.group_ids % 2 == 0  # these groups get the same reward throughout
    last = rollout.alive & ~torch.nn.functional.pad(rollout.alive[:, 1:], (0, 1))
    rollout = rollout.with_(rewards=torch.where(even[:, None], 0.3 * last.float(), rollout.rewards))
    Counting.rows = 0
    run(policy, rollout, algorithm, micro_rows=2)
    assert Counting.rows == 8
    runs = []
    for chosen in (algorithm, replace(algorithm, regularisers=(Nothing(),))):
        fresh = ToyPolicyConfig().make()
        optimizer = torch.optim.AdamW(fresh.parameters(), 0.01, weight_decay=0.1)
        metrics = update(fresh, rollout, chosen, optimizer, RUNTIME, UpdateConfig(2, 1, 4, None, 1.0))
        runs.append((torch.cat([p.detach().flatten() for p in fresh.parameters()]), metrics))
    assert_same_gradient(runs[0][0], runs[1][0])
    assert runs[0][1]["update/grad_norm"] == pytest.approx(runs[1][1]["update/grad_norm"], rel=1e-5)
    assert runs[0][1]["update/loss"] == pytest.approx(runs[1][1]["update/loss"], abs=1e-6)
    assert (runs[0][1]["update/active_rows"], runs[1][1]["update/active_rows"]) == (0.5, 1.0)
    Counting.rows = 0
    run(policy, rollout, replace(algorithm, regularisers=(Nothing(),)), micro_rows=2)
    assert Counting.rows == 16


def test_no_group_with_spread_is_a_step_of_the_optimiser_all_the_same() -> None:
    """Momentum and weight decay go on as they would with an explicit zero gradient."""
    after = []
    for algorithm in (GRPO, replace(GRPO, regularisers=(Nothing(),))):
        policy = ToyPolicyConfig().make()
        optimizer = torch.optim.AdamW(policy.parameters(), 0.1, weight_decay=0.1)
        rollout = fixed_rollout(policy)
        for rewards in (rollout.rewards, torch.zeros_like(rollout.rewards)):
            update(policy, rollout.with_(rewards=rewards), algorithm, optimizer, RUNTIME, UpdateConfig())
        after.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    assert_same_gradient(after[0], after[1])


# ---- selectors, value loss, shapers -----------------------------------------------------------------------


@dataclass(frozen=True)
class First(Selector):
    """Weight `weight` on the first decision, 0 on the others."""

    weight: float = 1.0
    shrinks_denominator: bool = False

    def plan(self, rollout: Rollout, credit: Credit) -> Tensor:
        weights = torch.zeros_like(rollout.logprobs)
        weights[:, 0] = self.weight
        return weights


@pytest.mark.parametrize("aggregate", [TokenMean(), SequenceMean()], ids=str)
def test_selectors_keep_or_shrink_the_denominator(aggregate) -> None:
    policy = toy()
    rollout = prepared(policy)
    base = Algorithm(GroupRelative(), PPOClip(), aggregate)
    first = rollout.mask & (torch.arange(rollout.mask.shape[1]) == 0)
    (only,), _ = run(policy, rollout.with_(mask=first), base)
    (shrunk,), _ = run(policy, rollout, replace(base, selectors=(First(1.0, True),)), micro_rows=3)
    assert_same_gradient(shrunk, only)
    (doubled,), _ = run(policy, rollout, replace(base, selectors=(First(2.0, True),)))
    assert_same_gradient(doubled, 2 * only)
    (kept,), _ = run(policy, rollout, replace(base, selectors=(First(),)), micro_rows=3)
    if isinstance(aggregate, TokenMean):
        assert_same_gradient(kept, only * (len(rollout) / float(rollout.mask.sum())))
    assert float(kept.norm()) < 0.9 * float(only.norm())
    (both,), _ = run(policy, rollout, replace(base, selectors=(First(2.0), First(3.0, True))))
    assert_same_gradient(both, 6 * only)


def test_dropping_truncated_trajectories() -> None:
    policy = toy()
    rollout = prepared(policy)
    cut = rollout.stats["truncated"].any(-1)
    assert 0 < int(cut.sum()) < len(rollout)
    (found,), metrics = run(policy, rollout, replace(GRPO, selectors=(DropTruncated(),)))
    credit = GroupRelative()(rollout)  # their rewards still count in the group
    kept = (~cut).nonzero()[:, 0]
    (wanted,), _ = run(policy, rows_of(rollout, kept), replace(GRPO, advantage=Given(Credit(credit.advantages[kept]))))
    assert_same_gradient(found, wanted)
    assert metrics["update/active_rows"] == pytest.approx(1 - float(cut.float().mean()))
    with pytest.raises(ValueError, match=r'reads Rollout.stats\["truncated"\]'):
        run(policy, rollout.with_(stats={}), replace(GRPO, selectors=(DropTruncated(),)))


def test_dropping_decided_groups() -> None:
    """Groups without spread, and those whose mean is out of bounds, leave the loss and the denominator; others keep
    their advantages."""
    policy = toy()
    rollout = prepared(policy)
    rows = torch.arange(len(rollout))
    _, group, size = torch.unique(rollout.group_ids, return_inverse=True, return_counts=True)
    assert len(size) >= 3
    assert int(size.min()) >= 3
    first = torch.tensor([int((group == number).nonzero()[0]) for number in range(len(size))])
    score = torch.where(group == 0, 1.0, torch.where(group == 1, (rows == first[1]).float(), (rows % 2).float()))
    rewards = torch.zeros_like(rollout.rewards).index_put((rows, rollout.alive.sum(-1) - 1), score)
    rollout = rollout.with_(rewards=rewards)
    advantages = GroupRelative()(rollout).advantages
    for selector, gone in (
        (DropDecidedGroups(), group == 0),
        (DropDecidedGroups(0.4, None), group <= 1),
        (DropDecidedGroups(None, 0.4), group != 1),
    ):
        kept = (~gone).nonzero()[:, 0]
        (found,), _ = run(policy, rollout, replace(GRPO, selectors=(selector,)))
        (wanted,), _ = run(policy, rows_of(rollout, kept), replace(GRPO, advantage=Given(Credit(advantages[kept]))))
        assert_same_gradient(found, wanted)
    with pytest.raises(ValueError, match=r"low 0.9 above high 0.1"):
        DropDecidedGroups(0.9, 0.1)


def test_selectors_do_not_weigh_penalties() -> None:
    policy = toy()
    rollout = prepared(policy)
    base = replace(GRPO, regularisers=(K2(1.0),))
    nothing = replace(base, advantage=Given(Credit(torch.zeros_like(rollout.logprobs))))
    (penalty,), _ = run(policy, rollout, nothing)
    (found,), _ = run(policy, rollout, replace(base, selectors=(First(0.0),)))
    assert_same_gradient(found, penalty)


def test_value_loss_trains_the_critic_on_the_returns() -> None:
    policy = toy()
    rollout = prepared(policy)
    algorithm = Algorithm(GAE(), PPOClip(), TokenMean(), value_loss=ValueRegression(0.7))
    silent = replace(algorithm, advantage=Given(replace(GAE()(rollout), advantages=torch.zeros_like(rollout.logprobs))))
    (found,), metrics = run(policy, rollout, silent, micro_rows=3)
    rows, length = rollout.logprobs.shape
    values = policy(rollout.transitions, torch.arange(length).expand(rows, -1)).values
    error = (values - GAE()(rollout).returns)[rollout.mask]
    wanted = torch.autograd.grad(0.35 * error.square().mean(), list(policy.parameters()), allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(policy.parameters(), wanted, strict=True)]
    assert_same_gradient(found, torch.cat([g.flatten() for g in flat]))
    assert metrics["update/value_error"] == pytest.approx(float(error.detach().square().mean()), rel=1e-4)
    returns, old = GAE()(rollout).returns[rollout.mask], rollout.values[rollout.mask]
    explained = 1 - float((returns - old).var() / returns.var())
    assert metrics["update/explained_variance"] == pytest.approx(explained, rel=1e-4)


def test_kl_in_reward_changes_the_credit() -> None:
    policy = toy()
    rollout = prepared(policy)
    (plain,), _ = run(policy, rollout, GRPO)
    (found,), _ = run(policy, rollout, replace(GRPO, shapers=(KLInReward(0.5),)))
    cost = torch.where(rollout.mask, 0.5 * (rollout.logprobs - rollout.ref_logprobs), 0.0)
    (wanted,), _ = run(policy, rollout.with_(rewards=rollout.rewards - cost), GRPO)
    assert_same_gradient(found, wanted)
    assert float((found - plain).norm() / plain.norm()) > 0.01


# ---- parity really measures -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_parity_sees_a_changed_weight(kind: str) -> None:
    policy = toy(kind)
    rollout = fixed_rollout(policy)
    with torch.no_grad():
        policy.head.bias[0] += 0.01
    moved = (score(policy, rollout, 64) - rollout.logprobs)[rollout.mask]
    _, metrics = run(policy, rollout, GRPO, micro_rows=3)
    assert metrics["parity/logprob_diff_max"] == pytest.approx(
        float(moved.abs().max()) / rollout.decision_size, rel=1e-3
    )
    assert metrics["parity/logprob_diff_max"] > 1e-4
    assert metrics["parity/first_pass_ratio_max"] == pytest.approx(math.exp(float(moved.abs().max())), rel=1e-3)
    assert metrics["update/ratio_max"] == pytest.approx(math.exp(float(moved.max())), rel=1e-3)
    k3 = torch.expm1(moved) - moved
    assert metrics["update/approx_kl"] == pytest.approx(float(k3.mean()), rel=2e-2)


def test_parity_sees_a_shift_of_one_decision() -> None:
    policy = toy()
    rollout = fixed_rollout(policy)
    actions = rollout.transitions.actions.roll(1, 1)
    shifted = rollout.with_(transitions=ToyTransitions(rollout.transitions.states, actions))
    assert run(policy, shifted, GRPO)[1]["parity/logprob_diff_max"] > 1e-2


def test_parity_sees_nan() -> None:
    policy = toy()
    rollout = fixed_rollout(policy)
    with torch.no_grad():
        policy.head.bias[0] = NAN
    with pytest.raises(FloatingPointError, match="the gradient is not finite"):
        run(policy, rollout, GRPO)


def test_a_gradient_that_is_not_finite_stops_before_the_step() -> None:
    policy = toy()
    rollout = fixed_rollout(policy)
    broken = Babbling(policy.config).eval()
    broken.forward = lambda *given: Evaluation(CategoricalPolicy.forward(broken, *given).logprobs * NAN)  # type: ignore
    before = {name: tensor.clone() for name, tensor in broken.state_dict().items()}
    with pytest.raises((ValueError, RuntimeError, ArithmeticError), match="finite"):
        run(broken, rollout, GRPO, lr=0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in broken.state_dict().items())


def test_reduced_precision_scores_the_old_policy_again() -> None:
    policy = toy()
    rollout = fixed_rollout(policy)
    wrong = rollout.with_(logprobs=rollout.logprobs + 0.3 * rollout.mask)  # another layout's numbers
    runtime = Runtime(RuntimeConfig(device="cpu"), 0)
    runtime.reduced_precision = True
    metrics = update(policy, wrong, GRPO, Recorder(policy), runtime, UpdateConfig())
    assert metrics["update/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert run(policy, wrong, GRPO)[1]["update/ratio_max"] < 0.8


@pytest.mark.parametrize("micro_rows", [1, 3, 64])
def test_score_gives_recorded_logprobs_in_place(micro_rows: int) -> None:
    policy = toy()
    rollout = fixed_rollout(policy)
    order = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(0))
    mixed = rows_of(rollout, order)
    policy.train()
    scored = score(policy, mixed, micro_rows)
    assert policy.training
    assert not scored.requires_grad
    torch.testing.assert_close(scored, mixed.logprobs.where(mixed.mask, 0.0), rtol=1e-6, atol=1e-6)


# ---- I14: modes; dropout ----------------------------------------------------------------------------------


class Watching(CategoricalPolicy):
    """Notes the mode and whether a gradient is taken, at each use."""

    def __init__(self, config: ToyPolicyConfig) -> None:
        super().__init__(config)
        self.acted: list[bool] = []
        self.scored: list[bool] = []

    def act(self, states: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        self.acted.append(self.training or torch.is_grad_enabled())
        return super().act(states, generator)

    def forward(self, transitions: ToyTransitions, steps: Tensor) -> Evaluation:
        self.scored.append(self.training)
        return super().forward(transitions, steps)


def trained(policy: ToyPolicy, steps: int = 2, algorithm: Algorithm = GRPO, **config: object) -> dict[str, object]:
    parts = Parts(policy, ToyCollector(RightActions(), ToyRollout()), ToyEvaluator(), algorithm)
    settings = TrainConfig(steps=steps, lr=0.01, **config)  # type: ignore[arg-type]
    return Trainer(parts, settings, Runtime(RuntimeConfig(device="cpu"), 0)).fit()


@pytest.mark.parametrize("training", [True, False])
def test_modes_while_training(training: bool) -> None:
    policy = Watching(ToyPolicyConfig(dropout=0.5)).train(training)
    trained(policy)
    assert policy.acted
    assert not any(policy.acted)  # eval mode and no gradient while it acts
    assert policy.scored
    assert not any(policy.scored)
    assert policy.training is training


def test_dropout_is_off_in_the_update() -> None:
    policy = ToyPolicyConfig(dropout=0.5).make().train()
    summary = trained(policy, 3)
    assert summary["parity"]["logprob_diff_max"] <= 1e-5


def test_acting_restores_the_mode_after_an_error() -> None:
    policy = toy().train()
    with pytest.raises(KeyError), acting(policy):
        assert not policy.training
        raise KeyError
    assert policy.training
    assert torch.is_grad_enabled()


def test_acting_restores_the_mode_of_every_submodule() -> None:
    policy = toy().train()
    policy.drop.eval()  # a frozen part that its owner keeps in eval mode
    with acting(policy):
        pass
    assert policy.training
    assert not policy.drop.training


def test_windows_are_refused_where_they_cannot_be() -> None:
    with pytest.raises(ValueError, match="micro_steps is 2, and CategoricalPolicy with GSPO needs whole trajectories"):
        trained(toy(), 1, ALGORITHMS["gspo"], update=UpdateConfig(micro_steps=2))
    whole = toy()
    whole.windowable = False
    with pytest.raises(ValueError, match="needs whole trajectories"):
        trained(whole, 1, update=UpdateConfig(micro_steps=2))


def test_a_kl_without_a_reference_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="gave no reference policy"):
        trained(toy(), 1, ALGORITHMS["kl"])


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_training_learns(kind: str) -> None:
    policy = ToyPolicyConfig(kind=kind).make()
    summary = trained(policy, 150)
    after = summary["eval_after"]["accuracy"]["value"]
    assert after > summary["eval_before"]["accuracy"]["value"] + 0.2
    assert summary["steps"] == 150


# ---- what a rollout refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {"rewards": r.rewards[:, :2]}, r"Rollout.rewards has shape \(16, 2\), logprobs has \(16, 5\)"),
        (lambda r: {"group_ids": r.group_ids[:3]}, "give one a trajectory"),
        (lambda r: {"mask": ~r.alive}, "mask is True where alive is False"),
        (lambda r: {"alive": r.alive.flip(1), "mask": r.mask & False}, "True up to the end of a trajectory"),
        (lambda r: {"values": None}, "come together"),
        (lambda r: {"logprobs": r.logprobs / 0}, r"Rollout.logprobs\[0, 0\] is -inf: it must be finite"),
        (lambda r: {"rewards": r.rewards.where(~r.alive, NAN)}, r"Rollout.rewards\[0, 0\] is nan"),
        (lambda r: {"values": r.values * NAN}, r"Rollout.values\[0, 0\] is nan"),
        (lambda r: {"ref_logprobs": r.logprobs * NAN}, r"Rollout.ref_logprobs\[0, 0\] is nan"),
    ],
)
def test_rollout_refuses(change: Callable[[Rollout], dict[str, object]], message: str) -> None:
    rollout = fixed_rollout(toy())
    with pytest.raises(ValueError, match=message):
        rollout.with_(**change(rollout))


@pytest.mark.parametrize("field", ["discounts", "last_value"])
def test_rollout_refuses_nan_in(field: str) -> None:
    rollout = fixed_rollout(toy())
    with pytest.raises(ValueError, match=f"Rollout.{field}"):
        rollout.with_(**{field: vars(rollout)[field] * NAN})


# ---- the contract checks of mmrl.testing bite -------------------------------------------------------------


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("training", [True, False])
def test_toy_keeps_the_contracts(kind: str, training: bool) -> None:
    policy = ToyPolicyConfig(kind=kind, critic=True, dropout=0.1).make()
    rollout = fixed_rollout(policy)
    policy.train(training)
    collector = ToyCollector(RightActions(), ToyRollout(prompts=3))
    collector.drawn = 7
    check_collector(collector, policy, seeded)
    policy.drop.p = 0.0
    check_policy(policy, rollout)
    assert collector.drawn == 7
    assert policy.training is training
    assert all(parameter.grad is None for parameter in policy.parameters())


class Faulty(CategoricalPolicy):
    def __init__(self, fault: str) -> None:
        super().__init__(ToyPolicyConfig())
        self.fault = fault

    def forward(self, transitions: ToyTransitions, steps: Tensor) -> Evaluation:
        found = super().forward(transitions, steps)
        if self.fault == "temperature":
            return replace(found, logprobs=found.logprobs * 1.01)
        if self.fault == "batch":
            return replace(found, logprobs=found.logprobs + 0.1 * (len(steps) == 1))
        if self.fault == "order":
            return replace(found, logprobs=found.logprobs + 0.1 * (transitions.states[0, 0] == 4) * (len(steps) > 1))
        if self.fault == "window":
            return replace(found, logprobs=found.logprobs + 0.1 * (steps.shape[1] == 1))
        if self.fault == "shape":
            return replace(found, logprobs=found.logprobs[..., None])
        if self.fault == "mode":
            self.train()
        if self.fault == "detached":
            return replace(found, logprobs=found.logprobs.detach())
        if self.fault == "zero":
            return replace(found, logprobs=found.logprobs.detach() + 0.0 * found.logprobs)
        return found


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("temperature", "re-scored log-probs differ from the recorded ones: by .* at row"),
        ("batch", "depend on the other rows"),
        ("window", "windowable is True and log-probs depend on the window"),
        ("shape", r"gave log-probs of shape \(16, 5, 1\)"),
        ("mode", "changes its train/eval mode"),
        ("detached", "carry no gradient"),
        ("zero", "is zero in every trainable parameter"),
    ],
)
def test_check_policy_bites(fault: str, message: str) -> None:
    honest = Faulty("none").eval()
    rollout = fixed_rollout(honest)
    faulty = Faulty(fault).eval()
    faulty.load_state_dict(honest.state_dict())
    with pytest.raises(ContractError, match=message):
        check_policy(faulty, rollout)
    check_policy(honest, rollout)


class FaultyCollector(ToyCollector):
    def __init__(self, fault: str) -> None:
        super().__init__(RightActions(), ToyRollout())
        self.fault, self.calls = fault, 0

    def collect(self, policy: ToyPolicy, generator: torch.Generator) -> Rollout:
        self.calls += 1
        if self.fault == "global randomness":
            generator = torch.default_generator
        rollout = super().collect(policy, generator)
        if self.fault == "hidden state":
            return rollout.with_(rewards=rollout.rewards + self.calls)
        if self.fault == "gradient":
            return rollout.with_(values=rollout.rewards.clone().requires_grad_(), last_value=torch.zeros(16))
        if self.fault == "mode":
            policy.train()
        if self.fault == "groups":
            return rows_of(rollout, torch.arange(15))
        if self.fault == "untrained":
            return rollout.with_(mask=rollout.mask & False)
        if self.fault == "discounts":
            return rollout.with_(discounts=rollout.discounts + 1)
        if self.fault == "parts":
            return rollout.with_(reward_parts={"x": torch.zeros(16)})
        return rollout

    def state_dict(self) -> dict[str, object]:
        return {"drawn": torch.tensor(self.drawn)} if self.fault == "state" else super().state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        if self.fault != "position":
            super().load_state_dict(state)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("global randomness", "the same seed and position give another rollout"),
        ("hidden state", "the same seed and position give another rollout: Rollout.rewards differs"),
        ("position", "give another rollout"),
        ("gradient", "Rollout.values carries a gradient"),
        ("mode", "into train mode while it acts"),
        ("groups", "groups have 3 to 4 trajectories"),
        ("untrained", "nothing would be trained"),
        ("discounts", "discounts of living decisions must be from 0 to 1"),
        ("state", "state_dict.* is not JSON"),
    ],
)
def test_check_collector_bites(fault: str, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_collector(FaultyCollector(fault), toy(), seeded)
