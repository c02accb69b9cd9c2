"""KL estimators against the exact KL (I11), the entropy bonus, KL in the reward, and the critic's loss.

pi = (.7, .3), pi0 = (.5, .5): KL(pi || pi0) = .0822829, E k2 = .0787662; with respect to the first logit the
expected gradients are k1 0, k2 .177933 (that of the KL), k3 .2 (= pi - pi0, that of KL(pi0 || pi)).
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffusion.policy import DiffusionPolicy, PolicyConfig
from mmrl.advantages import GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.regularisers import K1, K2, K3, Entropy, ExactKL, K3StraightThrough, Pathwise
from mmrl.regularisers.kl import ReferenceKL
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.shapers import KLInReward
from mmrl.surrogates import Reinforce
from mmrl.trainer import Parts, TrainConfig, Trainer
from mmrl.types import Batch, Evaluation, Rollout
from mmrl.value_loss import ValueRegression
from tests.toy import RightActions, ToyCollector, ToyEvaluator, ToyPolicyConfig, ToyRollout, ToyTransitions

NAN = float("nan")
LOGITS = torch.tensor([math.log(0.7), math.log(0.3)], dtype=torch.float64)
REFERENCE = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
KL, TRUE_GRADIENT = 0.0822829, 0.177933


def batch_of(ref: Tensor | None, mask: Tensor, **fields: Tensor) -> Batch:
    blank = torch.zeros(mask.shape, dtype=torch.float64)
    return Batch(
        transitions=ToyTransitions(blank.long(), blank.long()),
        steps=torch.arange(mask.shape[1]).expand(mask.shape),
        old_logprobs=blank,
        advantages=blank,
        mask=mask,
        scale=blank + 1,
        weights=blank + 1,
        group_ids=torch.arange(len(mask)),
        ref_logprobs=ref,
        **fields,
    )


def expected(part: ReferenceKL) -> tuple[float, float]:
    """Value, and gradient with respect to the first logit, over both actions weighted by pi."""
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    batch = batch_of(REFERENCE[None], torch.ones(1, 2, dtype=torch.bool))
    penalty, stats = part(Evaluation(logprobs[None]), batch)
    mean = (penalty[0] * logprobs.detach().exp()).sum()
    mean.backward()
    assert logits.grad is not None
    torch.testing.assert_close(stats["kl"] * part.coef, penalty.detach())
    return float(mean.detach()), float(logits.grad[0])


def test_exact_kl_and_its_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    kl = (logprobs.exp() * (logprobs - REFERENCE)).sum()
    kl.backward()
    assert float(kl.detach()) == pytest.approx(KL, abs=1e-7)
    assert logits.grad is not None
    assert float(logits.grad[0]) == pytest.approx(TRUE_GRADIENT, abs=1e-6)


@pytest.mark.parametrize(
    ("part", "value", "slope"),
    [
        (K1(1.0), KL, 0.0),
        (K2(1.0), 0.0787662, TRUE_GRADIENT),
        (K3(1.0), KL, 0.2),
        (K3StraightThrough(1.0), KL, TRUE_GRADIENT),
        (K2(0.04), 0.04 * 0.0787662, 0.04 * TRUE_GRADIENT),
    ],
    ids=["K1", "K2", "K3", "K3StraightThrough", "coef"],
)
def test_expected_value_and_gradient(part: ReferenceKL, value: float, slope: float) -> None:
    found = expected(part)
    assert found[0] == pytest.approx(value, abs=1e-6)
    assert found[1] == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize(("part", "wanted"), [(K1(1.0), KL), (K2(1.0), 0.0787662), (K3(1.0), KL)], ids=str)
def test_monte_carlo_mean(part: ReferenceKL, wanted: float) -> None:
    generator = torch.Generator().manual_seed(0)
    actions = torch.multinomial(LOGITS.exp(), 200_000, replacement=True, generator=generator)[None]
    batch = batch_of(REFERENCE[actions], torch.ones_like(actions, dtype=torch.bool))
    penalty, _ = part(Evaluation(LOGITS[actions]), batch)
    error = float(penalty.std()) / 200_000**0.5
    assert abs(float(penalty.mean()) - wanted) < 4 * error + 1e-4


@pytest.mark.parametrize("part", [K1(), K2(), K3(), K3StraightThrough()], ids=lambda p: type(p).__name__)
def test_kl_of_the_reference_itself_is_exactly_0(part: ReferenceKL) -> None:
    batch = batch_of(LOGITS[None], torch.ones(1, 2, dtype=torch.bool))
    assert part(Evaluation(LOGITS[None]), batch)[0].tolist() == [[0.0, 0.0]]


def test_k3_is_never_negative() -> None:
    ratios = torch.linspace(-30, 30, 101)[None]
    penalty, _ = K3(1.0)(Evaluation(ratios), batch_of(torch.zeros(1, 101), torch.ones(1, 101, dtype=torch.bool)))
    assert bool((penalty >= 0).all())
    assert bool(torch.isfinite(penalty).all())


@pytest.mark.parametrize("part", [K1(), K2(), K3(), K3StraightThrough()], ids=lambda p: type(p).__name__)
def test_masked_garbage_has_no_gradient(part: ReferenceKL) -> None:
    mask = torch.tensor([[True, False]])
    leaf = torch.tensor([[-0.5, NAN]], requires_grad=True)
    penalty, _ = part(Evaluation(leaf), batch_of(torch.tensor([[-1.0, NAN]]), mask))
    torch.where(mask, penalty, 0.0).sum().backward()
    assert leaf.grad is not None
    assert float(leaf.grad[0, 1]) == 0.0
    assert float(leaf.grad[0, 0]) != 0.0


def test_kl_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="give the trainer a reference"):
        K3()(Evaluation(torch.zeros(1, 1)), batch_of(None, torch.ones(1, 1, dtype=torch.bool)))


class OneStep(DiffusionPolicy):
    """Only what divergence reads of a diffusion policy."""

    def __init__(self, reduction: str) -> None:
        torch.nn.Module.__init__(self)
        self.config = PolicyConfig("none", logprob_reduction=reduction)  # type: ignore[arg-type]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_exact_kl_of_gaussians(reduction: str) -> None:
    """Value against torch.distributions, gradient against finite differences, both in float64."""
    generator = torch.Generator().manual_seed(0)
    means, others = (torch.randn(2, 3, 4, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    stds = torch.rand(2, 3, 1, 1, dtype=torch.float64, generator=generator) + 0.5
    stds[1, 2] = 0.0  # a step without noise is no decision
    policy, batch = OneStep(reduction), batch_of(None, torch.ones(2, 3, dtype=torch.bool))

    def penalty(found: Tensor) -> Tensor:
        divergence = policy.divergence(found, others, stds)
        value, stats = ExactKL(0.3)(Evaluation(divergence, exact_kl=divergence), batch)
        torch.testing.assert_close(0.3 * stats["kl"], value.detach())
        assert not stats["kl"].requires_grad
        return value

    normal = torch.distributions.Normal
    wide = stds.clamp(min=0.1).expand_as(means)
    wanted = torch.distributions.kl_divergence(normal(means, wide), normal(others, wide)).flatten(2)
    wanted = 0.3 * (wanted.sum(-1) if reduction == "sum" else wanted.mean(-1))
    wanted[1, 2] = 0.0
    torch.testing.assert_close(penalty(means), wanted, rtol=1e-12, atol=0)
    assert bool((penalty(others) == 0).all())
    leaf = means.clone().requires_grad_()
    assert torch.autograd.gradcheck(penalty, (leaf,), eps=1e-6, atol=1e-8)
    (gradient,) = torch.autograd.grad(penalty(leaf).sum(), leaf)
    assert float(gradient[1, 2].abs().max()) == 0.0
    assert float(gradient[0].abs().min()) > 0


def test_exact_kl_and_pathwise_need_a_policy_that_reports_them() -> None:
    batch = batch_of(None, torch.ones(1, 1, dtype=torch.bool))
    for part, name in ((ExactKL(), "knows its KL in closed form"), (Pathwise(), "reports outcome rewards")):
        with pytest.raises(ValueError, match=f"needs a policy that {name}, and this one does not") as found:
            part(Evaluation(torch.zeros(1, 1)), batch)
        assert "\n" not in str(found.value)
    algorithm = Algorithm(GroupRelative(), Reinforce(), TokenMean(), regularisers=(ExactKL(),))
    assert (algorithm.needs_exact_kl, algorithm.needs_outcome, algorithm.needs_reference) == (True, False, False)
    parts = Parts(ToyPolicyConfig().make(), ToyCollector(RightActions(), ToyRollout()), ToyEvaluator(), algorithm)
    with pytest.raises(ValueError, match="a KL to the reference and the domain gave no reference policy"):
        Trainer(parts, TrainConfig(), Runtime(RuntimeConfig(device="cpu"), 0))


def test_pathwise_raises_the_reward_of_the_outcome() -> None:
    rewards = torch.tensor([[0.0, 2.0], [0.0, -3.0]], requires_grad=True)
    batch = batch_of(None, torch.ones(2, 2, dtype=torch.bool))
    penalty, stats = Pathwise(0.5)(Evaluation(torch.zeros(2, 2), outcome_rewards=rewards), batch)
    assert penalty.tolist() == [[0.0, -1.0], [0.0, 1.5]]
    assert stats["outcome_reward"].tolist() == rewards.tolist()
    assert not stats["outcome_reward"].requires_grad
    (gradient,) = torch.autograd.grad(penalty.sum(), rewards)
    assert bool((gradient == -0.5).all())


def test_entropy_bonus_raises_entropy() -> None:
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum()[None, None]
    batch = batch_of(None, torch.ones(1, 1, dtype=torch.bool))
    penalty, _ = Entropy(0.5)(Evaluation(logprobs[None, :1], entropy), batch)
    assert float(penalty) == pytest.approx(-0.5 * 0.6108643, abs=1e-6)
    penalty.sum().backward()
    assert logits.grad is not None
    assert float(logits.grad[0]) > 0  # descent lowers the likelier logit
    with pytest.raises(ValueError, match="policy that reports entropy"):
        Entropy()(Evaluation(logprobs), batch)


def rollout_with(ref: Tensor | None) -> Rollout:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    alive = torch.tensor([[True, True, True], [True, False, False]])
    blank = torch.zeros(2, 3)
    return Rollout(
        transitions=ToyTransitions(blank.long(), blank.long()),
        logprobs=torch.tensor([[-1.0, -2.0, NAN], [-0.5, NAN, NAN]]),
        mask=mask,
        alive=alive,
        rewards=torch.tensor([[0.0, 0.0, 1.0], [1.0, NAN, NAN]]),
        discounts=blank + 1,
        group_ids=torch.arange(2),
        ref_logprobs=ref,
    )


def test_kl_in_reward_costs_each_trained_decision() -> None:
    ref = torch.tensor([[-1.5, -2.0, NAN], [-0.25, NAN, NAN]])
    shaped = KLInReward(0.1)(rollout_with(ref))
    torch.testing.assert_close(shaped.rewards[0], torch.tensor([-0.05, 0.0, 1.0]))
    assert float(shaped.rewards[1, 0]) == pytest.approx(1.025)
    with pytest.raises(ValueError, match="give the trainer a reference"):
        KLInReward()(rollout_with(None))


def test_kl_in_reward_gives_the_reverse_kl_gradient() -> None:
    """With R = 0 the score-function gradient of the shaped reward is that of -coef KL(pi || pi0)."""
    logits = LOGITS.clone().requires_grad_()
    blank, ones = torch.zeros(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.bool)
    logprobs = logits.log_softmax(-1)
    rollout = Rollout(
        ToyTransitions(blank.long(), blank.long()), logprobs.detach()[:, None], ones, ones, blank, blank + 1,
        torch.zeros(2, dtype=torch.long), ref_logprobs=REFERENCE[:, None],
    )  # fmt: skip
    returns = KLInReward(1.0)(rollout).returns()
    (-(logprobs.detach().exp() * returns * logprobs).sum()).backward()
    assert logits.grad is not None
    assert float(logits.grad[0]) == pytest.approx(TRUE_GRADIENT, abs=1e-6)


# ---- the critic's loss -----------------------------------------------------------------------------------


def values_batch(old: list[float], returns: list[float], mask: list[bool] | None = None) -> Batch:
    shown = torch.tensor([mask or [True] * len(old)])
    return batch_of(None, shown, returns=torch.tensor([returns]), old_values=torch.tensor([old]))


def test_value_regression() -> None:
    batch = values_batch([0.0, 0.0], [1.0, -2.0])
    loss, stats = ValueRegression(coef=0.5)(Evaluation(torch.zeros(1, 2), values=torch.zeros(1, 2)), batch)
    assert loss.tolist() == [[0.25, 1.0]]
    assert stats["value_error"].tolist() == [[1.0, 4.0]]
    huber, _ = ValueRegression(1.0, huber=1.0)(Evaluation(torch.zeros(1, 2), values=torch.zeros(1, 2)), batch)
    assert huber.tolist() == [[0.5, 1.5]]


def test_value_clip_stops_values_that_ran_ahead() -> None:
    values = torch.tensor([[0.5, 0.05, -0.5]], requires_grad=True)
    batch = values_batch([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    loss, _ = ValueRegression(1.0, clip=0.1)(Evaluation(torch.zeros(1, 3), values=values), batch)
    torch.testing.assert_close(loss, torch.tensor([[0.405, 0.45125, 1.125]]))
    loss.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, -0.95, -1.5]]))


@pytest.mark.parametrize("part", [ValueRegression(), ValueRegression(huber=1.0), ValueRegression(clip=0.1)], ids=str)
def test_values_of_dead_decisions_have_no_gradient(part: ValueRegression) -> None:
    values = torch.tensor([[0.5, NAN]], requires_grad=True)
    batch = values_batch([0.4, 0.0], [1.0, 0.0], [True, False])
    loss, _ = part(Evaluation(torch.zeros(1, 2), values=values), batch)
    torch.where(batch.mask, loss, 0.0).sum().backward()
    assert values.grad is not None
    assert float(values.grad[0, 1]) == 0.0
    assert float(values.grad[0, 0]) != 0.0


def test_value_loss_needs_values_and_returns() -> None:
    batch = values_batch([0.0], [1.0])
    with pytest.raises(ValueError, match="policy with values"):
        ValueRegression()(Evaluation(torch.zeros(1, 1)), batch)
    with pytest.raises(ValueError, match="advantage with returns"):
        ValueRegression()(Evaluation(torch.zeros(1, 1), values=torch.zeros(1, 1)), replace(batch, returns=None))
