"""How rollouts are made up: other groups in the place of decided ones, and very large groups in a few rows of memory.

What is measured is that they do what they say, not that anything learns more.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmrl.advantages import GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.masked import group_varies
from mmrl.resampling import STRIDE, collect, together
from mmrl.runtime import acting
from mmrl.scoring import score
from mmrl.settings import TrainConfig
from mmrl.surrogates import PPOClip
from mmrl.types import Evaluation, Rollout, Transitions
from tests.test_update import RUNTIME, assert_same_gradient, run, toy
from tests.toy import (
    CategoricalPolicy,
    RightActions,
    ToyCollector,
    ToyPolicy,
    ToyPolicyConfig,
    ToyRollout,
    fixed_rollout,
)


class Whole(RightActions):
    """1 only if all actions are right: few groups differ."""

    def _one(self, output: object, state: object) -> float:
        return float(super()._one(output, state) == 1.0)


def drawn(rounds: int, prompts: int = 6, steps: int = 3) -> tuple[Rollout, ToyCollector, ToyPolicy]:
    policy, collector = toy(), ToyCollector(Whole(), ToyRollout(prompts, 4, steps))
    with acting(policy):
        rollout = collect(collector, policy, torch.Generator().manual_seed(0), rounds, RUNTIME)
    return rollout, collector, policy


def varying(rollout: Rollout) -> list[bool]:
    told = group_varies(rollout.returns(), rollout.alive.any(-1), rollout.group_ids)
    return [bool(told[rollout.group_ids == group].any()) for group in rollout.group_ids.unique()]


def test_decided_groups_give_way_to_others() -> None:
    plain, collector, _ = drawn(0)
    assert collector.drawn == 6
    assert 0 < sum(varying(plain)) < 6
    rollout, collector, policy = drawn(20)
    assert varying(rollout) == [True] * 6
    assert collector.drawn > 6
    assert len(rollout) == len(plain) == 24
    assert sorted(torch.unique(rollout.group_ids, return_counts=True)[1].tolist()) == [4] * 6
    assert int(rollout.group_ids.max()) >= STRIDE
    torch.testing.assert_close(score(policy, rollout, 5), torch.where(rollout.mask, rollout.logprobs, 0.0))


def test_rounds_are_bounded_and_the_step_stays_as_large() -> None:
    plain, _, _ = drawn(0)
    rollout, collector, _ = drawn(1)
    assert collector.drawn == 12
    assert len(rollout) == len(plain)
    assert sum(varying(plain)) <= sum(varying(rollout)) < 6


def test_no_more_is_drawn_than_it_takes() -> None:
    policy, collector = toy(), ToyCollector(RightActions(), ToyRollout(4, 8, 5))
    with acting(policy):
        rollout = collect(collector, policy, torch.Generator().manual_seed(0), 9, RUNTIME)
    assert collector.drawn == 4 * (1 + int(rollout.group_ids.max()) // STRIDE)
    with pytest.raises(ValueError, match="have no groups to compare: set it to 0"):
        collect(ToyCollector(RightActions(), ToyRollout(4, 1)), policy, torch.Generator(), 2, RUNTIME)
    with pytest.raises(ValueError, match=r"train\.resample is -1"):
        TrainConfig(resample=-1)


def test_rollouts_are_joined() -> None:
    policy = toy()
    short, long = fixed_rollout(policy, steps=3), fixed_rollout(policy, steps=3, seed=1)
    both = together([short, long.with_(group_ids=long.group_ids + STRIDE)])
    assert len(both) == len(short) + len(long)
    torch.testing.assert_close(both.returns(), torch.cat([short.returns(), long.returns()]))


# ---- BroRL: hundreds of rollouts a prompt, arXiv 2510.01180 -----------------------------------------------


class Measured(CategoricalPolicy):
    """Knows the most rows that it was asked for at once."""

    most = 0

    def forward(self, transitions: Transitions, steps: Tensor) -> Evaluation:
        self.most = max(self.most, len(steps))
        found: Evaluation = super().forward(transitions, steps)  # type: ignore[arg-type]
        return found


def test_a_group_of_hundreds_is_one_gradient_in_a_few_rows_of_memory() -> None:
    algorithm = Algorithm(GroupRelative(), PPOClip(), TokenMean())
    policy = Measured(ToyPolicyConfig()).eval()
    rollout = fixed_rollout(policy, prompts=2, group=512, steps=3)
    (wanted,), _ = run(policy, rollout, algorithm, micro_rows=1024)
    assert policy.most == 1024
    policy.most = 0
    (found,), _ = run(policy, rollout, algorithm, micro_rows=16)
    assert policy.most == 16
    assert_same_gradient(found, wanted, 1e-5)  # float32 sums of 3,000 terms in another order


def test_the_mass_balance_of_the_card() -> None:
    """Five logits, {0, 1} right, drawn (1, 0, 2, 0, 0) times with R = +-1: dQ = eta / N [(1 - Q) sum_pos p c
    - Q sum_neg p c + S (Q sum_neg p^2 - (1 - Q) sum_pos p^2)], against a step of the logits."""
    z = torch.tensor([0.1, 0.5, -0.3, 0.2, 0.0], dtype=torch.float64)
    counts, right = (
        torch.tensor([1.0, 0, 2, 0, 0], dtype=torch.float64),
        torch.tensor([True, True, False, False, False]),
    )
    reward = torch.where(right, 1.0, -1.0)
    p, collected = z.softmax(-1), counts * reward
    total, q = collected.sum(), z.softmax(-1)[right].sum()
    pushed = (1 - q) * (p * collected)[right].sum() - q * (p * collected)[~right].sum()
    coupled = total * (q * p[~right].square().sum() - (1 - q) * p[right].square().sum())
    eta = 1e-6
    moved = (z + eta * (collected - total * p)).softmax(-1)[right].sum()
    assert float((moved - q) / eta) == pytest.approx(float(pushed + coupled), abs=1e-5)
