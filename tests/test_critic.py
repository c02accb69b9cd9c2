"""A critic apart from its policy: its own rate, steps that it has alone, the KL stop, cheaper evaluations in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mmrl.advantages import GAE, GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.bins import Bins
from mmrl.heads import CriticConfig, make_critic
from mmrl.hl_gauss import HLGauss
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.settings import TrainConfig
from mmrl.surrogates import PPOClip
from mmrl.trainer import EvaluateConfig, LoggingConfig, Parts, Trainer
from mmrl.types import Estimate, Evaluation, Policy
from mmrl.update import UpdateConfig, update
from mmrl.value_loss import ValueRegression
from tests.test_surrogates import batch_of
from tests.toy import (
    STATES,
    CategoricalPolicy,
    RightActions,
    ToyCollector,
    ToyEvaluator,
    ToyPolicyConfig,
    ToyRollout,
    fixed_rollout,
)

PPO = Algorithm(GAE(), PPOClip(), TokenMean(), value_loss=ValueRegression())


class Apart(CategoricalPolicy):
    """With a critic that shares nothing with the policy."""

    def __init__(self) -> None:
        super().__init__(ToyPolicyConfig())
        self.own = nn.Embedding(STATES, 1)

    def forward(self, transitions, steps):
        found = super().forward(transitions, steps)
        return type(found)(found.logprobs, values=self.own(transitions.at(steps)[0])[..., 0])

    def values(self, features: Tensor) -> Tensor:
        return features.new_zeros(features.shape[:-1])

    def critic_parameters(self) -> Sequence[nn.Parameter]:
        return list(self.own.parameters())


class Cheaper(ToyEvaluator):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def evaluate(self, policy, generator):
        self.calls.append("whole")
        return super().evaluate(policy, generator)

    def between(self, policy, generator):
        self.calls.append("between")
        return {"accuracy": Estimate(0.5, 0.0, 1.0, 2)}


class Simulating(ToyCollector):
    """Every rollout costs other processes 3 seconds."""

    spent = 100.0

    def collect(self, policy, generator):
        self.spent += 3.0
        return super().collect(policy, generator)

    def cpu_s(self) -> float:
        return self.spent


def apart() -> Apart:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return Apart()


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}


def moved(policy: Policy, before: dict[str, Tensor]) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if not torch.equal(parameter, before[name])}


def trainer(policy: Policy, evaluator: ToyEvaluator | None = None, **settings: object) -> Trainer:
    parts = Parts(policy, Simulating(RightActions(), ToyRollout()), evaluator or ToyEvaluator(), PPO)
    config = TrainConfig(**{"lr": 0.01, "steps": 5, **settings})  # type: ignore[arg-type]
    quiet = LoggingConfig(progress=False)
    return Trainer(parts, config, Runtime(RuntimeConfig(device="cpu"), 0), None, EvaluateConfig(every=2), None, quiet)


def test_a_critic_learns_at_its_own_rate() -> None:
    found = trainer(apart(), critic_lr=0.05)
    found.step()
    assert [group["lr"] for group in found.optimizer.param_groups] == pytest.approx([0.01, 0.05])
    assert [p.shape for p in found.optimizer.param_groups[1]["params"]] == [(STATES, 1)]
    assert [len(group["params"]) for group in trainer(apart()).optimizer.param_groups] == [4]
    with pytest.raises(ValueError, match="critic_lr is 0.05 and CategoricalPolicy has no critic apart"):
        trainer(CategoricalPolicy(ToyPolicyConfig()), critic_lr=0.05)


def test_the_first_steps_go_to_the_critic_alone() -> None:
    policy = apart()
    found, before = trainer(policy, critic_warmup=2), weights(policy)
    for _ in range(2):
        metrics = found.step()
    assert moved(policy, before) == {"own.weight"}
    assert metrics["parity/first_pass_ratio_max"] == pytest.approx(1.0, abs=1e-6)
    found.step()
    assert moved(policy, before) == set(before)


def test_epochs_of_the_critic_leave_the_policy_where_it_is_in_spite_of_its_momentum() -> None:
    policy = apart()
    rollout = fixed_rollout(policy, gamma=0.9)
    optimizer = torch.optim.AdamW(policy.parameters(), 0.01)
    runtime = Runtime(RuntimeConfig(device="cpu"), 0)
    update(policy, rollout, PPO, optimizer, runtime, UpdateConfig())  # momentum
    before = weights(policy)
    update(policy, rollout, PPO, optimizer, runtime, UpdateConfig(critic_epochs=3), critic_only=True)
    assert moved(policy, before) == {"own.weight"}


def test_a_critic_that_is_not_apart_is_not_trained_alone() -> None:
    shared = CategoricalPolicy(ToyPolicyConfig(critic=True))
    with pytest.raises(ValueError, match="no critic apart"):
        trainer(shared, critic_warmup=1).step()
    grpo = Algorithm(GroupRelative(), PPOClip(), TokenMean())
    parts = Parts(apart(), ToyCollector(RightActions(), ToyRollout()), ToyEvaluator(), grpo)
    runtime = Runtime(RuntimeConfig(device="cpu"), 0)
    with pytest.raises(ValueError, match="the algorithm has no value_loss"):
        Trainer(parts, TrainConfig(critic_warmup=1), runtime).step()


def updated(max_kl: float | None) -> dict[str, float]:
    """Metrics of six epochs, and how many steps were taken."""
    policy, count = apart(), [0]
    rollout = fixed_rollout(policy, gamma=0.9)
    optimizer = torch.optim.SGD(policy.parameters(), 1.0)
    optimizer.register_step_post_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    config = UpdateConfig(epochs=6, max_kl=max_kl, max_grad_norm=1e9)
    metrics = update(policy, rollout, PPO, optimizer, Runtime(RuntimeConfig(device="cpu"), 0), config)
    return {**metrics, "steps": float(count[0])}


def test_epochs_end_before_the_step_that_follows_too_large_a_kl() -> None:
    free = updated(None)
    assert free["steps"] == 6
    assert "update/stopped_by_kl" not in free
    bound = updated(free["update/approx_kl"] / 2)
    assert 1 <= bound["steps"] < 6
    assert bound["update/stopped_by_kl"] == 1.0
    loose = updated(1e6)
    assert loose["steps"] == 6
    assert loose["update/stopped_by_kl"] == 0.0


def test_evaluations_between_may_be_cheaper_and_the_last_is_whole() -> None:
    evaluator = Cheaper()
    summary = trainer(apart(), evaluator).fit()
    assert evaluator.calls == ["whole", "between", "between", "whole"]
    assert summary["eval_after"]["accuracy"]["n"] == 100  # type: ignore[index]


def test_seconds_of_other_processes_count_as_training() -> None:
    summary = trainer(apart()).fit()
    assert 15.0 <= float(str(summary["cpu_s"])) < 30.0


@pytest.mark.parametrize("fields", [{"critic_lr": 0.0}, {"critic_warmup": -1}])
def test_bad_settings_of_a_critic_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        TrainConfig(**fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="critic_epochs is -1"):
        UpdateConfig(critic_epochs=-1)
    with pytest.raises(ValueError, match="max_kl is 0"):
        UpdateConfig(max_kl=0.0)


# ---- a critic that classifies -----------------------------------------------------------------------------


def test_hl_gauss_targets_are_shares_of_a_normal() -> None:
    """Five bins of width 0.2, a return of 0.5: symmetric, of the cumulative normal, and the mean is the return."""
    bins = Bins(0.0, 1.0, 5)
    target = bins.targets(torch.tensor([0.5], dtype=torch.float64), 0.15)
    normal = torch.distributions.Normal(torch.tensor(0.5, dtype=torch.float64), 0.15)
    edges = torch.linspace(0, 1, 6, dtype=torch.float64)
    shares = normal.cdf(edges[1:]) - normal.cdf(edges[:-1])
    torch.testing.assert_close(target[0], shares / shares.sum())
    torch.testing.assert_close(bins.values(target.log()), torch.tensor([0.5], dtype=torch.float64))
    beyond = bins.targets(torch.tensor([7.0, 1.0]), 0.15)
    torch.testing.assert_close(beyond[0], beyond[1])


def test_hl_gauss_learns_returns_and_its_gradient_is_bounded() -> None:
    bins = Bins(-1.0, 1.0, 21)
    returns = torch.tensor([[-0.7, 0.0, 0.4, 0.9]])
    logits = torch.zeros(1, 4, 21, requires_grad=True)
    batch = replace(batch_of(torch.zeros(1, 4), torch.zeros(1, 4)), returns=returns)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(300):
        error, stats = HLGauss(coef=1.0)(Evaluation(torch.zeros(1, 4), value_logits=logits, bins=bins), batch)
        optimizer.zero_grad()
        error.sum().backward()
        assert logits.grad is not None
        assert float(logits.grad.abs().sum(-1).max()) <= 2.0  # a difference of two distributions
        optimizer.step()
    torch.testing.assert_close(bins.values(logits.detach()), returns, atol=0.02, rtol=0)
    assert float(stats["value_error"].max()) < 1e-3
    with pytest.raises(ValueError, match=r"policy\.critic\.bins"):
        HLGauss()(Evaluation(torch.zeros(1, 4)), batch)


def test_a_critic_with_bins_says_the_middle_of_their_range_first() -> None:
    critic = make_critic(CriticConfig((4,), Bins(0.0, 3.0, 6)), 2, None)
    assert critic is not None
    worth = critic.worth(torch.randn(5, 2))
    assert worth.values is not None
    torch.testing.assert_close(worth.values, torch.full((5,), 1.5))
    assert worth.logits is not None
    assert worth.logits.shape == (5, 6)
    with pytest.raises(ValueError, match="give low < high"):
        Bins(1.0, 1.0)
