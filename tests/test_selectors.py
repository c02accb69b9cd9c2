"""Selectors and penalties: the numbers of their papers and of their authors' code, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmrl.advantages import GroupRelative
from mmrl.aggregates import SequenceMean, TokenMean
from mmrl.algorithm import Algorithm, Credit, Regulariser, Selector
from mmrl.ranking import Decisions, covariance, quantile
from mmrl.regularisers import KLCov, LpReg, Siren
from mmrl.regularisers.nucleus_entropy import NucleusEntropy
from mmrl.regularisers.proxy_gain import ProxyGain
from mmrl.selectors import (
    ClipCov,
    DropMastered,
    DropOutliers,
    ForkingTokens,
    IcePop,
    Steer,
    SteerExponential,
    TruncatedImportance,
)
from mmrl.selectors.entropy_slope import EntropySlope
from mmrl.shapers import AdaptiveKLInReward
from mmrl.statistics import Entropy
from mmrl.surrogates import Importance, PPOClip
from mmrl.types import Evaluation, Rollout
from tests.test_surrogates import batch_of
from tests.test_update import run, toy
from tests.toy import ToyTransitions, fixed_rollout

D = torch.float64


def rollout_of(logprobs: Tensor, rewards: Tensor | None = None, mask: Tensor | None = None, **stats: Tensor) -> Rollout:
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask
    laid = torch.zeros_like(logprobs)
    if rewards is not None:
        laid[:, 0] = rewards
    blank = torch.zeros_like(logprobs, dtype=torch.long)
    return Rollout(
        ToyTransitions(blank, blank), logprobs, mask, mask, laid, torch.ones_like(laid), torch.arange(len(laid)), stats=stats
    )  # fmt: skip


def planned(selector: Selector, logprobs: Tensor, advantages: Tensor, **stats: Tensor) -> Tensor:
    return selector.plan(rollout_of(logprobs, **stats), Credit(advantages))


# ---- Clip-Cov and KL-Cov ----------------------------------------------------------------------------------

ADVANTAGES, LOGPROBS = torch.tensor([[1.0, -1.0]]), torch.tensor([[-0.1, -2.3]])


def test_the_covariance_of_the_card() -> None:
    """Mean log pi is -1.2, so that both products are 1.1."""
    seen = Decisions.of_rollout(rollout_of(LOGPROBS), Credit(ADVANTAGES))
    torch.testing.assert_close(covariance(seen, within_step=False), torch.tensor([[1.1, 1.1]], dtype=D))
    assert covariance(seen, within_step=True).tolist() == [[0.0, 0.0]]  # each is alone at its step


def test_within_step_compares_what_is_at_the_same_place() -> None:
    """Two trajectories; the second step has another level, which plain centring takes for a covariance."""
    logprobs = torch.tensor([[-1.0, -101.0], [-3.0, -103.0]])
    seen = Decisions.of_rollout(rollout_of(logprobs), Credit(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])))
    assert covariance(seen, within_step=True).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert covariance(seen, within_step=False).tolist() == [[51.0, -49.0], [-49.0, 51.0]]


def test_clip_cov_drops_one_of_two() -> None:
    weights = planned(ClipCov(share=0.5), LOGPROBS, ADVANTAGES)
    assert sorted(weights.flatten().tolist()) == [0.0, 1.0]
    assert planned(ClipCov(share=0.5, low=1.2), LOGPROBS, ADVANTAGES).tolist() == [[1.0, 1.0]]
    assert planned(ClipCov(share=1.0), LOGPROBS, ADVANTAGES).tolist() == [[0.0, 0.0]]


def test_clip_cov_draws_anew_for_another_rollout() -> None:
    drawn = [planned(ClipCov(share=0.5), LOGPROBS + 1e-4 * shift, ADVANTAGES).tolist() for shift in range(30)]
    assert len({str(weights) for weights in drawn}) == 2


def test_clip_cov_per_micro_batch_leaves_what_the_surrogate_clips() -> None:
    """r = 2.5 with A = 1 is above 1 + clip_high: only the other can be dropped."""
    old = LOGPROBS - torch.tensor([[math.log(2.5), 0.0]])
    batch = replace(batch_of(old, ADVANTAGES), rewards=torch.zeros(1))
    often = ClipCov(share=1.0, per_micro_batch=True)
    assert often.again(LOGPROBS, batch).tolist() == [[1.0, 0.0]]
    assert often.plan(rollout_of(LOGPROBS), Credit(ADVANTAGES)).tolist() == [[1.0, 1.0]]
    assert replace(often, clip_high=2.0).again(LOGPROBS, batch).tolist() == [[0.0, 0.0]]


def test_kl_cov_holds_the_largest_and_only_once_the_policy_has_moved() -> None:
    """c = (0.5 x 2, -0.5 x -0.5, ...): the first of four has the largest."""
    logprobs, advantages = torch.tensor([[-0.1, -1.0, -1.0, -2.3]]), torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    part = KLCov(coef=3.0, share=0.25)
    notes = part.plan(rollout_of(logprobs), Credit(advantages))
    assert notes["KLCov"].tolist() == [[True, False, False, False]]
    batch = replace(batch_of(logprobs, advantages), stats=notes)
    moved = (logprobs + 0.2).requires_grad_()
    penalty, stats = part(Evaluation(moved), batch)
    torch.testing.assert_close(penalty, torch.tensor([[0.6, 0.0, 0.0, 0.0]]))
    assert stats["kl_cov_share"].mean() == 0.25
    penalty.sum().backward()
    assert moved.grad is not None
    assert moved.grad.tolist() == [[3.0, 0.0, 0.0, 0.0]]
    still = logprobs.clone().requires_grad_()
    part(Evaluation(still), batch)[0].sum().backward()
    assert still.grad is not None
    assert still.grad.abs().sum() == 0


class Everywhere(KLCov):
    @property
    def only_where(self) -> str | None:
        return None


def test_rows_that_a_penalty_holds_are_not_skipped_with_those_of_no_advantage() -> None:
    from tests.test_parts import acted, composed

    policy, part = toy(), KLCov(share=0.5)
    rollout = acted(policy, composed(part))
    decided = GroupRelative()(rollout).advantages.abs().sum(-1) == 0
    chosen = part.plan(rollout, GroupRelative()(rollout))["KLCov"]
    assert 0 < int(chosen[decided].sum()) < int(rollout.mask[decided].sum())
    (found,), metrics = run(policy, rollout, composed(part))
    (wanted,), everywhere = run(policy, rollout, composed(Everywhere(share=0.5)))
    torch.testing.assert_close(found, wanted)
    assert metrics["update/active_rows"] < everywhere["update/active_rows"] == 1.0


def test_entropy_falls_by_the_covariance() -> None:
    """Natural gradient step dz = eta A: dH = -eta Cov(log pi, A), Clip-Cov's reason, by finite differences."""
    z, advantages, eta = torch.tensor([0.3, -0.2, 1.0], dtype=D), torch.tensor([1.0, -0.5, 0.2], dtype=D), 1e-6

    def entropy(logits: Tensor) -> Tensor:
        return Entropy().of_categorical(logits.log_softmax(-1), torch.tensor(0))

    p = z.softmax(-1)
    logp = p.log()
    cov = (p * (logp - (p * logp).sum()) * (advantages - (p * advantages).sum())).sum()
    change = (entropy(z + eta * advantages) - entropy(z)) / eta
    assert float(change) == pytest.approx(-float(cov), abs=1e-6)


