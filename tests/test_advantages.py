"""Advantages against closed forms (invariants I6, I7, I8)."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mmrl.advantages import (
    GAE,
    BatchScaled,
    EntropyAware,
    GroupRelative,
    HistoryMedian,
    LeaveOneOut,
    Likelihood,
    PromptHistory,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
)
from mmrl.algorithm import Advantage
from mmrl.shapers import Overlong
from mmrl.types import Rollout
from tests.toy import ToyTransitions

NAN = float("nan")
GROUPED = [GroupRelative(), GroupRelative(normalise=False), LeaveOneOut(), ReinforcePlusPlusBaseline()]
CENTRED = GROUPED[:3]
names = [f"{type(a).__name__}{i}" for i, a in enumerate(GROUPED)]


def make(
    rewards: Sequence[Sequence[float]],
    groups: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    mask: Tensor | None = None,
    **fields: object,
) -> Rollout:
    """A rollout of the given rewards (B, T); dead decisions hold NaN everywhere."""
    table = torch.tensor(rewards)
    rows, steps = table.shape
    alive = torch.arange(steps)[None] < torch.tensor(lengths or [steps] * rows)[:, None]
    blank = torch.zeros(rows, steps)
    given: dict[str, object] = {
        "transitions": ToyTransitions(blank.long(), blank.long()),
        "logprobs": blank.where(alive, NAN),
        "mask": alive if mask is None else mask & alive,
        "alive": alive,
        "rewards": table.where(alive, NAN),
        "discounts": (blank + 1).where(alive, NAN),
        "group_ids": torch.tensor(groups or [0] * rows),
    }
    return Rollout(**{**given, **fields})  # type: ignore[arg-type]


def last(rewards: Sequence[float], groups: Sequence[int] | None = None) -> Rollout:
    """One decision a trajectory."""
    return make([[reward] for reward in rewards], groups)


def of(advantage: Advantage, rollout: Rollout) -> list[float]:
    return advantage(rollout).advantages[:, 0].tolist()


def test_grpo_uses_the_unbiased_std() -> None:
    assert of(GroupRelative(), last([1.0, 0.0, 0.0, 0.0])) == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=3e-4)
    assert of(GroupRelative(eps=0.0), last([1.0, 0.0, 0.0, 0.0])) == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-6)


def test_the_history_of_a_prompt_is_what_it_is_compared_with() -> None:
    """Against the tracker written out: the whole rollout until a prompt has `minimum` rewards, then its last ones."""
    advantage, generator = PromptHistory(buffer=5, minimum=3), torch.Generator().manual_seed(0)
    seen: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for number in range(6):
        rewards = torch.rand(4, generator=generator)
        prompts = [0, 0, 1, 2] if number % 2 else [0, 1, 1, 1]
        dead = 1 if number == 3 else 0
        rollout = make(
            [[float(r)] for r in rewards], [0, 1, 2, 3], [1, 1, 1, 1 - dead], prompt_ids=torch.tensor(prompts)
        )
        living = rewards[: 4 - dead].double()
        for prompt, reward in zip(prompts, living.tolist(), strict=False):
            seen[prompt] = [*seen[prompt], reward][-5:]
        wanted = []
        for prompt, reward in zip(prompts, living.tolist(), strict=False):
            pool = torch.tensor(seen[prompt], dtype=torch.float64) if len(seen[prompt]) >= 3 else living
            wanted.append(float((reward - pool.mean()) / (pool.std(correction=0) + 1e-6)))
        assert of(advantage, rollout) == pytest.approx(wanted + [0.0] * dead, abs=1e-5)
    again = PromptHistory(buffer=5, minimum=3)
    again.load_state_dict(json.loads(json.dumps(advantage.state_dict())))
    following = make([[0.1], [0.9]], [0, 1], prompt_ids=torch.tensor([0, 2]))
    assert of(again, following) == of(advantage, following)
    with pytest.raises(ValueError, match="prompt_ids, which this collector does not record"):
        advantage(last([1.0, 0.0]))
    with pytest.raises(ValueError, match="give 1 <= minimum <= buffer"):
        PromptHistory(buffer=2, minimum=3)


def test_dr_grpo_only_centres() -> None:
    assert of(GroupRelative(normalise=False), last([1.0, 0.0, 0.0, 0.0])) == [0.75, -0.25, -0.25, -0.25]


def test_leave_one_out() -> None:
    third = 1 / 3
    assert of(LeaveOneOut(), last([1.0, 0.0, 0.0, 0.0])) == pytest.approx([1.0, -third, -third, -third], rel=1e-6)


def test_reinforce_plus_plus_whitens_returns_to_go() -> None:
    assert ReinforcePlusPlus()(make([[0.0, 0.0, 1.0]])).advantages.tolist() == [[0.0, 0.0, 0.0]]
    found = ReinforcePlusPlus()(make([[0.0, 1.0], [0.0, -1.0]])).advantages
    scale = 0.75**0.5  # unbiased std of (1, 1, -1, -1) is sqrt(4 / 3)
    torch.testing.assert_close(found, torch.tensor([[scale, scale], [-scale, -scale]]))


def test_reinforce_plus_plus_discounts() -> None:
    rollout = make([[1.0, 2.0, 4.0]]).with_(discounts=torch.full((1, 3), 0.5))
    found = ReinforcePlusPlus()(rollout).advantages[0]
    returns = torch.tensor([3.0, 4.0, 4.0])
    torch.testing.assert_close(found, (returns - returns.mean()) / returns.std())


def test_reinforce_plus_plus_passes_returns_through_untrained_decisions() -> None:
    mask = torch.tensor([[True, False, True], [True, False, True]])
    found = ReinforcePlusPlus()(make([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], mask=mask)).advantages
    assert found[:, 1].tolist() == [0.0, 0.0]
    assert float(found[0, 0]) == float(found[0, 2]) > 0 > float(found[1, 0])


def test_reinforce_plus_plus_baseline() -> None:
    rollout = last([1.0, 0.0, 5.0, 4.0], [0, 0, 1, 1])  # centred: .5, -.5, .5, -.5; unbiased std sqrt(1 / 3)
    scale = 0.5 * 3**0.5
    assert of(ReinforcePlusPlusBaseline(), rollout) == pytest.approx([scale, -scale, scale, -scale], rel=1e-6)


def test_whitening_is_over_decisions_and_not_over_rows() -> None:
    lengths = [1, 3]
    found = ReinforcePlusPlusBaseline()(make([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], lengths=lengths)).advantages
    centred = torch.tensor([0.5, -0.5, -0.5, -0.5])
    white = (centred - centred.mean()) / centred.std()
    torch.testing.assert_close(found[torch.tensor([[1, 0, 0], [1, 1, 1]]).bool()], white)


def test_likelihood_is_one_on_every_trained_decision() -> None:
    rollout = make([[0.0, 0.0], [0.0, 0.0]], lengths=[1, 2])
    assert Likelihood()(rollout).advantages.tolist() == [[1.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("advantage", CENTRED, ids=names[:3])
def test_group_advantages_sum_to_0(advantage: Advantage) -> None:
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(24, generator=generator).tolist()
    groups = [i % 4 for i in range(24)]
    found = advantage(last(rewards, groups)).advantages[:, 0]
    for group in range(4):
        assert abs(float(found[group::4].sum())) < 1e-5
        assert float(found[group::4].abs().max()) > 0.1


@pytest.mark.parametrize("advantage", GROUPED, ids=names)
def test_group_of_one_gives_0(advantage: Advantage) -> None:
    assert of(advantage, last([7.0, 1.0, 3.0], [0, 1, 2])) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("advantage", [*GROUPED, ReinforcePlusPlus()], ids=[*names, "ReinforcePlusPlus"])
@pytest.mark.parametrize("rewards", [[0.3] * 3, [100.1] * 7, [0.1 + 0.2, 0.3, 0.3], [0.7, 0.1 * 7, 0.7000001]])
def test_constant_rewards_give_0_in_spite_of_rounding(advantage: Advantage, rewards: list[float]) -> None:
    assert of(advantage, last(rewards)) == [0.0] * len(rewards)


@pytest.mark.parametrize("advantage", [*GROUPED, ReinforcePlusPlus()], ids=[*names, "ReinforcePlusPlus"])
def test_permuting_rows_permutes_advantages(advantage: Advantage) -> None:
    generator = torch.Generator().manual_seed(2)
    rewards = torch.randn(12, 3, generator=generator)
    groups, order = torch.arange(12) // 4, torch.randperm(12, generator=generator)
    straight = advantage(make(rewards.tolist(), groups.tolist())).advantages
    permuted = advantage(make(rewards[order].tolist(), groups[order].tolist())).advantages
    torch.testing.assert_close(permuted, straight[order], rtol=1e-6, atol=1e-6)
    assert float(straight.abs().max()) > 0.1


@pytest.mark.parametrize("advantage", [*GROUPED, ReinforcePlusPlus()], ids=[*names, "ReinforcePlusPlus"])
def test_failed_rows_leave_the_statistics(advantage: Advantage) -> None:
    with_failed = make([[1.0], [9.0], [0.0]], [0, 0, 0], lengths=[1, 0, 1])
    found = advantage(with_failed).advantages[:, 0]
    without = advantage(last([1.0, 0.0])).advantages[:, 0]
    assert found.tolist() == [float(without[0]), 0.0, float(without[1])]
    assert float(found[0]) > 0


@pytest.mark.parametrize("advantage", [*GROUPED, ReinforcePlusPlus()], ids=[*names, "ReinforcePlusPlus"])
def test_group_of_failed_rows_only(advantage: Advantage) -> None:
    rollout = make([[1.0], [0.0], [3.0], [4.0]], [0, 0, 1, 1], lengths=[1, 1, 0, 0])
    found = advantage(rollout).advantages[:, 0]
    assert found[2:].tolist() == [0.0, 0.0]
    assert float(found[0]) == -float(found[1]) > 0


@pytest.mark.parametrize("advantage", [*GROUPED, ReinforcePlusPlus(), GAE()], ids=[*names, "ReinforcePlusPlus", "GAE"])
def test_nothing_alive(advantage: Advantage) -> None:
    nothing = make([[1.0, 1.0], [0.0, 0.0]], lengths=[0, 0]).with_(
        values=torch.full((2, 2), NAN), last_value=torch.zeros(2)
    )
    assert advantage(nothing).advantages.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_reward_on_an_untrained_decision_counts() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    found = GroupRelative(eps=0.0)(make([[0.0, 1.0], [0.0, 0.0]], mask=mask)).advantages
    half = 0.5**0.5
    torch.testing.assert_close(found, torch.tensor([[half, 0.0], [-half, -half]]))


# ---- GAE ------------------------------------------------------------------------------------------------


def critic_rollout(seed: int, gamma: float, terminated: Sequence[bool], lengths: Sequence[int], steps: int) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    rows = len(lengths)
    rewards, values = torch.randn(2, rows, steps, generator=generator)
    discounts = torch.full((rows, steps), gamma)
    for row, (ended, length) in enumerate(zip(terminated, lengths, strict=True)):
        if ended:
            discounts[row, length - 1] = 0.0
    alive = torch.arange(steps)[None] < torch.tensor(lengths)[:, None]
    rollout = make(rewards.tolist(), list(range(rows)), lengths)
    return rollout.with_(
        values=values.where(alive, NAN),
        discounts=discounts.where(alive, NAN),
        last_value=torch.randn(rows, generator=generator),
    )


def gae_by_definition(rollout: Rollout, row: int, lam: float) -> list[float]:
    """A_t as the sum over s >= t of the discounted temporal differences, in float64."""
    assert rollout.values is not None and rollout.last_value is not None
    n = int(rollout.alive[row].sum())
    r, d = rollout.rewards[row, :n].tolist(), rollout.discounts[row, :n].tolist()
    v = [*rollout.values[row, :n].tolist(), float(rollout.last_value[row])]
    deltas = [r[t] + d[t] * v[t + 1] - v[t] for t in range(n)]
    found = []
    for t in range(n):
        total, weight = 0.0, 1.0
        for s in range(t, n):
            total += weight * deltas[s]
            weight *= d[s] * lam
        found.append(total)
    return found


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_against_its_definition(lam: float) -> None:
    lengths = [6, 4, 1, 6]
    rollout = critic_rollout(0, 0.9, [True, False, True, False], lengths, 6)
    credit = GAE(lam, whiten=False)(rollout)
    for row, n in enumerate(lengths):
        wanted = torch.tensor(gae_by_definition(rollout, row, lam))
        torch.testing.assert_close(credit.advantages[row, :n], wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(credit.returns[row, :n], wanted + rollout.values[row, :n], rtol=1e-5, atol=1e-5)
        assert credit.advantages[row, n:].tolist() == [0.0] * (6 - n)
        assert credit.returns[row, n:].tolist() == [0.0] * (6 - n)


def test_gae_of_lambda_1_is_monte_carlo_and_of_lambda_0_one_step() -> None:
    rollout = critic_rollout(3, 1.0, [True], [4], 4)
    returns = rollout.rewards[0].flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(GAE(1.0, whiten=False)(rollout).returns[0], returns, rtol=1e-5, atol=1e-5)
    one_step = rollout.rewards[0] + torch.cat([rollout.values[0, 1:], torch.zeros(1)]) - rollout.values[0]
    torch.testing.assert_close(GAE(0.0, whiten=False)(rollout).advantages[0], one_step, rtol=1e-5, atol=1e-5)


def test_termination_cuts_and_truncation_bootstraps() -> None:
    ended = critic_rollout(4, 0.9, [True], [3], 3)
    cut = critic_rollout(4, 0.9, [False], [3], 3)
    gae = GAE(0.95, whiten=False)
    other = {"last_value": torch.tensor([100.0])}
    assert torch.equal(gae(ended).advantages, gae(ended.with_(**other)).advantages)
    assert float((gae(cut.with_(**other)).advantages - gae(cut).advantages).min()) > 50.0


def test_chain_gae_is_environment_gae() -> None:
    """E environment steps of K denoise steps each: values repeated, reward at the last, lambda 1 inside."""
    environment, inner = 4, 3
    lengths = [4, 2]
    plain = critic_rollout(5, 0.9, [True, False], lengths, environment)
    alive = plain.alive.repeat_interleave(inner, 1)
    ends = torch.tensor([False] * (inner - 1) + [True]).repeat(environment).expand(2, -1)
    rewards = plain.rewards.repeat_interleave(inner, 1).where(ends, 0.0).where(alive, NAN)
    chain = make(rewards.nan_to_num().tolist(), [0, 1], [n * inner for n in lengths]).with_(
        rewards=rewards,
        values=plain.values.repeat_interleave(inner, 1),
        discounts=plain.discounts.repeat_interleave(inner, 1).where(ends, 1.0),
        last_value=plain.last_value,
        chain_ends=ends,
    )
    wanted = GAE(0.95, whiten=False)(plain)
    found = GAE(0.95, whiten=False)(chain)
    torch.testing.assert_close(found.advantages, wanted.advantages.repeat_interleave(inner, 1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.returns, wanted.returns.repeat_interleave(inner, 1), rtol=1e-5, atol=1e-6)
    everywhere = GAE(0.95, whiten=False)(chain.with_(chain_ends=None))  # lambda inside the chain is another number
    assert not torch.allclose(everywhere.advantages, found.advantages)


def test_gae_whitens_over_trained_decisions() -> None:
    rollout = critic_rollout(6, 0.9, [True, True], [5, 3], 5)
    found = GAE()(rollout).advantages[rollout.mask]
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(found.std()) == pytest.approx(1.0, abs=1e-5)


def test_gae_without_a_critic_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="no critic: choose a group-relative"):
        GAE()(last([1.0]))
    with pytest.raises(ValueError, match=r"GAE.lam is 1.5: give a number from 0 to 1"):
        GAE(1.5)


# ---- Lite PPO, AEPO, SPEAR, DAPO --------------------------------------------------------------------------


def in_groups(rewards: list[list[float]], length: int = 1, **fields: object) -> Rollout:
    """Groups of trajectories of `length` decisions, rewarded on the last."""
    flat = torch.tensor([reward for group in rewards for reward in group])
    blank = torch.zeros(len(flat), length)
    groups = torch.tensor([number for number, group in enumerate(rewards) for _ in group])
    laid = blank.clone()
    laid[:, -1] = flat
    alive = torch.ones_like(blank, dtype=torch.bool)
    found = Rollout(
        ToyTransitions(blank.long(), blank.long()), blank, alive, alive, laid, torch.ones_like(blank), groups
    )
    return found.with_(**fields)


def test_lite_ppo_divides_by_the_spread_of_raw_rewards() -> None:
    found = BatchScaled()(in_groups([[1.0, 0.0], [1.0, 1.0]])).advantages[:, 0]
    torch.testing.assert_close(found, torch.tensor([1.0, -1.0, 0.0, 0.0]), atol=1e-5, rtol=0)
    assert BatchScaled()(in_groups([[1.0, 1.0]])).advantages.tolist() == [[0.0], [0.0]]


def test_entropy_aware_credit() -> None:
    """H = (0, 2): z = -+.7071, factors .8586 and 1.1414; far below the mean the credit ends, and keeps its sign."""
    rollout = in_groups([[1.0], [0.0]], stats={"entropy": torch.tensor([[0.0], [2.0]])})
    part = EntropyAware(base=Likelihood())
    torch.testing.assert_close(part(rollout).advantages, torch.tensor([[0.8586], [1.1414]]), atol=1e-4, rtol=0)
    assert float(EntropyAware(base=Likelihood(), alpha=5.0)(rollout).advantages[0]) == 0.0
    flat = rollout.with_(stats={"entropy": torch.ones(2, 1)})
    assert part(flat).advantages.tolist() == [[1.0], [1.0]]


def test_the_median_of_history() -> None:
    """Means (.2, .4, .9): 1 is worth .6, .3 nothing, and the next rollout is held against this one too."""
    part = HistoryMedian()
    part.load_state_dict({"means": [0.2, 0.4, 0.9]})
    found = part(in_groups([[1.0], [0.3]])).advantages[:, 0]
    torch.testing.assert_close(found, torch.tensor([0.6, 0.0]))
    assert part.state_dict() == {"means": [pytest.approx(x) for x in (0.2, 0.4, 0.9, 1.0, 0.3)]}
    both = HistoryMedian(positive_only=False, buffer=2)
    first = both(in_groups([[1.0], [0.0], [0.2]])).advantages[:, 0]
    torch.testing.assert_close(first, torch.tensor([0.8, -0.2, 0.0]))
    assert both.state_dict() == {"means": [0.0, pytest.approx(0.2)]}


def test_the_soft_overlong_punishment() -> None:
    """Limit 10, buffer 4: of 8 decisions -.5, of 6 nothing, of 12 all of it; on the last one."""
    for length, cost in ((6, 0.0), (8, -0.5), (10, -1.0), (12, -1.0)):
        found = Overlong(limit=10, buffer=4)(in_groups([[1.0]], length)).rewards[0]
        assert float(found[-1]) == pytest.approx(1.0 + cost)
        assert float(found[:-1].abs().sum()) == 0.0
    with pytest.raises(ValueError, match="0 < buffer <= limit"):
        Overlong(limit=4, buffer=5)
