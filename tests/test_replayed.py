"""Trajectories of an older policy in a rollout: they bring their credit, stand in no statistic and leave parity alone."""

from __future__ import annotations

import pytest
import torch

from mmrl.advantages import GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.batching import UpdateConfig
from mmrl.metrics import rollout_metrics
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.surrogates import CISPO, PPOClip, Reinforce
from mmrl.types import Rollout
from mmrl.update import make_plan, update
from mmrl.value_loss import ValueRegression
from tests.toy import CategoricalPolicy, ToyPolicyConfig, fixed_rollout

RUNTIME = Runtime(RuntimeConfig(device="cpu"), 0)
TRUNCATED = CISPO(clip_low=1.0, clip_high=0.5)
GRPO = Algorithm(GroupRelative(), PPOClip(), TokenMean(), replayed=TRUNCATED)


def mixed() -> tuple[CategoricalPolicy, Rollout]:
    """Four groups of four; of the last group the first two rows are old: acted by a policy less sure of them."""
    policy = CategoricalPolicy(ToyPolicyConfig())
    rollout = fixed_rollout(policy)
    replayed = torch.zeros(len(rollout), dtype=torch.bool)
    replayed[12:14] = True
    logprobs = torch.where(replayed[:, None] & rollout.mask, rollout.logprobs - 1.0, rollout.logprobs)
    return policy, rollout.with_(replayed=replayed, logprobs=logprobs)


def test_they_bring_their_credit_and_leave_the_groups_of_others() -> None:
    _, rollout = mixed()
    credit = GRPO.assign(rollout)
    assert torch.equal(credit.advantages[12:14, 0], rollout.returns()[12:14])
    rest = rollout.returns()[14:16]
    centred = (rest - rest.mean()) / (rest.std() + 1e-4)
    assert torch.allclose(credit.advantages[14:16, 0], centred)
    without = GRPO.advantage(rollout.with_(replayed=None)).advantages
    assert torch.equal(credit.advantages[:12], without[:12])
    assert not torch.equal(credit.advantages[14:], without[14:])


def test_a_fresh_rollout_is_as_it_was() -> None:
    _, rollout = mixed()
    fresh = rollout.with_(replayed=torch.zeros(len(rollout), dtype=torch.bool))
    assert torch.equal(GRPO.assign(fresh).advantages, GRPO.advantage(rollout.with_(replayed=None)).advantages)


def test_parity_and_rewards_are_those_of_fresh_rows() -> None:
    policy, rollout = mixed()
    optimizer = torch.optim.SGD(policy.parameters(), 0.0)
    metrics = update(policy, rollout, GRPO, optimizer, RUNTIME, UpdateConfig())
    assert metrics["parity/logprob_diff_max"] < 1e-5
    assert metrics["update/approx_kl"] < 1e-9
    assert metrics["rollout/reward_mean"] == pytest.approx(float(rollout.returns()[~rollout.replayed].mean()))
    found = rollout_metrics(rollout.with_(rewards=torch.where(rollout.replayed[:, None], 9.0, rollout.rewards)))
    assert found["rollout/reward_mean"] == metrics["rollout/reward_mean"]


def test_their_ratio_is_truncated() -> None:
    """pi / pi_then is e where they are replayed: the gradient of such a row is 1.5 A grad log pi, of others A."""
    policy, rollout = mixed()
    rows = rollout.replayed
    only = rollout.with_(mask=rollout.mask & rows[:, None])

    def gradient(algorithm: Algorithm, of: Rollout) -> torch.Tensor:
        optimizer = torch.optim.SGD(policy.parameters(), 0.0)
        found: list[torch.Tensor] = []
        optimizer.register_step_pre_hook(
            lambda *_: found.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
        )
        update(policy, of, algorithm, optimizer, RUNTIME, UpdateConfig(max_grad_norm=1e9))
        return found[0]

    plain = Algorithm(GroupRelative(), Reinforce(), TokenMean(), replayed=Reinforce())
    assert torch.allclose(gradient(GRPO, only), 1.5 * gradient(plain, only), atol=1e-7)
    assert float(gradient(plain, only).abs().max()) > 1e-3


@pytest.mark.parametrize("micro_rows", [3, 5])
def test_they_do_not_depend_on_micro_rows(micro_rows: int) -> None:
    policy, rollout = mixed()
    start = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    found = []
    for rows in (64, micro_rows):
        policy.load_state_dict(start)
        config = UpdateConfig(micro_rows=rows, max_grad_norm=1e9)
        update(policy, rollout, GRPO, torch.optim.SGD(policy.parameters(), 1.0), RUNTIME, config)
        found.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_a_critic_has_no_targets_for_them() -> None:
    _, rollout = mixed()
    algorithm = Algorithm(GroupRelative(), PPOClip(), TokenMean(), value_loss=ValueRegression())
    with pytest.raises(ValueError, match=r"algorithm\.value_loss is set and the rollout has replayed"):
        make_plan(RUNTIME.gather(rollout), algorithm)