# ---- 80/20 ------------------------------------------------------------------------------------------------


def test_forking_tokens_of_the_card() -> None:
    entropy = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    part = ForkingTokens(share=0.2)
    assert planned(part, -entropy, entropy, entropy=entropy).tolist() == [[0.0, 0.0, 0.0, 0.0, 1.0]]
    mask = torch.tensor([[True] * 5 + [False]])
    wide = torch.nn.functional.pad(entropy, (0, 1))
    weights = part.plan(rollout_of(-wide, mask=mask, entropy=wide), Credit(wide))
    assert weights[:, :5].tolist() == [[0.0, 0.0, 0.0, 0.0, 1.0]]


def test_forking_tokens_keep_or_shrink_the_denominator() -> None:
    policy = toy()
    kept = Algorithm(GroupRelative(), PPOClip(), TokenMean(), selectors=(ForkingTokens(),))
    rollout = fixed_rollout(policy)
    spread = torch.rand(rollout.mask.shape, generator=torch.Generator().manual_seed(0))
    rollout = rollout.with_(stats={**rollout.stats, "entropy": spread})
    (small,), metrics = run(policy, rollout, kept)
    (large,), _ = run(policy, rollout, replace(kept, selectors=(ForkingTokens(shrinks_denominator=True),)))
    all_of_them = int(rollout.mask.sum())
    chosen = all_of_them - metrics["plan/ForkingTokens"]
    torch.testing.assert_close(large, small * all_of_them / chosen)
    with pytest.raises(ValueError, match="set one to false"):
        ForkingTokens(shrinks_denominator=True, per_micro_batch=True)


