"""Surrogates: the gradient table of the method cards, first-pass gradients (I3), clipping (I10)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from mmrl.aggregates import SequenceMean
from mmrl.algorithm import Surrogate
from mmrl.surrogates import CISPO, GSPO, PPOClip, Reinforce
from mmrl.types import Batch
from tests.toy import ToyTransitions

NAN = float("nan")
ALL = [Reinforce(), PPOClip(), PPOClip(0.2, 0.28, 3.0), GSPO(), CISPO()]
names = ["Reinforce", "PPOClip", "DualClip", "GSPO", "CISPO"]


def batch_of(old: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Batch:
    mask = torch.ones_like(old, dtype=torch.bool) if mask is None else mask
    blank = torch.zeros_like(old)
    return Batch(
        transitions=ToyTransitions(blank.long(), blank.long()),
        steps=torch.arange(old.shape[1]).expand(len(old), -1),
        old_logprobs=old,
        advantages=advantages,
        mask=mask,
        scale=mask.to(old.dtype),
        weights=torch.ones_like(old),
        group_ids=torch.arange(len(old)),
    )


def gradient(surrogate: Surrogate, logprobs: Tensor, batch: Batch, scale: Tensor | None = None) -> Tensor:
    leaf = logprobs.clone().requires_grad_()
    loss, _ = surrogate(leaf, batch)
    torch.where(batch.mask, loss * (1.0 if scale is None else scale), 0.0).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def one(surrogate: Surrogate, advantage: float, ratio: float) -> float:
    """dL / dlog pi of a single decision."""
    old = torch.full((1, 1), -1.0, dtype=torch.float64)
    batch = batch_of(old, torch.full_like(old, advantage))
    return float(gradient(surrogate, old + math.log(ratio), batch))


@pytest.mark.parametrize(
    ("advantage", "ratio", "wanted"),
    [
        (1.0, 1.3, 0.0), (1.0, 0.5, -0.5), (-1.0, 0.5, 0.0), (-1.0, 1.3, 1.3),  # the four sides of the band
        (1.0, 1.1, -1.1), (-1.0, 0.9, 0.9), (1.0, 1.0, -1.0), (-1.0, 1.0, 1.0), (2.0, 0.5, -1.0), (0.0, 1.3, 0.0),
    ],
)  # fmt: skip
def test_ppo_gradient_table(advantage: float, ratio: float, wanted: float) -> None:
    assert one(PPOClip(0.2, 0.2), advantage, ratio) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("advantage", "ratio", "wanted"), [(-1.0, 4.0, 0.0), (-1.0, 2.9, 2.9), (1.0, 4.0, 0.0), (1.0, 0.1, -0.1)]
)
def test_dual_clip_only_stops_negative_advantages_beyond_c(advantage: float, ratio: float, wanted: float) -> None:
    assert one(PPOClip(0.2, 0.2, dual_clip=3.0), advantage, ratio) == pytest.approx(wanted, abs=1e-12)
    assert one(PPOClip(0.2, 0.2), -1.0, 4.0) == pytest.approx(4.0)


def test_clip_higher_moves_the_upper_bound_only() -> None:
    higher = PPOClip(0.2, 0.28)
    assert one(higher, 1.0, 1.25) == pytest.approx(-1.25)
    assert one(higher, 1.0, 1.29) == 0.0
    assert one(higher, -1.0, 0.79) == 0.0


def test_ppo_values_and_clip_fractions() -> None:
    old = torch.zeros(1, 4)
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    ratio = torch.tensor([[1.3, 0.5, 0.5, 1.3]])
    loss, stats = PPOClip()(ratio.log(), batch_of(old, advantages))
    torch.testing.assert_close(loss, torch.tensor([[-1.2, -0.5, 0.8, 1.3]]))
    assert stats["clip_frac_high"].tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert stats["clip_frac_low"].tolist() == [[0.0, 0.0, 1.0, 0.0]]


def test_ppo_far_from_the_old_policy_stays_finite() -> None:
    loss, _ = PPOClip()(torch.zeros(1, 2), batch_of(torch.tensor([[-1e4, 1e4]]), torch.tensor([[-1.0, -1.0]])))
    assert bool(torch.isfinite(loss).all())


@pytest.mark.parametrize("surrogate", ALL, ids=names)
def test_first_pass_gradient_is_minus_advantage(surrogate: Surrogate) -> None:
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(3, 5, generator=generator, dtype=torch.float64)
    advantages = torch.randn(3, 1, generator=generator, dtype=torch.float64).expand(3, 5)
    batch = batch_of(old, advantages)
    torch.testing.assert_close(gradient(surrogate, old, batch), -advantages, rtol=1e-12, atol=0)
    _, stats = surrogate(old, batch)
    assert all(float(values.sum()) == 0.0 for name, values in stats.items() if name.startswith("clip_frac"))


def test_gspo_value_and_gradient_are_the_sequence_form() -> None:
    """Log-ratios (.2, -.1, .2): s = e^.1 = 1.10517; with A = 1 the loss is -s and dL/dlog pi_t = -s / 3."""
    shift = torch.tensor([[0.2, -0.1, 0.2]], dtype=torch.float64)
    batch = batch_of(torch.zeros_like(shift), torch.ones_like(shift))
    wide = GSPO(0.5, 0.5)
    loss, _ = wide(shift, batch)
    torch.testing.assert_close(loss, torch.full_like(shift, -1.1051709180756477))
    scale = SequenceMean()(batch.mask).double()
    wanted = torch.full_like(shift, -1.1051709180756477 / 3)
    torch.testing.assert_close(gradient(wide, shift, batch, scale), wanted, rtol=1e-6, atol=0)


def test_gspo_clips_whole_trajectories() -> None:
    shift = torch.tensor([[0.02, -0.01, 0.02], [0.0001, 0.0, 0.0]], dtype=torch.float64)
    up = batch_of(torch.zeros_like(shift), torch.ones_like(shift))
    found = gradient(GSPO(), shift, up)
    assert found[0].tolist() == [0.0, 0.0, 0.0]
    assert bool((found[1] != 0).all())
    down = replace(up, advantages=-up.advantages)
    assert bool((gradient(GSPO(), shift, down) != 0).all())


def test_gspo_counts_only_masked_in_decisions() -> None:
    shift = torch.tensor([[0.2, 0.2, 5.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    batch = batch_of(torch.zeros_like(shift), torch.ones_like(shift), mask)
    loss, _ = GSPO(0.5, 0.5)(shift, batch)
    torch.testing.assert_close(loss[0, :2], torch.full((2,), -math.exp(0.2), dtype=torch.float64))


@pytest.mark.parametrize(
    ("advantage", "ratio", "wanted"), [(-1.0, 5.0, 1.28), (1.0, 5.0, -1.28), (1.0, 0.5, -0.5), (1.0, 1.1, -1.1)]
)
def test_cispo_keeps_a_capped_gradient(advantage: float, ratio: float, wanted: float) -> None:
    assert one(CISPO(1.0, 0.28), advantage, ratio) == pytest.approx(wanted, rel=1e-12)


def test_cispo_lower_cap() -> None:
    assert one(CISPO(0.2, 0.2), 1.0, 0.5) == pytest.approx(-0.8)


@pytest.mark.parametrize("surrogate", ALL, ids=names)
def test_masked_garbage_changes_nothing(surrogate: Surrogate) -> None:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(4, 6, generator=generator) > 0.4
    old, moved, advantages = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    clean = batch_of(old, advantages.where(mask, 0.0), mask)
    dirty = replace(clean, old_logprobs=old.where(mask, NAN))
    wanted = gradient(surrogate, moved, clean)
    assert bool((wanted[~mask] == 0).all())
    assert bool((wanted[mask] != 0).any())
    if isinstance(surrogate, Reinforce | CISPO):  # these read log-probs bare: the update zeroes them (test_update)
        assert torch.equal(gradient(surrogate, moved, dirty), wanted)
    else:
        assert torch.equal(gradient(surrogate, moved.where(mask, NAN), dirty), wanted)


@pytest.mark.parametrize("surrogate", [Reinforce(), PPOClip(), PPOClip(0.2, 0.28, 3.0)], ids=names[:3])
def test_gradients_match_finite_differences(surrogate: Surrogate) -> None:
    generator = torch.Generator().manual_seed(2)
    old, advantages = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    moved = old + 0.6 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    batch = batch_of(old, advantages)

    def loss(logprobs: Tensor) -> Tensor:
        return surrogate(logprobs, batch)[0].sum()

    assert torch.autograd.gradcheck(loss, (moved.requires_grad_(),), eps=1e-7, atol=1e-6)


def test_gspo_gradient_matches_finite_differences_of_the_sequence_form() -> None:
    """The token form holds a stop-gradient, so the differences are those of the sequence objective."""
    generator = torch.Generator().manual_seed(3)
    moved = 0.3 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    advantages = torch.randn(3, 1, generator=generator, dtype=torch.float64)
    batch = batch_of(torch.zeros_like(moved), advantages.expand(3, 4))
    low, high = 0.05, 0.05

    def sequence_form(logprobs: Tensor) -> Tensor:
        ratio = logprobs.mean(-1, keepdim=True).exp()
        return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high)).mean()

    leaf = moved.clone().requires_grad_()
    sequence_form(leaf).backward()
    scale = SequenceMean()(batch.mask).double()
    torch.testing.assert_close(gradient(GSPO(low, high), moved, batch, scale), leaf.grad, rtol=1e-6, atol=1e-12)
    assert torch.autograd.gradcheck(sequence_form, (moved.requires_grad_(),), eps=1e-7, atol=1e-6)


@dataclass(frozen=True)
class Bad:
    arguments: dict[str, float]
    message: str


@pytest.mark.parametrize(
    "bad", [Bad({"clip_low": -0.1}, "give 0 or more"), Bad({"dual_clip": 1.1}, "give more than 1")], ids=str
)
def test_bad_bounds_are_refused(bad: Bad) -> None:
    with pytest.raises(ValueError, match=bad.message):
        PPOClip(**bad.arguments)
