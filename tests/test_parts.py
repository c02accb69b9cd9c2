"""What every part of an algorithm must be, whoever adds it: parts are found by being exported.

T-A  while the policy is the one that acted: gradients are -A grad log pi, penalties to the old policy have none
T-B  neither micro-batches nor the order of rows (which ranks change) change the gradient
T-C  nothing outside the mask has a say: padding, NaN, dead rows
T-D  with its own neutral options a part is not there
T-F  what is planned carries no gradient
T-E, fixed points, is in test_regularisers and beside the numbers of each method (test_selectors, test_objectives).
"""

from __future__ import annotations

import ast
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmrl import advantages, regularisers, selectors, shapers, surrogates
from mmrl.advantages import GroupRelative
from mmrl.aggregates import SequenceMean, TokenMean
from mmrl.algorithm import Advantage, Algorithm, Part, Regulariser, Selector, Shaper, Surrogate
from mmrl.batching import UpdateConfig
from mmrl.parts import Parts
from mmrl.scoring import described, referred
from mmrl.statistics import EVERY_NOISE
from mmrl.surrogates import PPOClip
from mmrl.types import Rollout
from mmrl.update import make_plan
from tests.test_update import RUNTIME, assert_same_gradient, rows_of, run, toy
from tests.toy import CategoricalPolicy, ToyEvaluator, ToyPolicy, ToyPolicyConfig, ToyTransitions, fixed_rollout

ROOT = Path(__file__).resolve().parent.parent
DOMAIN_ONLY = {"ExactKL": "needs a closed form of its domain", "Pathwise": "needs a reward that can be derived"}
"""Regularisers that toys cannot serve; tests of their own have them."""
KINDS = {"advantages": advantages, "regularisers": regularisers, "selectors": selectors, "shapers": shapers,
         "surrogates": surrogates}  # fmt: skip


BITING: dict[str, dict[str, object]] = {
    "ClipCov": {"share": 0.1, "low": 0.2},
    "DropMastered": {"probability": 0.2, "entropy": 9.0},
    "DropOutliers": {"limit": 1.0},
    "IcePop": {"low": 0.8, "high": 1.2},
    "KLCov": {"share": 0.2},
    "LpReg": {"share": 0.5, "kappa": 0.3},
    "Overlong": {"limit": 5, "buffer": 4},
    "Siren": {"coef": 1.0},
    "TruncatedImportance": {"cap": 1.1},
}
"""Options with which parts have something to do among as few decisions as those of a toy."""
SEEN: dict[str, dict[str, object]] = {"Siren": {"entropy": 0.5}}
"""What they remember of an earlier rollout."""


def made(kind: type[Part]) -> Part:
    part = kind(**BITING.get(kind.__name__, {}))
    part.load_state_dict(SEEN.get(kind.__name__, {}))
    return part


def found() -> list[type[Part]]:
    return [vars(package)[name] for package in KINDS.values() for name in package.__all__ if name not in DOMAIN_ONLY]


def composed(part: Part) -> Algorithm:
    """The smallest algorithm with `part` in it."""
    base = Algorithm(GroupRelative(), PPOClip(), SequenceMean() if _by_sequence(part) else TokenMean())
    if isinstance(part, Advantage):
        return replace(base, advantage=part)
    if isinstance(part, Surrogate):
        return replace(base, surrogate=part)
    if isinstance(part, Selector):
        return replace(base, selectors=(part,))
    if isinstance(part, Regulariser):
        return replace(base, regularisers=(part,))
    assert isinstance(part, Shaper)
    return replace(base, shapers=(part,))


def _by_sequence(part: Part) -> bool:
    return isinstance(part, Surrogate) and part.whole_trajectories


def acted(policy: ToyPolicy, algorithm: Algorithm, still: bool = False) -> Rollout:
    """A rollout with all that any part may ask for, and the policy a step further, unless it is to stay `still`."""
    rollout = fixed_rollout(policy, gamma=0.9, prompts=5)
    generator = torch.Generator().manual_seed(3)
    noise = (
        torch.zeros_like(rollout.logprobs) if still else 0.3 * torch.randn(rollout.logprobs.shape, generator=generator)
    )
    won = (rollout.rewards.sum(-1) > 0).float()  # 0 or 1, as labels are
    last = rollout.alive & ~torch.nn.functional.pad(rollout.alive[:, 1:], (0, 1))
    rollout = rollout.with_(behaviour_logprobs=rollout.logprobs + noise, rewards=torch.where(last, won[:, None], 0.0))
    reference = policy if still else ToyPolicyConfig(kind=policy.config.kind, critic=True, init_seed=9).make()
    rollout = referred(described(rollout, policy, algorithm, 64), reference, algorithm, 64)
    jitter = 0.02 * torch.rand(rollout.logprobs.shape, generator=generator)  # a toy's states stay what they are
    measured = {statistic.name for statistic in algorithm.plans_on}
    rollout = rollout.with_(stats={n: t + jitter if n in measured else t for n, t in rollout.stats.items()})
    if not still:
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    policy.report, policy.report_entropy = algorithm.reads, True
    return rollout