def test_quantile_is_torch_s() -> None:
    x = torch.rand(7, 9, generator=torch.Generator().manual_seed(0), dtype=D)
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(1)) > 0.4
    for q in (0.0, 0.13, 0.8, 1.0):
        torch.testing.assert_close(quantile(x, mask, q), x[mask].quantile(q))
    assert float(quantile(x, torch.zeros_like(mask), 0.5)) == float("inf")


# ---- STEER ------------------------------------------------------------------------------------------------


def test_steer_of_the_card() -> None:
    """A state of two, (0.9, 0.1): Omega is 0.02197 and -1.77975."""
    log_softmax = torch.tensor([0.9, 0.1]).log().expand(2, 2)
    slope = EntropySlope().of_categorical(log_softmax, torch.tensor([0, 1]))
    torch.testing.assert_close(slope, torch.tensor([0.02197, -1.77975]), atol=1e-5, rtol=0)
    logprobs, ones = torch.tensor([[0.9, 0.1]]).log(), torch.ones(1, 2)
    weights = planned(Steer(), logprobs, ones, entropy_slope=slope[None])
    torch.testing.assert_close(weights, torch.tensor([[1.2, 0.8]]))
    weights = planned(SteerExponential(), logprobs, ones, entropy_slope=slope[None])
    torch.testing.assert_close(weights, torch.tensor([[0.8 ** (0.02197 / 1.77975), 0.8]]), atol=1e-5, rtol=0)
    flat = planned(SteerExponential(), logprobs, ones, entropy_slope=torch.full((1, 2), 0.01))
    torch.testing.assert_close(flat, torch.full((1, 2), 0.8**0.5))  # at most 0.02 is small: not stretched to `low`


def test_the_entropy_slope_of_a_gaussian_is_exact() -> None:
    """d log p / d log sigma = z^2 - 1, and d H / d log sigma = 1."""
    log_std = torch.tensor([-0.3], dtype=D, requires_grad=True)
    x, mean = torch.tensor([1.7], dtype=D), torch.tensor([0.4], dtype=D)
    density = torch.distributions.Normal(mean, log_std.exp())
    (slope,) = torch.autograd.grad(density.log_prob(x).sum(), log_std, retain_graph=True)
    found = EntropySlope().of_gaussian((x - mean) / log_std.exp(), log_std)
    torch.testing.assert_close(found.detach(), slope)
    (rise,) = torch.autograd.grad(Entropy().of_gaussian(x, log_std).sum(), log_std)
    assert float(rise) == 1.0


# ---- UloRL, R1-Reward, samplers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "entropy", "wanted"), [(1.0, 0.1, [0.0, 1.0]), (1.0, 0.3, [1.0, 1.0]), (0.0, 0.1, [1.0, 1.0])]
)
def test_mastered_tokens_of_the_card(reward: float, entropy: float, wanted: list[float]) -> None:
    rollout = rollout_of(
        torch.tensor([[0.995, 0.5]]).log(), torch.tensor([reward]), entropy=torch.full((1, 2), entropy)
    )
    assert DropMastered().plan(rollout, Credit(rollout.rewards)).tolist() == [wanted]


