"""Surrogates beside PPO's, and objectives of whole groups: the numbers of their papers and of their authors' code."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmrl.advantages import GroupRelative
from mmrl.aggregates import ConstantLength, SequenceMean, TokenMean
from mmrl.algorithm import Algorithm
from mmrl.surrogates import AIPO, CPL, DPO, GPPO, PACS, ROVER, ALoL, Importance, PPOClip, PreClip, Reinforce
from mmrl.surrogates.mean_logprob import MeanLogProb
from mmrl.types import Batch
from tests.test_surrogates import batch_of, gradient, one
from tests.test_update import run, toy
from tests.toy import fixed_rollout

D = torch.float64


def group_of(logprobs: Tensor, rewards: list[float], **fields: object) -> Batch:
    """A batch of one group, whose old log-probs are `logprobs` (n, t)."""
    batch = batch_of(logprobs, torch.zeros_like(logprobs))
    told = {"rewards": torch.tensor(rewards, dtype=logprobs.dtype), "group_ids": torch.zeros(len(logprobs)).long()}
    return replace(batch, **(told | fields))  # type: ignore[arg-type]


# ---- ratios -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("surrogate", "advantage", "ratio", "wanted"),
    [
        (GPPO(), 1.0, 1.5, -1.28), (GPPO(), -1.0, 0.5, 0.2), (GPPO(), 1.0, 1.1, -1.1), (GPPO(), -1.0, 1.5, 1.5),
        (GPPO(keep_low=0.0), -1.0, 0.5, 0.0), (GPPO(dual_clip=3.0), -1.0, 4.0, 0.0), (GPPO(), -1.0, 5.0, 5.0),
        (GPPO(keep_low=0.0, keep_high=0.0), 1.0, 1.5, 0.0),
        (Importance(), 1.0, 5.0, -5.0), (Importance(), -1.0, 0.1, 0.1),
        (PreClip(), 1.0, 0.5, -0.5), (PreClip(), -1.0, 900.0, 900.0), (PreClip(), -1.0, 1100.0, 0.0),
        (PreClip(), 1.0, 1.3, 0.0), (PreClip(band=2.0), -1.0, 2.5, 0.0),
        (AIPO(4.0), 1.0, 5.0, -4.0), (AIPO(4.0), -1.0, 0.1, 0.1),
    ],
    ids=str,
)  # fmt: skip
def test_gradients_of_a_single_decision(surrogate: object, advantage: float, ratio: float, wanted: float) -> None:
    assert one(surrogate, advantage, ratio) == pytest.approx(wanted, abs=1e-9)  # type: ignore[arg-type]


def test_gppo_has_ppo_s_value_where_it_keeps_all() -> None:
    old = torch.zeros(1, 4)
    batch = batch_of(old, torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    moved = torch.tensor([[1.5, 0.5, 0.7, 1.5]]).log()
    found, _ = GPPO(0.2, 0.2, keep_low=1.0)(moved, batch)
    wanted, _ = PPOClip(0.2, 0.2)(moved, batch)
    torch.testing.assert_close(found, wanted)


def test_aipo_takes_the_sampler_s_log_probs_where_there_are_any() -> None:
    old = torch.full((1, 1), -1.0, dtype=D)
    batch = replace(batch_of(old, torch.ones_like(old)), behaviour_logprobs=old - math.log(2.0))
    assert float(gradient(AIPO(4.0), old, batch)) == pytest.approx(-2.0)


# ---- A-LoL ------------------------------------------------------------------------------------------------


def test_a_lol_of_the_card() -> None:
    """The ratio is e^1.2 = 3.32, clipped to 1.9: of A = .5 the gradient is -.95, of A = -.3 it is 0."""
    ref = torch.tensor([[-1.0, -1.0, -1.0]] * 2, dtype=D)
    moved = ref + torch.tensor([[0.4, 0.4, 0.4]] * 2, dtype=D)
    batch = replace(batch_of(ref, torch.tensor([[0.5], [-0.3]], dtype=D).expand(2, 3)), ref_logprobs=ref)
    assert gradient(ALoL(), moved, batch).tolist() == [[pytest.approx(-0.95)] * 3, [0.0] * 3]
    inside = ref + torch.tensor([[0.1, 0.1, 0.1]] * 2, dtype=D)
    assert gradient(ALoL(), inside, batch)[0].tolist() == [pytest.approx(-0.5 * math.exp(0.3))] * 3
    assert gradient(ALoL(clip=0.0), moved, batch)[0].tolist() == [pytest.approx(-0.5)] * 3
    assert float(ConstantLength(1)(batch.mask)[0, 0]) == 0.5  # a sum over decisions, a mean over trajectories


# ---- PACS -------------------------------------------------------------------------------------------------


def test_pacs_of_the_card() -> None:
    """n = 2, y = (1, 0), psi = 0: the loss is ln 2 and dL / dpsi = (-.5, .5), with a baseline that carries gradient."""
    old = torch.full((2, 3), -1.0, dtype=D)
    batch = group_of(old, [1.0, 0.0])
    loss, _ = PACS()(old, batch)
    torch.testing.assert_close(loss, torch.full((2, 3), math.log(2), dtype=D))
    scale = SequenceMean()(batch.mask).double()
    found = gradient(PACS(), old, batch, scale)
    torch.testing.assert_close(found, torch.tensor([[-0.5], [0.5]], dtype=D).expand(2, 3))


def test_pacs_weighs_classes() -> None:
    """One right of four: weights 2 and 2/3; a group of one class has weight 1."""
    old = torch.zeros(4, 1, dtype=D)
    loss, _ = PACS()(old, group_of(old, [1.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(loss[:, 0] / math.log(2), torch.tensor([2, 2 / 3, 2 / 3, 2 / 3], dtype=D))
    loss, _ = PACS()(old, group_of(old, [1.0] * 4))
    torch.testing.assert_close(loss[:, 0] / math.log(2), torch.ones(4, dtype=D))


def test_pacs_of_one_class_pulls_only_once_scores_differ() -> None:
    old = torch.zeros(3, 1, dtype=D)
    batch = group_of(old, [1.0, 1.0, 1.0])
    assert float(gradient(PACS(), old, batch).abs().sum()) < 1e-12
    moved = torch.tensor([[0.3], [0.0], [0.0]], dtype=D)
    assert float(gradient(PACS(), moved, batch).abs().sum()) > 1e-3


def test_pacs_s_score_is_that_of_the_formula() -> None:
    """Of two groups, with a mask: by loops."""
    generator = torch.Generator().manual_seed(0)
    moved = torch.randn(5, 4, generator=generator, dtype=D)
    mask = torch.rand(5, 4, generator=generator) > 0.3
    groups, rewards = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0], dtype=D)
    batch = replace(batch_of(torch.zeros_like(moved), moved, mask), group_ids=groups, rewards=rewards)
    loss, _ = PACS(beta=0.7)(moved, batch)
    psi = [0.7 * float(row[kept].sum()) for row, kept in zip(moved, mask, strict=True)]
    weights = [1.5, 0.75, 0.75, 1.0, 1.0]
    for i in range(5):
        others = [psi[j] for j in range(5) if groups[j] == groups[i] and j != i]
        s = psi[i] - sum(others) / len(others)
        wanted = weights[i] * (math.log1p(math.exp(-s)) if rewards[i] else math.log1p(math.exp(s)))
        assert float(loss[i, 0]) == pytest.approx(wanted)


# ---- ROVER ------------------------------------------------------------------------------------------------


def test_rover_starts_as_twice_reinforce() -> None:
    policy = toy()
    rollout = fixed_rollout(policy)
    centred = GroupRelative(normalise=False)
    (wanted,), _ = run(policy, rollout, Algorithm(centred, Reinforce(), TokenMean()))
    policy.report = (MeanLogProb(),)
    steps = torch.arange(rollout.mask.shape[1]).expand(len(rollout), -1)
    with torch.no_grad():
        stats = {**rollout.stats, **policy(rollout.transitions, steps).stats}
    (found,), _ = run(policy, rollout.with_(stats=stats), Algorithm(centred, ROVER(), TokenMean()))
    torch.testing.assert_close(found, 2 * wanted, rtol=1e-4, atol=1e-6)


def test_rover_bootstraps_from_the_next_living_decision() -> None:
    """Targets (A + rho du_1, A), the last of a masked row without a second term; no gradient through them."""
    old = torch.zeros(1, 3, dtype=D)
    mask = torch.tensor([[True, True, False]])
    now = torch.tensor([[5.0, -0.3, 7.0]], dtype=D, requires_grad=True)
    batch = replace(
        batch_of(old, torch.full_like(old, 0.5), mask), current={"mean_logprob": now}, stats={"mean_logprob": old - 0.5}
    )
    loss, _ = ROVER(rho=2.0)(torch.tensor([[0.1, 0.2, 0.0]], dtype=D, requires_grad=True), batch)
    torch.testing.assert_close(loss[0, :2], torch.tensor([(0.2 - 0.9) ** 2, (0.4 - 0.5) ** 2], dtype=D))
    loss.sum().backward()
    assert now.grad is None


def test_the_mean_log_prob_is_of_what_is_possible() -> None:
    log_softmax = torch.tensor([0.5, 0.5, 0.0]).log()
    assert float(MeanLogProb().of_categorical(log_softmax, torch.tensor(0))) == pytest.approx(math.log(0.5))


def test_acting_greedily_on_the_values_of_the_uniform_policy_is_optimal() -> None:
    """A tree of depth 2 whose leaf LL pays 1: ROVER's regression over all its paths converges to a policy that goes
    there, from Q(root) = (.5, 0) and Q(L) = (1, 0)."""
    root, nodes = torch.zeros(2, dtype=D), torch.zeros(2, 2, dtype=D)
    for _ in range(400):
        leaves = [z.clone().requires_grad_() for z in (root, nodes)]
        logs = [leaf.log_softmax(-1) for leaf in leaves]
        old = [leaf.detach().log_softmax(-1) for leaf in leaves]
        loss = torch.zeros((), dtype=D)
        for first in (0, 1):
            for second in (0, 1):
                reward = float(first == second == 0) - 0.25
                now = torch.stack([logs[0][first], logs[1][first, second]])[None]
                before = torch.stack([old[0][first], old[1][first, second]])[None]
                means = torch.stack([logs[0].mean(), logs[1][first].mean()])[None]
                batch = replace(
                    batch_of(before, torch.full_like(before, reward)),
                    current={"mean_logprob": means}, stats={"mean_logprob": means.detach()},
                )  # fmt: skip
                loss = loss + ROVER()(now, batch)[0].sum() / 4
        loss.backward()
        root, nodes = (leaf.detach() - 0.2 * leaf.grad for leaf in leaves)  # type: ignore[operator]
    assert root.argmax() == 0
    assert nodes[0].argmax() == 0
    assert float(root.softmax(-1)[0] * nodes[0].softmax(-1)[0]) > 0.8


# ---- CPL and DPO ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bias", "wanted"), [(1.0, 0.31326), (0.5, 0.69315)])
def test_cpl_of_the_card(bias: float, wanted: float) -> None:
    """S+ = -1 and S- = -2."""
    logprobs = torch.tensor([[-4.0, -6.0], [-10.0, -10.0]], dtype=D)
    loss, stats = CPL(alpha=0.1, bias=bias)(logprobs, group_of(logprobs, [1.0, 0.0]))
    torch.testing.assert_close(loss, torch.full((2, 2), wanted, dtype=D), atol=1e-5, rtol=0)
    assert stats["preferred"].tolist() == [[1.0, 1.0]] * 2


def test_dpo_is_cpl_with_a_reference_and_no_bias() -> None:
    ref = torch.tensor([[-1.0], [-2.0]], dtype=D)
    moved = ref + torch.tensor([[0.5], [-0.3]], dtype=D)
    batch = group_of(ref, [1.0, 0.0], ref_logprobs=ref)
    loss, _ = DPO(alpha=2.0)(moved, batch)
    wanted = -math.log(1 / (1 + math.exp(-2.0 * 0.8)))
    torch.testing.assert_close(loss, torch.full((2, 1), wanted, dtype=D))
    still = gradient(DPO(alpha=2.0), ref, batch, SequenceMean()(batch.mask).double())
    torch.testing.assert_close(still, torch.tensor([[-1.0], [1.0]], dtype=D))
    with pytest.raises(ValueError, match="give the trainer a reference policy"):
        DPO()(moved, replace(batch, ref_logprobs=None))


def test_pairs_are_of_one_group_and_of_different_rewards() -> None:
    """Groups (2, 1, 1) and (3): two pairs and none."""
    logprobs = torch.tensor([[-1.0], [-2.0], [-4.0], [-9.0]], dtype=D)
    batch = group_of(logprobs, [2.0, 1.0, 1.0, 3.0], group_ids=torch.tensor([0, 0, 0, 1]))
    loss, _ = CPL(alpha=1.0, bias=1.0)(logprobs, batch)
    wanted = (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(-3.0))) / 2
    torch.testing.assert_close(loss[:, 0], torch.tensor([wanted] * 3 + [0.0], dtype=D))


def test_whole_groups_must_fit_a_micro_batch() -> None:
    policy = toy()
    with pytest.raises(ValueError, match=r"PACS needs whole groups, here of 4: give at least as many"):
        run(policy, fixed_rollout(policy), Algorithm(GroupRelative(), PACS(), SequenceMean()), micro_rows=3)


@pytest.mark.parametrize("surrogate", [PACS(), CPL(alpha=1.0), DPO(alpha=1.0), Importance(), AIPO()], ids=str)
def test_gradients_match_finite_differences(surrogate: PACS | CPL | Importance) -> None:
    generator = torch.Generator().manual_seed(1)
    old = torch.randn(4, 3, generator=generator, dtype=D)
    moved = old + 0.1 * torch.randn(4, 3, generator=generator, dtype=D)
    batch = group_of(
        old, [1.0, 0.0, 0.0, 1.0], ref_logprobs=old - 0.2, advantages=torch.randn(4, 3, generator=generator)
    )
    if isinstance(surrogate, AIPO):  # its ratio is held: the gradient is that of a weighted likelihood
        weight = (moved - old).exp().clamp(max=4.0)
        torch.testing.assert_close(gradient(surrogate, moved, batch), -weight * batch.advantages)
        return
    assert torch.autograd.gradcheck(lambda x: surrogate(x, batch)[0].sum(), (moved.requires_grad_(),), atol=1e-6)