each_part = pytest.mark.parametrize("kind", found(), ids=lambda kind: kind.__name__)


def test_there_are_parts() -> None:
    assert len(found()) > 20
    assert {kind.__name__ for kind in found()} >= {"ClipCov", "KLCov", "Siren", "PPOClip", "GroupRelative"}


@each_part
def test_a_part_is_one_page_with_its_source(kind: type[Part]) -> None:
    """Its file has a paper on top, and at most 60 lines (regularisers/kl.py has four in one table)."""
    file = ROOT / (kind.__module__.replace(".", "/") + ".py")
    text = file.read_text()
    assert len(text.splitlines()) <= 60 or file.name == "kl.py"
    top = ast.get_docstring(ast.parse(text)) or ""
    cited = any(mark in top for mark in ("arXiv", "http", "Williams"))
    assert cited or kind.__name__ == "Likelihood"
    assert f"`{file.relative_to(ROOT)}`" in (ROOT / "docs/paper-index.md").read_text() or kind.__name__ in (
        "Reinforce", "Likelihood")  # fmt: skip


@each_part
def test_micro_batches_change_nothing(kind: type[Part]) -> None:  # T-B
    algorithm = composed(made(kind))
    policy = toy()
    rollout = acted(policy, algorithm)
    (wanted,), whole = run(policy, rollout, algorithm)
    assert_same_gradient(wanted, wanted)
    splits = (4, 8) if algorithm.surrogate.whole_groups else (1, 3, 7)
    for micro_rows in splits:
        algorithm = composed(made(kind))  # without what it remembers of the last update
        (split,), metrics = run(policy, rollout, algorithm, micro_rows=micro_rows)
        assert_same_gradient(split, wanted)
        assert {n: v for n, v in metrics.items() if n.startswith("plan/")} == {
            n: v for n, v in whole.items() if n.startswith("plan/")
        }


@each_part
def test_these_tests_have_something_to_test(kind: type[Part]) -> None:
    policy = toy()
    algorithm = composed(made(kind))
    rollout = acted(policy, algorithm)
    (found,), metrics = run(policy, rollout, algorithm)
    touched = [value for name, value in metrics.items() if name.startswith("plan/")]
    assert all(value > 0 for value in touched)
    if issubclass(kind, Regulariser | Selector | Shaper):
        plain, _ = run(policy, rollout, Algorithm(GroupRelative(), PPOClip(), TokenMean()))
        assert not torch.equal(found, plain[0])


@each_part
def test_the_order_of_rows_changes_nothing(kind: type[Part]) -> None:  # T-B: ranks put rows in another order
    policy = toy()
    rollout = acted(policy, composed(made(kind)))
    (wanted,), _ = run(policy, rollout, composed(made(kind)))
    for seed in (0, 1):
        order = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(seed))
        (found,), _ = run(policy, rows_of(rollout, order), composed(made(kind)))
        assert_same_gradient(found, wanted)


def padded(rollout: Rollout, columns: int) -> Rollout:
    """More columns, and a dead row in front, all full of what must not be read."""

    def grown(name: str, tensor: Tensor) -> Tensor:
        fill = False if tensor.dtype == torch.bool else float("nan") if tensor.is_floating_point() else 0
        if tensor.ndim == 1:
            if name in ("group_ids", "prompt_ids"):
                return torch.cat([tensor[:1], tensor])
            return torch.cat([torch.full_like(tensor[:1], 0), tensor])
        wide = torch.nn.functional.pad(tensor, (0, columns), value=fill)
        return torch.cat([torch.full_like(wide[:1], fill), wide])

    transitions = rollout.transitions
    assert isinstance(transitions, ToyTransitions)
    states, actions = (grown("transitions", getattr(transitions, name)) for name in ("states", "actions"))
    tensors = {name: grown(name, t) for name, t in vars(rollout).items() if isinstance(t, Tensor)}
    stats = {name: grown(name, t) for name, t in rollout.stats.items()}
    return rollout.with_(transitions=ToyTransitions(states, actions), stats=stats, **tensors)


@each_part
def test_what_is_outside_the_mask_changes_nothing(kind: type[Part]) -> None:  # T-C
    policy = toy()
    rollout = acted(policy, composed(made(kind)))
    (wanted,), _ = run(policy, rollout, composed(made(kind)))
    (found,), metrics = run(policy, padded(rollout, 3), composed(made(kind)), micro_rows=8)
    assert_same_gradient(found, wanted)
    assert all(value == value for value in metrics.values())


