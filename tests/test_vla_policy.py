"""Robots: chains of denoise steps and their densities, what a decision is, rewards, discounts and values of episodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.utils.constants import OBS_STATE
from torch.distributions import Normal

from mmrl.advantages import GAE
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.testing import check_collector, check_policy
from mmrl.types import Rollout
from tests.toy_robot import Plane, collector, load, make_policy
from vla import chains
from vla.chains import Counting
from vla.collector import EpisodeCollector, RewardConfig, RolloutConfig
from vla.exploration import FlowNoise, FlowSDE
from vla.policy import RobotPolicy
from vla.sim.base import Observations

ONE, ALL, NOISE = FlowSDE(), FlowSDE(steps="all"), FlowNoise(0.1, 0.4)
LAST = FlowNoise(0.1, 0.4, steps="last")
COUNTINGS = [
    {"level": level, "decisions": decisions, "reduction": reduction}
    for level in ("chunk", "action", "token") for decisions, reduction in (("chain", "sum"), ("chain", "mean"), ("step", "sum"))
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy"))


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def collected(policy: RobotPolicy, part: EpisodeCollector) -> Rollout:
    with acting(policy):
        return part.collect(policy, draws())


# ---- the flow, its SDE and its noise ----------------------------------------------------------------------


def test_without_noise_it_is_lerobots_own_sampling_to_the_last_bit(folder: Path) -> None:
    config = PreTrainedConfig.from_pretrained(folder)
    theirs = get_policy_class(config.type).from_pretrained(folder)
    for steps in (4, 5, 7):
        policy = load(folder, denoise_steps=steps)
        theirs.config.num_inference_steps = steps
        state, noise = torch.randn(6, 3, generator=draws()), torch.randn(6, 3, 2, generator=draws())
        seen = policy.adapter.inputs(Observations(state))
        expected = theirs.predict_action_chunk({OBS_STATE: seen[OBS_STATE]}, noise)
        with acting(policy):
            assert torch.equal(policy.best(Observations(state), noise), expected)


def test_deviations_of_flow_sde_are_those_of_rlinf() -> None:
    x = torch.zeros(1, 1, 1)
    found = [float(FlowSDE(0.5).step(x, x, number, 4, None)[1]) for number in range(4)]
    assert found == pytest.approx([0.5, 0.433, 0.25, 0.144], abs=5e-4)


def test_the_sde_keeps_the_marginals_of_the_flow() -> None:
    """Data N(m, s^2): the velocity is linear in x, and many fine SDE steps must end in the same Gaussian."""
    generator, mean, std, steps = draws(), 0.7, 0.4, 200
    x = torch.randn(40_000, 1, 1, generator=generator)
    for number in range(steps):
        t = 1 - number / steps
        variance = t**2 + (1 - t) ** 2 * std**2
        slope = (t - (1 - t) * std**2) / variance
        velocity = slope * (x - (1 - t) * mean) - mean  # E[noise - data | x_t]
        centre, deviation = FlowSDE(0.5).step(x, velocity, number, steps, None)
        x = centre + deviation * torch.randn(x.shape, generator=generator)
    assert float(x.mean()) == pytest.approx(mean, abs=0.01)
    assert float(x.std()) == pytest.approx(std, abs=0.012)


def test_one_step_of_each_chunk_is_stochastic_and_drawn_by_row() -> None:
    found = ONE.stochastic((300, 20), 4, draws())
    assert bool((found.sum(-1) == 1).all())
    assert found.float().mean((0, 1)).tolist() == pytest.approx([0.25] * 4, abs=0.03)
    assert len(torch.unique(found[:, 0].int().argmax(-1))) == 4  # not one for the whole batch
    assert not bool(FlowSDE(ignore_last=True).stochastic((300, 20), 4, draws())[..., -1].any())
    assert torch.equal(found, ONE.stochastic((300, 20), 4, draws()))


def test_flow_noise_has_the_exact_joint_log_likelihood_of_the_chain(folder: Path) -> None:
    policy = load(folder, exploration=NOISE)
    noise, every = torch.randn(5, 5, 3, 2, generator=draws()), torch.ones(5, 4, dtype=torch.bool)
    state = Observations(torch.randn(5, 3, generator=draws()))
    with acting(policy):
        acted = policy.act(state, noise, every)
        field, states = policy._field(policy.adapter.prefix(acted.inputs)), acted.chain.states.double()
        total = Normal(0.0, 1.0).log_prob(states[:, 0]).sum((1, 2))
        for number in range(4):
            velocity, raw = field(states[:, number].float(), number, torch.arange(5))
            assert raw is not None
            scaled = NOISE.scaled(raw).double()
            assert 0.1 <= float(scaled.min()) <= float(scaled.max()) <= 0.4
            mean = states[:, number] - velocity.double() / 4
            total += Normal(mean, scaled).log_prob(states[:, number + 1]).sum((1, 2))
    assert acted.logprobs[:, 0].double().tolist() == pytest.approx(total.tolist(), abs=1e-4)
    assert policy.decision_size == 5 * 6


def test_flow_noise_on_the_last_step_alone_is_the_density_of_the_action_there(folder: Path) -> None:
    policy = load(folder, exploration=LAST)
    noise, last = torch.randn(5, 5, 3, 2, generator=draws()), LAST.stochastic((5,), 4, draws())
    assert last.tolist() == [[False, False, False, True]] * 5
    with acting(policy):
        acted = policy.act(Observations(torch.randn(5, 3, generator=draws())), noise, last)
        field, states = policy._field(policy.adapter.prefix(acted.inputs)), acted.chain.states
        velocity, raw = field(states[:, 3], 3, torch.arange(5))
        assert raw is not None
        mean, std = states[:, 3] - velocity / 4, LAST.scaled(raw)
    assert torch.allclose(states[:, 4], mean + std * noise[:, 4], atol=1e-6)
    total = Normal(0.0, 1.0).log_prob(states[:, 0]) + Normal(mean, std).log_prob(states[:, 4])
    assert acted.logprobs[:, 0].tolist() == pytest.approx(total.sum((1, 2)).tolist(), abs=1e-4)
    assert policy.decision_size == 2 * 6


def test_levels_and_reductions_divide_the_same_density(folder: Path) -> None:
    densities, start = torch.randn(2, 4, 3, 2, generator=draws()), torch.randn(2, 3, 2, generator=draws())
    every = torch.ones(2, 4, dtype=torch.bool)

    def found(level: str, decisions: str = "chain", reduction: str = "sum") -> torch.Tensor:
        return Counting(level, decisions, reduction).logprobs(densities, start, every)  # type: ignore[arg-type]

    whole = densities.sum((1, 2, 3)) + start.sum((1, 2))
    for level, count in (("chunk", 1), ("action", 3), ("token", 6)):
        assert found(level).shape == (2, count)
        assert found(level).sum(1).tolist() == pytest.approx(whole.tolist(), abs=1e-5)
        assert (5 * found(level, reduction="mean")).tolist() == [
            pytest.approx(row, abs=1e-5) for row in found(level).tolist()
        ]
        steps = found(level, "step")
        assert steps.shape == (2, 4 * count)
        assert torch.allclose(steps.view(2, 4, count).sum(1), densities.sum(1).flatten(1).view(2, count, -1).sum(-1))
    one = torch.tensor([[True, False, False, False]]).expand(2, -1)
    only = densities * one[..., None, None]
    assert torch.allclose(
        Counting("chunk", "chain", "mean").logprobs(only, None, one)[:, 0], densities[:, 0].sum((1, 2))
    )


# ---- the contract -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("exploration", [ONE, ALL, NOISE, LAST], ids=["sde_one", "sde_all", "noise", "last"])
@pytest.mark.parametrize("counting", COUNTINGS, ids=lambda c: "-".join(c.values()))
def test_policy_and_collector_keep_their_contracts(folder: Path, exploration: object, counting: dict[str, str]) -> None:
    policy = load(folder, exploration=exploration, **counting)
    part = collector(Plane(6))
    check_policy(policy, collected(policy, part))
    check_collector(part, policy, draws)


def test_entropy_and_a_bounded_ratio_carry_gradient_to_the_noise_head(folder: Path) -> None:
    policy = load(folder, exploration=NOISE)
    rollout = collected(policy, collector(Plane(4)))
    policy.report_entropy = True
    steps = torch.arange(rollout.logprobs.shape[1]).expand(4, -1)
    found = policy(rollout.transitions, steps)
    assert found.entropy is not None
    (found.entropy * rollout.mask).sum().backward()
    assert all(bool(p.grad.any()) for p in policy.heads["noise"].parameters())
    assert all(p.grad is None for p in policy.heads["critic"].parameters())


def test_the_critic_sends_nothing_into_the_policy(folder: Path) -> None:
    policy = load(folder)
    rollout = collected(policy, collector(Plane(4)))
    steps = torch.arange(rollout.logprobs.shape[1]).expand(4, -1)
    values = policy(rollout.transitions, steps).values
    assert values is not None
    assert torch.allclose(values[rollout.mask], rollout.values[rollout.mask], atol=1e-6)  # type: ignore[index]
    values.sum().backward()
    assert all(p.grad is None for p in policy.adapter.parameters())
    assert {id(p) for p in policy.critic_parameters()} == {id(p) for p in policy.heads["critic"].parameters()}


def test_weights_come_back_and_lerobot_reads_the_folder(folder: Path, tmp_path: Path) -> None:
    policy = load(folder, exploration=NOISE)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01)
    policy.save_pretrained(tmp_path)
    other = load(folder, exploration=NOISE)
    other.load_weights(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), other.parameters(), strict=True))
    theirs = get_policy_class("small_flow").from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(policy.adapter.policy.parameters(), theirs.parameters(), strict=True))


def test_a_critic_may_be_new_to_a_run_and_a_noise_head_may_not(folder: Path, tmp_path: Path) -> None:
    without, awake = load(folder, critic=None), load(folder, exploration=NOISE)
    without.save_pretrained(tmp_path)
    again = load(folder)
    again.load_weights(tmp_path)
    fresh = load(folder)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), fresh.parameters(), strict=True))
    with pytest.raises(ValueError, match="has no noise head"):
        awake.load_weights(tmp_path)


def test_what_does_not_fit_is_refused_with_both_sides(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"policy.path .*nowhere.*there is no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="policy.execute is 9: this policy's chunks have 3 actions"):
        load(folder, execute=9)
    policy = load(folder)
    with pytest.raises(ValueError, match="reads a state of 3 numbers and the task tells 5"):
        policy.adapter.inputs(Observations(torch.zeros(1, 5)))
    with pytest.raises(ValueError, match="noise is 0"):
        FlowSDE(0.0)
    with pytest.raises(ValueError, match="low 0.3 and high 0.1"):
        FlowNoise(0.3, 0.1)
    with pytest.raises(ValueError, match="episodes is 5 and rollout.group is 2"):
        RolloutConfig(5, 2)


# ---- episodes ---------------------------------------------------------------------------------------------


def test_an_episode_is_counted_as_the_notation_says(folder: Path) -> None:
    """Rewards at chain ends, discount 1 inside a chain, gamma between chunks, 0 at a success; a truncation bootstraps."""
    policy = load(folder, exploration=ALL, decisions="step")
    part = collector(Plane(12, max_steps=7), reward=RewardConfig(success=1.0, relative=1.0, discount=0.9))
    rollout = collected(policy, part)
    assert rollout.logprobs.shape == (12, 3 * 4)
    assert rollout.chain_ends is not None
    inside = ~rollout.chain_ends
    assert rollout.chain_ends[0].tolist() == ([False] * 3 + [True]) * 3
    assert bool((rollout.rewards[inside] == 0).all())
    assert bool((rollout.discounts[inside] == 1).all())
    won, lengths = rollout.reward_parts["success"].bool(), rollout.alive.sum(1)
    assert 0 < int(won.sum()) < 12
    for row in range(12):
        ends = rollout.discounts[row, : lengths[row]][3::4].tolist()
        assert ends == pytest.approx([0.9] * (len(ends) - 1) + [0.0 if won[row] else 0.9])
        assert (float(rollout.last_value[row]) == 0) == bool(won[row])  # type: ignore[index]
    final = 1 - part.simulator.at.norm(dim=-1)  # type: ignore[attr-defined]
    assert rollout.returns().tolist() == pytest.approx((final + won).tolist(), abs=1e-5)  # differences telescope


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_gae_of_the_chain_is_gae_of_the_environment_step(folder: Path, lam: float) -> None:
    reward = RewardConfig(relative=1.0, discount=0.9)
    fine = collected(
        load(folder, exploration=ALL, decisions="step", level="token"), collector(Plane(12), reward=reward)
    )
    coarse = collected(load(folder, exploration=ALL), collector(Plane(12), reward=reward))
    gae = GAE(lam, whiten=False)
    of_chunks, of_decisions = gae(coarse), gae(fine)
    size = fine.logprobs.shape[1] // coarse.logprobs.shape[1]
    spread = of_chunks.advantages.repeat_interleave(size, 1)
    assert torch.allclose(torch.where(fine.mask, spread, 0.0), of_decisions.advantages, atol=1e-5)
    assert of_decisions.returns is not None


def test_the_episode_of_a_lost_environment_is_no_one(folder: Path) -> None:
    policy = load(folder)
    whole, lost = (collected(policy, collector(Plane(6, lose=row))) for row in (None, 2))
    assert not bool(lost.alive[2].any())
    assert not bool(lost.applicable["success"][2])
    kept = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(lost.logprobs[kept], whole.logprobs[kept])


def test_actions_that_an_episode_did_not_live_to_are_not_trained_one_by_one(folder: Path) -> None:
    rollout = collected(load(folder, level="action"), collector(Plane(8, max_steps=7)))
    taken = rollout.reward_parts["steps"]
    assert rollout.mask.sum(1).tolist() == taken.tolist()
    assert bool((rollout.alive.sum(1) % 3 == 0).all())


def test_groups_share_the_initial_state_and_not_the_noise(folder: Path) -> None:
    rollout = collected(load(folder, critic=None), collector(Plane(8), group=4))
    assert rollout.group_ids.tolist() == [0] * 4 + [1] * 4
    assert rollout.values is None
    first = rollout.transitions.inputs[OBS_STATE][:, 0]  # type: ignore[attr-defined]
    assert torch.equal(first[:4], first[:1].expand(4, -1))
    assert not torch.equal(first[0], first[4])
    assert len(torch.unique(rollout.logprobs[:, 0])) == 8


def test_rewards_of_a_chunk() -> None:
    steps = torch.tensor([[[0.1, 0.3], [0.2, 1.0]]])
    alive = torch.ones(1, 2, 2, dtype=torch.bool)
    success = torch.tensor([[[False, True], [True, True]]])
    assert RewardConfig().of(steps, success, alive).tolist() == [[1.0, 0.0]]  # the first success only
    assert RewardConfig(0.0, relative=1.0).of(steps, success, alive)[0].tolist() == pytest.approx([0.3, 0.7])
    assert RewardConfig(0.0, dense=1.0).of(steps, success, alive)[0].tolist() == pytest.approx([0.4, 1.2])
    alive[0, 1, 1] = False
    assert RewardConfig(0.0, relative=1.0).of(steps, success, alive)[0].tolist() == pytest.approx([0.3, -0.1])


def test_chains_score_only_what_was_stochastic() -> None:
    calls: list[int] = []

    def field(x: torch.Tensor, number: int, rows: torch.Tensor) -> tuple[torch.Tensor, None]:
        calls.append(len(rows))
        return 0.1 * x, None

    stochastic = ONE.stochastic((9,), 4, draws())
    chain = chains.draw(field, torch.randn(9, 5, 3, 2, generator=draws()), stochastic, ONE)
    calls.clear()
    found, _ = chains.density(field, chain.states, stochastic, ONE)
    assert sum(calls) == 9
    assert torch.allclose(found, chain.densities, atol=1e-6)


def test_the_collector_counts_the_time_of_the_simulator() -> None:
    simulator = Plane(2)
    part = EpisodeCollector(simulator, RolloutConfig(2), RewardConfig(), Runtime(RuntimeConfig(device="cpu"), 0))
    simulator.spent = 4.0
    assert part.cpu_s() == 4.0