def test_outliers_are_told_by_z_and_not_by_the_mean() -> None:
    """z of 9 is 3.298: filtered; with bounds of 2.58 +- 3, as the authors' code has it, it would stay."""
    advantages = torch.tensor([[2.0, 2, 2, 2.5, 1.5, 2, 9, 2, 2, 2, 2, 2]])
    weights = planned(DropOutliers(), torch.zeros_like(advantages), advantages)
    assert weights.tolist() == [[1.0] * 6 + [0.0] + [1.0] * 5]


def test_truncated_importance_and_ice_pop() -> None:
    rollout = rollout_of(torch.tensor([[0.0, 0.0, 0.0, 0.0]]))
    rollout = rollout.with_(behaviour_logprobs=-torch.tensor([[0.4, 1.0, 3.0, 6.0]]).log())
    credit = Credit(torch.ones(1, 4))
    torch.testing.assert_close(TruncatedImportance(2.0).plan(rollout, credit), torch.tensor([[0.4, 1.0, 2.0, 2.0]]))
    torch.testing.assert_close(IcePop(0.5, 5.0).plan(rollout, credit), torch.tensor([[0.0, 1.0, 3.0, 0.0]]))
    with pytest.raises(ValueError, match=r"set train\.update\.rescore to true"):
        IcePop().plan(rollout.with_(behaviour_logprobs=None), credit)


def test_rescoring_gives_samplers_log_probs_of_their_own() -> None:
    policy = toy()
    rollout = fixed_rollout(policy)
    stale = rollout.with_(logprobs=rollout.logprobs - 0.5)  # drawn by a policy of long ago
    _, metrics = run(policy, stale, Algorithm(GroupRelative(), PPOClip(), TokenMean()))
    assert metrics["update/ratio_max"] == pytest.approx(math.exp(0.5), rel=1e-4)
    corrected = Algorithm(GroupRelative(), Importance(), TokenMean(), selectors=(TruncatedImportance(5.0),))
    (found,), metrics = run(policy, stale, corrected, rescore=True)
    assert metrics["update/ratio_max"] == pytest.approx(1.0, rel=1e-4)
    (plain,), _ = run(policy, rollout, Algorithm(GroupRelative(), Importance(), TokenMean()))
    torch.testing.assert_close(found, plain * math.exp(0.5), rtol=1e-4, atol=1e-6)


# ---- SIREN ------------------------------------------------------------------------------------------------


def test_the_nucleus_holds_the_one_that_crosses() -> None:
    """(.5, .3, .15, .05) and p = .75: two alternatives, entropy 0.66156; without the second it would be 0."""
    log_softmax = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    drawn = torch.tensor(0)
    assert float(NucleusEntropy(0.75).of_categorical(log_softmax, drawn)) == pytest.approx(0.66156, abs=1e-5)
    assert float(NucleusEntropy(0.4).of_categorical(log_softmax, drawn)) == 0.0
    shuffled = torch.cat([log_softmax[[2, 0, 3, 1]], torch.tensor([float("-inf")])])
    assert float(NucleusEntropy(0.75).of_categorical(shuffled, drawn)) == pytest.approx(0.66156, abs=1e-5)
    whole = NucleusEntropy(0.999999).of_categorical(log_softmax, drawn)
    torch.testing.assert_close(whole, Entropy().of_categorical(log_softmax, drawn))


def test_the_gradient_goes_through_the_renormalised_nucleus() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=D).log()

    def entropy(z: Tensor) -> Tensor:
        return NucleusEntropy(0.75).of_categorical(z.log_softmax(-1), torch.tensor(0))

    assert torch.autograd.gradcheck(entropy, (logits.requires_grad_(),))
    banned = torch.tensor([0.0, 1.0, float("-inf")], requires_grad=True)
    NucleusEntropy(0.9).of_categorical(banned.log_softmax(-1), torch.tensor(0)).backward()
    assert banned.grad is not None
    assert bool(torch.isfinite(banned.grad).all())