@each_part
def test_what_is_planned_carries_no_gradient(kind: type[Part]) -> None:  # T-F
    policy = toy()
    algorithm = composed(made(kind))
    ledger = RUNTIME.gather(acted(policy, algorithm))
    plan = make_plan(ledger, algorithm)
    planned = [plan.credit.advantages, plan.weights, *plan.notes.values(), *ledger.rollout.stats.values()]
    assert not [tensor for tensor in planned if tensor.requires_grad]
    assert bool((plan.weights >= 0).all())
    assert bool((plan.credit.advantages[~plan.ledger.rollout.mask] == 0).all())


NEUTRAL: dict[str, dict[str, object]] = {
    "ClipCov": {"share": 0.0},
    "DropDecidedGroups": {},  # what is decided has no advantage: below
    "DropMastered": {"entropy": 0.0},
    "DropOutliers": {"limit": 1e9},
    "ForkingTokens": {"share": 1.0},
    "IcePop": {"low": 1.0, "high": 1.0},
    "Steer": {"low": 1.0, "high": 1.0},
    "SteerExponential": {"low": 1.0},
    "TruncatedImportance": {"cap": 1.0},
}
"""Options with which a selector says nothing; `test_every_selector_has_neutral_options` asks for those of a new one."""
NO_NEUTRAL = {"DropTruncated": "has no options", "DropDecidedGroups": "drops what has no advantage"}


def test_every_selector_has_neutral_options() -> None:
    assert set(selectors.__all__) == set(NEUTRAL) | set(NO_NEUTRAL)


@pytest.mark.parametrize("name", sorted(set(NEUTRAL) - set(NO_NEUTRAL)))
def test_neutral_selectors_are_not_there(name: str) -> None:  # T-D
    policy, base = toy(), Algorithm(GroupRelative(), PPOClip(), TokenMean())
    algorithm = composed(vars(selectors)[name](**NEUTRAL[name]))
    rollout = acted(policy, algorithm)
    rollout = rollout.with_(behaviour_logprobs=rollout.logprobs)
    (wanted,), _ = run(policy, rollout, base)
    (found,), metrics = run(policy, rollout, algorithm)
    assert torch.equal(found, wanted)
    assert metrics[f"plan/{name}"] == 0


@pytest.mark.parametrize("name", [n for n in regularisers.__all__ if n not in DOMAIN_ONLY])
def test_a_penalty_without_a_coefficient_is_not_there(name: str) -> None:  # T-D
    kind = vars(regularisers)[name]
    assert "coef" in {field.name for field in fields(kind)}
    policy, base = toy(), Algorithm(GroupRelative(), PPOClip(), TokenMean())
    algorithm = composed(kind(coef=0.0))
    rollout = acted(policy, algorithm)
    (wanted,), _ = run(policy, rollout, base)
    (found,), _ = run(policy, rollout, algorithm)
    assert_same_gradient(found, wanted)


OBJECTIVES = {
    "ALoL": "of positive advantages alone", "CPL": "of pairs", "DPO": "of pairs", "PACS": "of labels",
    "ROVER": "twice that",
}  # fmt: skip
"""Surrogates that are no policy gradient of the advantage, and what they are; test_objectives has their gradients."""


@pytest.mark.parametrize("name", [n for n in surrogates.__all__ if n not in OBJECTIVES])
def test_the_first_gradient_is_minus_advantage(name: str) -> None:  # T-A
    surrogate = vars(surrogates)[name]()
    policy = toy()
    algorithm = composed(surrogate)
    rollout = acted(policy, algorithm, still=True)
    (wanted,), _ = run(policy, rollout, replace(algorithm, surrogate=surrogates.Reinforce()))
    (found,), _ = run(policy, rollout, algorithm)
    assert_same_gradient(found, wanted)


def test_a_penalty_to_the_old_policy_has_no_gradient_before_the_first_step() -> None:  # T-A
    policy, base = toy(), Algorithm(GroupRelative(), PPOClip(), TokenMean())
    algorithm = composed(regularisers.KLCov(share=1.0))
    rollout = acted(policy, algorithm, still=True)
    (wanted,), _ = run(policy, rollout, base)
    (found,), _ = run(policy, rollout, algorithm)
    assert_same_gradient(found, wanted)


@each_part
@pytest.mark.parametrize("noise", EVERY_NOISE)
def test_a_part_serves_decisions_or_refuses_them_before_anything_runs(kind: type[Part], noise: str) -> None:
    class Other(CategoricalPolicy):
        pass

    Other.noise = noise  # type: ignore[assignment, misc]
    part = kind()
    policy = Other(ToyPolicyConfig())
    parts = Parts(policy, None, ToyEvaluator(), composed(part), policy)  # type: ignore[arg-type]
    fits = all(noise in several for several in [part.noises, *(s.noises for s in (*part.plans_on, *part.reads))])
    if fits and not part.objection(noise):  # type: ignore[arg-type]
        parts.check(UpdateConfig())
        return
    with pytest.raises(ValueError, match=f"Other are .*, and {kind.__name__} ") as refused:
        parts.check(UpdateConfig())
    assert str(refused.value).count("\n") == 0
