"""NLPO: tokens of the nucleus of an older policy, renormalised, and the record that lets them be scored again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmrl.ahead import Ahead
from mmrl.ahead.feed import OnDemand
from mmrl.ahead.start import feed_of
from mmrl.batching import UpdateConfig
from mmrl.config import ConfigError, load
from mmrl.lagged import Lagged
from mmrl.parts import Parts
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.scoring import score
from mmrl.settings import TrainConfig
from mmrl.testing import check_collector, check_policy
from mmrl.types import Rollout
from mmrl.update import update
from tests.test_vision_plans import (
    EXAMPLES,
    GRPO,
    RECIPE,
    RUNTIME,
    asked,
    collected,
    collector,
    completions,
    moved,
    same,
)
from tests.tiny_vlms import make
from tests.toy import ToyEvaluator
from vision.adapters import LoRA
from vision.allowed import Nucleus, joined, only, recorded
from vision.collector import AnswerCollector, RolloutConfig
from vision.plans import NLPO
from vision.plans.base import whole
from vision.policy import PolicyConfig, VisionPolicy
from vision.sampling import draw, go_on

pytestmark = pytest.mark.timeout(240)

TIGHT = NLPO(top_p=0.5, least=3, most=40, renew_every=2)


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = getattr(request, "param", "qwen2_5_vl")
    path = tmp_path_factory.mktemp(name)
    make(name, path)
    return path


both = pytest.mark.parametrize("folder", ["qwen2_5_vl", "smolvlm"], indirect=True)


@pytest.fixture
def policy(folder: Path) -> VisionPolicy:
    return VisionPolicy.load(PolicyConfig(str(folder), freeze_vision=False)).eval()


def sets(rollout: Rollout) -> Tensor:
    found: Tensor = vars(rollout.transitions)["allowed"]
    return found


def largest_gap(policy: VisionPolicy, rollout: Rollout) -> float:
    return float(torch.where(rollout.mask, score(policy, rollout, 3) - rollout.logprobs, 0.0).abs().max())


def first_sets(rollout: Rollout, of: VisionPolicy) -> list[set[int]]:
    """What the nucleus of a policy allows as the first token of each row."""
    logs = of.log_softmax(of._read(rollout.transitions, 1).logits[:, 0])
    return [set(row.tolist()) for row in Nucleus(of, TIGHT.top_p, TIGHT.least, TIGHT.most).of(logs)]


def stepped(policy: VisionPolicy, made: AnswerCollector, steps: int, generator: torch.Generator) -> list[Rollout]:
    """Rollouts with other weights after each of them."""
    found = []
    for _ in range(steps):
        with acting(policy):
            found.append(made.collect(policy, generator))
        moved(policy, len(found))
    return found


# ---- sets of tokens -------------------------------------------------------------------------------------------


def test_log_probs_are_those_of_the_card() -> None:
    """pi = (.5, .3, .2), of which the first two are allowed: ln .625, and ln .375."""
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().requires_grad_()
    found = torch.log_softmax(only(logits, torch.tensor([[0, 1, 0]])), dim=-1)
    assert found[0, :2].tolist() == pytest.approx([math.log(0.625), math.log(0.375)])
    assert found[0, 2].item() == -math.inf
    found[0, 0].backward()
    assert logits.grad[0].tolist() == pytest.approx([0.375, -0.375, 0.0])  # nothing goes to what is not allowed
    assert only(logits, None) is logits
    assert torch.equal(only(logits, torch.tensor([[-1, -1]])), logits)


class Ends:
    eos_ids = (3,)


@pytest.mark.parametrize(
    ("top_p", "least", "most", "wanted"),
    [
        (0.5, 1, 4, {0, 3}),  # the first has all of .5
        (0.51, 1, 4, {0, 1, 3}),
        (0.79, 1, 4, {0, 1, 3}),  # with the one that completes it
        (0.2, 3, 4, {0, 1, 2, 3}),
        (0.99, 1, 2, {0, 1, 3}),
        (0.01, 4, 9, {0, 1, 2, 3}),
    ],
)
def test_a_nucleus_in_closed_form(top_p: float, least: int, most: int, wanted: set[int]) -> None:
    flat = torch.full((4,), 0.25)
    logs = torch.stack([torch.tensor([0.5, 0.3, 0.15, 0.05]), flat]).log()
    found = Nucleus(Ends(), top_p, least, most).of(logs)  # type: ignore[arg-type]
    assert set(found[0].tolist()) == wanted
    likely = min(4, most, max(least, math.ceil(4 * top_p)))
    assert len(set(found[1].tolist()) - {3}) in (likely, likely - 1)
    assert 3 in found[1]


def test_sets_are_recorded_and_joined() -> None:
    steps = [torch.tensor([[1, 2], [1, 1]]).int(), torch.tensor([[4, 5, 6], [7, 7, 7]]).int()]
    drawn = torch.tensor([[False, True, True], [False, True, False]])
    found = recorded(steps, drawn)
    assert found.tolist() == [[[-1] * 3, [1, 2, 1], [4, 5, 6]], [[-1] * 3, [1, 1, 1], [-1] * 3]]
    both = joined([found, None, found[:1, :, :2]], [2, 3, 1], 4)
    assert both.dtype == torch.int32
    assert both[:2, :3].tolist() == found.tolist()
    assert both[5].tolist() == [[-1] * 3, [1, 2, 1], [4, 5, 4], [-1] * 3]
    assert set(both[2:5].flatten().tolist()) == set(both[:, 3].flatten().tolist()) == {-1}
    assert joined([None, None], [1, 1], 3) is None


# ---- the plan -------------------------------------------------------------------------------------------------


@both
def test_contracts_parity_and_that_nothing_else_is_drawn(policy: VisionPolicy) -> None:
    made = collector(policy, TIGHT, group=4)
    check_collector(made, policy, lambda: torch.Generator().manual_seed(0))
    rollout = stepped(policy, made, 1, torch.Generator().manual_seed(0))[0]
    with acting(policy):  # by other weights than those of the nucleus
        rollout = made.collect(policy, torch.Generator().manual_seed(1))
    check_policy(policy, rollout)
    assert largest_gap(policy, rollout) < 1e-5
    tokens, allowed = completions(rollout), sets(rollout)
    assert bool((allowed == tokens[..., None]).any(-1)[rollout.mask].all())
    assert bool((allowed[~rollout.alive] == -1).all())
    assert allowed.shape[-1] <= TIGHT.most + len(policy.eos_ids)
    for end in policy.eos_ids:
        assert bool((allowed == end).any(-1)[rollout.alive].all())

    plain = replace(rollout.transitions, allowed=None)
    steps = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
    with acting(policy):
        logs = policy.log_softmax(policy._read(plain, tokens.shape[1]).logits)
        outside = replace(rollout.transitions, completions=logs.argmin(-1))
        rank = policy(outside, steps).logprobs
    mass = logs.exp()[..., None, :].expand(*allowed.shape, -1)
    for row, t in rollout.mask.nonzero()[:6].tolist():
        inside = mass[row, t, 0][allowed[row, t].long().unique()].sum()
        wanted = logs[row, t, tokens[row, t]] - inside.log()
        assert float(rollout.logprobs[row, t]) == pytest.approx(float(wanted), abs=1e-5)
    assert float(rank[:, 0].max()) == -math.inf  # the least likely token has probability 0


def test_the_ratio_is_of_two_distributions_over_one_set(policy: VisionPolicy) -> None:
    """By other weights, of another copy, the probabilities of what was allowed sum to 1 again."""
    (rollout,) = stepped(policy, collector(policy, TIGHT, group=4), 1, torch.Generator().manual_seed(0))
    first = rollout.transitions.rows(torch.arange(1))
    total = 0.0
    for token in sets(rollout)[0, 0].unique().tolist():
        with acting(policy):
            one = replace(first, completions=torch.tensor([[token]]))
            total += float(policy(one, torch.zeros(1, 1, dtype=torch.long)).logprobs.exp())
    assert total == pytest.approx(1.0, abs=1e-5)
    optimizer = torch.optim.SGD(policy.parameters(), 0.1)
    metrics = update(policy, rollout, GRPO, optimizer, RUNTIME, UpdateConfig(micro_rows=3))
    assert metrics["update/grad_norm"] > 0
    assert all(bool(torch.isfinite(parameter).all()) for parameter in policy.parameters())


@both
def test_a_nucleus_of_everything_is_not_there_bit_for_bit(policy: VisionPolicy) -> None:
    size = len(policy.banned)
    plans = (None, NLPO(top_p=1.0), NLPO(top_p=0.5, least=size, most=size))
    plain, unrestricted, everything = (collected(collector(policy, plan, 4), policy, 2) for plan in plans)
    for one, two, three in zip(plain, unrestricted, everything, strict=True):
        assert same(one, two)
        assert same(one, three)
        assert torch.equal(one.stats["entropy"], three.stats["entropy"])
        assert torch.equal(score(policy, one, 3), score(policy, three, 3))
        assert sets(two) is None
        assert sets(three).shape[-1] >= size


def test_the_copy_that_is_asked_is_renewed(policy: VisionPolicy) -> None:
    """What the sampler allows changes after so many rollouts, and not before."""
    made = collector(policy, replace(TIGHT, renew_every=3), group=2)
    found, differ = [], 0
    for step in range(7):
        with acting(policy):
            rollout = made.collect(policy, torch.Generator().manual_seed(0))
            copied = made.plan.lagged().of(policy, 3 * (step // 3))
            told = [first_sets(rollout, of) for of in (policy, copied)]
        assert [set(row.tolist()) for row in sets(rollout)[:, 0]] == told[1]
        differ += told[0] != told[1]
        found.append(torch.cat([p.detach().flatten() for p in copied.parameters()]))
        own = torch.cat([p.detach().flatten() for p in policy.parameters()])
        assert torch.equal(found[-1], own) == (step % 3 == 0)
        assert made.measured() == {"nlpo/age": float(step % 3)}
        moved(policy, step)
    assert differ > 0  # what the policy itself would have allowed
    changed = [not torch.equal(one, other) for one, other in pairwise(found)]
    assert changed == [False, False, True, False, False, True]


def test_a_resumed_run_has_the_same_numbers(policy: VisionPolicy, folder: Path) -> None:
    """With its copy between two renewals, through the feed and what a checkpoint holds."""

    def feed(of: VisionPolicy, runtime: Runtime) -> OnDemand:
        made = collector(of, replace(TIGHT, renew_every=3), group=2)
        found = feed_of(Parts(of, made, ToyEvaluator(), GRPO, lagged=made.plan.lagged()), TrainConfig(), runtime, None)
        assert isinstance(found, OnDemand)
        return found

    running = feed(policy, Runtime(RuntimeConfig(device="cpu"), seed=3))
    for step in range(2):
        running.next(step)
        moved(policy, step)
    position, weights = running.position(), {n: p.clone() for n, p in policy.state_dict().items()}
    position = replace(position, collector=json.loads(json.dumps(position.collector)))
    assert list(position.behind) == [0]
    wanted = []
    for step in range(2, 5):  # through a renewal
        wanted.append(running.next(step))
        moved(policy, step)

    other = VisionPolicy.load(PolicyConfig(str(folder), freeze_vision=False)).eval()
    other.load_state_dict(weights)
    resumed = feed(other, Runtime(RuntimeConfig(device="cpu"), seed=3))
    resumed.restore(2, position)
    for step, rollout in zip(range(2, 5), wanted, strict=True):
        found = resumed.next(step)
        assert same(found, rollout)
        assert torch.equal(sets(found), sets(rollout))
        moved(other, step)

    without = feed(other, Runtime(RuntimeConfig(device="cpu"), seed=3))
    without.restore(2, replace(position, behind={}))
    with pytest.raises(ValueError, match=r"after 0 updates is wanted, and there is that after \[\]: load what"):
        without.next(2)


def test_the_copy_of_an_adapter_shares_the_model(folder: Path) -> None:
    config = PolicyConfig(str(folder), adapter=LoRA(rank=2, alpha=4), reuse_prefill=True)
    policy, lagged = VisionPolicy.load(config).eval(), Lagged()
    lagged.renew(policy, 0)
    copied = dict(lagged.of(policy, 0).named_parameters())
    assert all((copied[name] is p) != p.requires_grad for name, p in policy.named_parameters())
    assert lagged.older()[0].keys() == {name for name, p in policy.named_parameters() if p.requires_grad}
    made = collector(policy, TIGHT, group=2)
    (rollout,) = stepped(policy, made, 1, torch.Generator().manual_seed(0))
    with acting(policy):
        rollout = made.collect(policy, torch.Generator().manual_seed(1))
    assert largest_gap(policy, rollout) < 1e-5
    optimizer = torch.optim.SGD(policy.parameters(), 0.1)
    assert update(policy, rollout, GRPO, optimizer, RUNTIME, UpdateConfig())["parity/logprob_diff_max"] < 1e-5


def test_what_an_answer_begins_with_is_not_restricted(policy: VisionPolicy) -> None:
    wanted = asked(policy, 2)
    given = whole(policy, wanted).drawn
    nucleus, first = Nucleus(policy, 0.1, 1, 4), torch.tensor([1, 2, 1, 2])
    drawn = go_on(policy, given.transitions, first, wanted.generator, nucleus=nucleus)
    begun = torch.arange(drawn.alive.shape[1]) < first[:, None]
    assert bool((drawn.transitions.allowed[begun] == -1).all())
    found = policy(drawn.transitions, torch.arange(drawn.alive.shape[1]).expand(4, -1)).logprobs.detach()
    assert bool(torch.isfinite(found[drawn.alive]).all())
    own = drawn.alive & ~begun
    assert float(torch.where(own, found - drawn.logprobs, 0.0).abs().max()) < 1e-5
    likely = draw(policy, wanted.prompts, 1, 3, None, nucleus=nucleus)
    assert torch.equal(likely.transitions.completions, draw(policy, wanted.prompts, 1, 3, None).transitions.completions)


# ---- what does not go together --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"top_p": 0.0}, r"rollout\.plan has top_p 0\.0: give more than 0, and 1"),
        ({"top_p": 1.1}, r"rollout\.plan has top_p 1\.1"),
        ({"least": 0}, r"rollout\.plan has least 0, most 1024 and renew_every 20: give 1 or more"),
        ({"least": 5, "most": 4}, r"least 5, most 4"),
        ({"renew_every": 0}, r"renew_every 0"),
    ],
)
def test_keys_are_checked(keys: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        NLPO(**keys)  # type: ignore[arg-type]


def test_what_does_not_go_together_is_refused(policy: VisionPolicy) -> None:
    parts = Parts(policy, collector(policy, TIGHT), ToyEvaluator(), GRPO, lagged=Lagged())
    for ahead in (Ahead(), Ahead(processes=1)):
        with pytest.raises(ValueError, match=r"train\.ahead is set, .* an older policy .*: set train\.ahead to null"):
            feed_of(parts, TrainConfig(ahead=ahead), RUNTIME, None)
    with pytest.raises(ConfigError, match=r"rollout\.plan is NLPO, which remembers .*; set resample to 0"):
        load(str(RECIPE), ["rollout.plan=vision.plans.NLPO", "train.resample=2"])
    with pytest.raises(ValueError, match=r"rollout\.turns is 2 and rollout\.plan is NLPO"):
        RolloutConfig(4, 4, 8, turns=2, plan=NLPO())
    two = Runtime(RuntimeConfig(device="cpu"), seed=0)
    two.world = 2
    with pytest.raises(ValueError, match=r"rollout\.plan is NLPO on 2 processes"):
        AnswerCollector(EXAMPLES, None, None, RolloutConfig(plan=NLPO()), two)  # type: ignore[arg-type]


def test_it_is_named_in_a_config_and_built(folder: Path) -> None:
    """With a critic, as in the paper; and where a checkpoint finds what it has to hold."""
    more = ["rollout.plan=vision.plans.NLPO", "rollout.plan.renew_every=5", "policy.critic.widths=[8]"]
    experiment = load(str(RECIPE), [*more, f"policy.model={folder}"]).experiment
    assert experiment.rollout.plan == NLPO(renew_every=5)
    parts = experiment.build(RUNTIME)
    assert isinstance(parts.collector, AnswerCollector)
    assert parts.lagged is not None
    assert parts.lagged is parts.collector.plan.lagged() is not experiment.rollout.plan.lagged()
    assert NLPO(top_p=1.0).lagged() is None