def anchored(entropies: Tensor, start: float | None = None, **options: float) -> tuple[Siren, dict[str, Tensor]]:
    part = Siren(coef=0.5, mass=1.0, **options)
    if start is not None:
        part.load_state_dict({"entropy": start})
    return part, part.plan(rollout_of(torch.zeros_like(entropies), entropy=entropies), Credit(entropies))


def test_siren_s_gradient_is_that_of_the_squared_difference() -> None:
    """coef (H - H_0)^2 with H the mean over trajectories of the mean over their peaks, by autograd."""
    entropies = torch.rand(3, 10, generator=torch.Generator().manual_seed(0), dtype=D)
    part, notes = anchored(entropies, start=0.2)
    leaf = entropies.clone().requires_grad_()
    batch = replace(batch_of(torch.zeros_like(entropies), entropies), stats=notes, current={"entropy": leaf})
    penalty, _ = part(Evaluation(leaf), batch)
    (penalty * SequenceMean()(batch.mask).double()).sum().backward()
    wanted = entropies.clone().requires_grad_()
    height = wanted.detach().quantile(0.8, dim=-1, keepdim=True)
    peaks = wanted.detach() > height
    level = ((wanted * peaks).sum(-1) / peaks.sum(-1)).mean()
    (0.5 * (level - 0.2) ** 2).backward()
    assert notes["Siren"].sum(-1).tolist() == [2, 2, 2]
    torch.testing.assert_close(leaf.grad, wanted.grad, rtol=1e-5, atol=1e-8)


def test_siren_pulls_both_ways_and_rests_at_the_start() -> None:
    entropies = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    part, notes = anchored(entropies)
    assert float(notes["siren_pull"].abs().sum()) == 0.0  # the first rollout is the anchor
    assert part.state_dict() == {"entropy": 1.0}
    above, below = (anchored(entropies, start)[1]["siren_pull"][0, 3] for start in (0.5, 2.0))
    assert float(above) > 0 > float(below)
    assert part.plan(rollout_of(torch.zeros(1, 4), entropy=2 * entropies), Credit(entropies))["siren_pull"][0, 3] > 0


def test_a_flat_trajectory_has_no_peak() -> None:
    _, notes = anchored(torch.ones(1, 4), start=0.5)
    assert not bool(notes["Siren"].any())
    assert float(notes["siren_pull"].abs().sum()) == 0.0


# ---- Lp-Reg -----------------------------------------------------------------------------------------------


def test_the_proxy_of_the_card() -> None:
    """(.9, .08, .02), kappa .05: the proxy is (.91837, .08163, 0)."""
    log_softmax = torch.tensor([0.9, 0.08, 0.02]).log().expand(3, 3)
    gain = ProxyGain(0.05).of_categorical(log_softmax, torch.arange(3))
    torch.testing.assert_close(gain, torch.tensor([0.020203, 0.020203, 0.0]), atol=1e-6, rtol=0)


def test_the_proxy_of_a_gaussian_is_a_box() -> None:
    """kappa = .02: |z| up to 2.797, whose mass is .99484."""
    gain = ProxyGain(0.02).of_gaussian(torch.tensor([0.0, 2.79, 2.80]), torch.zeros(3))
    torch.testing.assert_close(gain[:2], torch.full((2,), -math.log(0.99484)), atol=1e-5, rtol=0)
    assert float(gain[2]) < -1000


def barrier(part: LpReg, logprobs: Tensor, gains: Tensor, advantages: Tensor, moved: Tensor) -> Tensor:
    rollout = rollout_of(logprobs, **{"proxy_gain_0.02": gains})
    batch = replace(
        batch_of(logprobs, advantages), rewards=torch.zeros(len(logprobs)),
        stats={**rollout.stats, **part.plan(rollout, Credit(advantages))},
    )  # fmt: skip
    return part(Evaluation(moved), batch)[0]


@pytest.mark.parametrize("per_micro_batch", [False, True])
def test_lp_reg_holds_unlikely_punished_decisions_that_are_no_noise(per_micro_batch: bool) -> None:
    """Of four punished ones the two least likely; the very least is outside the proxy. k3 of 0.020203 is 2.0546e-4."""
    logprobs = torch.tensor([[-9.0, -3.0, -1.0, -0.5, -8.0]], dtype=D)
    gains = torch.tensor([[0.0, 0.020203, 0.020203, 0.020203, 0.020203]], dtype=D)
    advantages = torch.tensor([[-1.0, -1.0, -1.0, -1.0, 1.0]], dtype=D)
    part = LpReg(share=0.5, per_micro_batch=per_micro_batch)
    penalty = barrier(part, logprobs, gains, advantages, logprobs)
    torch.testing.assert_close(penalty, torch.tensor([[0.0, 2.0546e-4, 0.0, 0.0, 0.0]], dtype=D), atol=1e-8, rtol=0)


def test_the_barrier_s_gradient_goes_on_beyond_what_a_clamp_at_10_would_kill() -> None:
    logprobs, gains = torch.tensor([[-3.0]], dtype=D), torch.tensor([[0.02]], dtype=D)
    moved = torch.tensor([[-7.0]], dtype=D, requires_grad=True)
    barrier(LpReg(share=1.0), logprobs, gains, -torch.ones(1, 1, dtype=D), moved).sum().backward()
    assert float(moved.grad) == pytest.approx(-(math.exp(4.02) - 1))  # type: ignore[arg-type]


# ---- per micro-batch, and the controller ------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [ClipCov(share=0.2, low=0.0, high=99.0, per_micro_batch=True), ForkingTokens(per_micro_batch=True),
     Steer(per_micro_batch=True), KLCov(share=0.2, per_micro_batch=True), LpReg(share=0.9, kappa=0.3, per_micro_batch=True)],
    ids=lambda part: type(part).__name__,
)  # fmt: skip
def test_papers_own_scope_is_that_of_the_micro_batch(part: Selector | Regulariser) -> None:
    """Faithful, and for that reason another gradient with another `micro_rows`; in one micro-batch it is the plan's."""
    from tests.test_parts import acted, composed

    policy = toy()
    algorithm = composed(part)
    rollout = acted(policy, algorithm)
    (whole,), _ = run(policy, rollout, algorithm)
    (split,), _ = run(policy, rollout, algorithm, micro_rows=4)
    assert float((whole - split).norm() / whole.norm()) > 1e-3
    still = toy()
    rollout = acted(still, algorithm, still=True)
    often, _ = run(still, rollout, algorithm)
    once_algorithm = composed(replace(part, per_micro_batch=False))
    stats = {**rollout.stats, **acted(still, once_algorithm, still=True).stats}
    once, _ = run(still, rollout.with_(stats=stats), once_algorithm)
    if not isinstance(part, ForkingTokens | Steer):  # whose statistics are moved in these rollouts
        torch.testing.assert_close(often[0], once[0])


def test_the_adaptive_coefficient_follows_its_target() -> None:
    """KL of 2 a trajectory against a target of 1: the error is clipped at 0.2; 4 of a horizon of 8."""
    part = AdaptiveKLInReward(target=1.0, horizon=8.0, coef=0.5)
    rollout = rollout_of(torch.zeros(4, 2)).with_(ref_logprobs=torch.full((4, 2), -1.0))
    assert part(rollout).rewards.tolist() == [[-0.5, -0.5]] * 4
    assert part.state_dict() == {"coef": pytest.approx(0.5 * (1 + 0.2 * 4 / 8))}
    near = rollout.with_(ref_logprobs=torch.full((4, 2), -0.45))  # 0.9: an error of -0.1
    part(near)
    assert part.state_dict() == {"coef": pytest.approx(0.55 * (1 - 0.1 * 4 / 8))}
