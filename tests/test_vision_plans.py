"""Rollout plans of answers: branches of what was said, and successes that are told again.

What is measured is that they do what they say, not that anything learns more.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmrl.advantages import GroupRelative, HistoryMedian
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.batching import UpdateConfig
from mmrl.config import ConfigError, load
from mmrl.resampling import rows as rows_of
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.scoring import score
from mmrl.surrogates import PPOClip
from mmrl.testing import check_collector, check_policy
from mmrl.types import RewardFunction, Rollout, Samples, Scores
from mmrl.update import make_plan, update
from rewards.compose import Part, WeightedSum
from tests.tiny_vlms import make
from vision.collector import AnswerCollector, RolloutConfig
from vision.data import Digits
from vision.encoding import Encoder
from vision.plans import AEPO, CURE, SPEAR, Plan, UloRL
from vision.plans.aepo import earliest, windows
from vision.plans.base import Wanted, branches, together, whole
from vision.plans.cure import critical, told_apart
from vision.policy import PolicyConfig, VisionPolicy
from vision.prompts import Direct

pytestmark = pytest.mark.timeout(240)

EXAMPLES = Digits().examples()[:24]
RUNTIME = Runtime(RuntimeConfig(device="cpu"), seed=3)
GRPO = Algorithm(GroupRelative(normalise=False), PPOClip(), TokenMean())
LENGTH = 10


class Vowels(RewardFunction):
    """How many vowels an answer has: answers differ, and one does not know how before they are drawn."""

    def __call__(self, samples: Samples) -> Scores:
        values = torch.tensor([float(sum(str(one).count(v) for v in "aeiou")) for one in samples.outputs])
        return Scores(values, torch.ones(len(samples), dtype=torch.bool))


class Places(RewardFunction):
    """Another reward for each row, so that every group has something to teach."""

    def __call__(self, samples: Samples) -> Scores:
        return Scores(torch.arange(float(len(samples))), torch.ones(len(samples), dtype=torch.bool))


class OnlyOf(RewardFunction):
    """Applies to no answer of the first group of four."""

    def __call__(self, samples: Samples) -> Scores:
        found = Vowels()(samples)
        return Scores(found.values * (torch.arange(len(samples)) >= 4), torch.arange(len(samples)) >= 4)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "smolvlm"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    make(request.param, path)
    return path


@pytest.fixture
def policy(folder: Path) -> VisionPolicy:
    return VisionPolicy.load(PolicyConfig(str(folder), freeze_vision=False)).eval()


def collector(
    policy: VisionPolicy, plan: Plan | None, group: int = 8, prompts: int = 2, reward: RewardFunction | None = None
) -> AnswerCollector:
    encode = Encoder(policy.processor, Direct(), ())
    rewards = WeightedSum({"vowels": Part(reward or Vowels())})
    return AnswerCollector(EXAMPLES, encode, rewards, RolloutConfig(prompts, group, LENGTH, plan=plan), RUNTIME)


def collected(made: AnswerCollector, policy: VisionPolicy, steps: int = 1, seed: int = 0) -> list[Rollout]:
    generator = torch.Generator().manual_seed(seed)
    with acting(policy):
        return [made.collect(policy, generator) for _ in range(steps)]


def asked(policy: VisionPolicy, group: int, prompts: int = 2) -> Wanted:
    encode = Encoder(policy.processor, Direct(), ())
    return Wanted(encode.many(EXAMPLES[:prompts]), group, LENGTH, torch.Generator().manual_seed(0))


def completions(rollout: Rollout) -> Tensor:
    found: Tensor = vars(rollout.transitions)["completions"]
    return found


def same(one: Rollout, other: Rollout) -> bool:
    fields = ("logprobs", "mask", "alive", "rewards", "group_ids", "prompt_ids")
    return torch.equal(completions(one), completions(other)) and all(
        torch.equal(vars(one)[name], vars(other)[name]) for name in fields
    )


PLANS = {
    "CURE": CURE(branches=3, candidates=5, characters=1),
    "AEPO": AEPO(window=2, threshold=0.4),
    "SPEAR": SPEAR(size=2, ramp=0),
}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
branching = pytest.mark.parametrize("plan", [PLANS["CURE"], PLANS["AEPO"]], ids=["CURE", "AEPO"])


# ---- what all of them keep ------------------------------------------------------------------------------------


@each_plan
def test_they_keep_the_contracts_of_a_collector_and_of_parity(policy: VisionPolicy, plan: Plan) -> None:
    check_collector(collector(policy, plan), policy, lambda: torch.Generator().manual_seed(0))
    last = collected(collector(policy, plan), policy, 3)[-1]
    check_policy(policy, last)
    difference = torch.where(last.mask, score(policy, last, 3) - last.logprobs, 0.0)
    assert float(difference.abs().max()) < 1e-5
    assert float(difference.exp().max()) == pytest.approx(1.0, abs=1e-5)


@each_plan
def test_groups_are_as_large_as_ever_and_told_by_their_prompt(policy: VisionPolicy, plan: Plan) -> None:
    made = collector(policy, plan)
    (rollout,) = collected(made, policy)
    assert rollout.group_ids.tolist() == [0] * 8 + [1] * 8
    assert [len(set(part.tolist())) for part in rollout.prompt_ids.split(8)] == [1, 1]
    assert [one.id for one in made.asked] == [EXAMPLES[int(n)].id for n in rollout.prompt_ids]
    assert torch.equal(rollout.returns(), rollout.reward_parts["vowels"])


@branching
def test_a_token_is_trained_in_one_row_and_a_branch_begins_as_its_root(policy: VisionPolicy, plan: Plan) -> None:
    (rollout,) = collected(collector(policy, plan), policy)
    told, first = completions(rollout), (rollout.alive & ~rollout.mask).sum(-1)
    begun = torch.arange(told.shape[1]) < first[:, None]
    assert torch.equal(rollout.mask, rollout.alive & ~begun)  # what is not trained stands in front
    assert bool(rollout.mask.any(-1).all())
    assert 0 < int((first > 0).sum()) < len(rollout)
    for row in (first > 0).nonzero()[:, 0].tolist():
        n = int(first[row])
        roots = [r for r in range(len(told)) if first[r] == 0 and rollout.group_ids[r] == rollout.group_ids[row]]
        matching = [r for r in roots if torch.equal(told[r, :n], told[row, :n])]
        assert matching
        assert any(torch.equal(rollout.logprobs[r, :n], rollout.logprobs[row, :n]) for r in matching)
        assert any(torch.equal(rollout.stats["entropy"][r, :n], rollout.stats["entropy"][row, :n]) for r in matching)


@branching
def test_what_a_branch_begins_with_has_no_say(policy: VisionPolicy, plan: Plan) -> None:
    (rollout,) = collected(collector(policy, plan), policy)
    found = []
    for garbage in (0.0, 7.0):
        changed = rollout.with_(logprobs=torch.where(rollout.mask, rollout.logprobs, garbage))
        optimizer = torch.optim.SGD(policy.parameters(), 0.0)
        metrics = update(policy, changed, GRPO, optimizer, RUNTIME, UpdateConfig(micro_rows=3))
        assert metrics["parity/logprob_diff_max"] < 1e-5
        found.append(metrics)
    assert found[0] == found[1]
    assert found[0]["update/grad_norm"] > 0
    plan_of = make_plan(RUNTIME.gather(rollout), GRPO)
    assert int(plan_of.counted.sum()) == int(rollout.mask.sum()) < int(rollout.alive.sum())
    assert not bool((plan_of.credit.advantages != 0)[~rollout.mask].any())


@each_plan
def test_a_group_to_which_no_reward_applies_teaches_nothing(policy: VisionPolicy, plan: Plan) -> None:
    made = collector(policy, plan, group=4, prompts=3, reward=OnlyOf())
    rollout = collected(made, policy, 2)[-1]
    dead = rollout.group_ids == 0
    assert not bool(rollout.alive[dead].any())
    assert not bool(rollout.mask[dead].any())
    credit = GRPO.assign(rollout).advantages
    assert not bool(credit[dead].any())
    assert bool(credit[~dead].any())
    kept = made.plan.state_dict().get("kept", [])
    assert not {one["number"] for one in kept} & set(rollout.prompt_ids[dead].tolist())


@each_plan
def test_a_collector_has_a_memory_of_its_own(policy: VisionPolicy, plan: Plan) -> None:
    before = plan.state_dict()
    collected(collector(policy, plan), policy, 2)
    assert plan.state_dict() == before


# ---- going on from a recorded beginning -------------------------------------------------------------------------


def test_branches_go_on_from_where_they_are_told_to(policy: VisionPolicy) -> None:
    wanted = asked(policy, 2)
    with acting(policy):
        roots = whole(policy, wanted)
        length = int(roots.drawn.alive.sum(-1).min())
        parents, first = torch.tensor([3, 0, 3]), torch.tensor([length - 1, 0, min(2, length - 1)])
        found = branches(policy, wanted, roots, parents, first)
    drawn = found.drawn
    assert drawn.transitions.prompt_index.tolist() == [1, 0, 1]
    begun = torch.arange(drawn.alive.shape[1]) < first[:, None]
    for name in ("logprobs", "alive"):
        old = torch.nn.functional.pad(vars(roots.drawn)[name][parents], (0, drawn.alive.shape[1]))
        assert torch.equal(vars(drawn)[name][begun], old[:, : drawn.alive.shape[1]][begun])
    assert torch.equal(found.own(), drawn.alive & ~begun)
    assert bool(found.own().any(-1).all())
    both = together([roots, found], policy.pad_id)
    assert both.drawn.transitions.prompt_index.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert both.first.tolist() == [0, 0, 0, 0, 0, int(first[0]), int(first[2])]
    everything = Rollout(
        both.drawn.transitions, both.drawn.logprobs, both.drawn.alive, both.drawn.alive,
        torch.zeros_like(both.drawn.logprobs), torch.ones_like(both.drawn.logprobs), both.drawn.transitions.prompt_index,
    )  # fmt: skip
    check_policy(policy, everything)  # of the beginnings too


def test_a_critic_knows_what_a_branch_begins_with(folder: Path) -> None:
    from mmrl.heads import CriticConfig

    policy = VisionPolicy.load(
        PolicyConfig(str(folder), critic=CriticConfig()), torch.Generator().manual_seed(0)
    ).eval()
    torch.nn.init.normal_(list(policy.critic_parameters())[-2], generator=torch.Generator().manual_seed(1))
    (rollout,) = collected(collector(policy, PLANS["CURE"]), policy)
    steps = torch.arange(rollout.mask.shape[1]).expand(len(rollout), -1)
    with acting(policy):
        values = policy(rollout.transitions, steps).values
    begun = rollout.alive & ~rollout.mask
    assert float(rollout.values[begun].abs().max()) > 0
    torch.testing.assert_close(rollout.values[rollout.alive], values[rollout.alive], atol=1e-5, rtol=1e-4)


# ---- CURE -------------------------------------------------------------------------------------------------------


def test_the_critical_token_is_one_of_the_most_open() -> None:
    entropy = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    special = torch.tensor([[False, True, False, False]])
    assert critical(entropy, ~special, 1, torch.Generator().manual_seed(0)).tolist() == [3]
    many, may = entropy.expand(4000, -1), (~special).expand(4000, -1)
    found = critical(many, may, 20, torch.Generator().manual_seed(0))
    assert set(found.tolist()) == {2, 3}  # the first token is none, though it may be
    assert float((found == 3).float().mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))
    nothing = torch.tensor([[True, False, False, False], [False, False, False, False]])
    assert critical(entropy.expand(2, -1), nothing, 2, torch.Generator().manual_seed(0)).tolist() == [0, 0]


def test_special_and_short_tokens_are_not_critical(policy: VisionPolicy) -> None:
    tokenizer = policy.processor.tokenizer
    tokens = torch.tensor([[tokenizer.eos_token_id, *tokenizer("even a").input_ids]])
    texts = [tokenizer.decode([t]).strip() for t in tokens[0].tolist()]
    for characters in (1, 2):
        found = told_apart(policy, tokens, characters)[0].tolist()
        assert found == [False, *(len(text) >= characters for text in texts[1:])]
    assert told_apart(policy, tokens, 1).sum() > told_apart(policy, tokens, 2).sum()


def test_cure_has_roots_and_branches_of_each(policy: VisionPolicy) -> None:
    with acting(policy):
        found = PLANS["CURE"].draw(policy, asked(policy, 8))
    first = found.first.view(2, 8)
    assert first[:, :2].tolist() == [[0, 0], [0, 0]]
    assert torch.equal(first[:, 2:5], first[:, 2:3].expand(-1, 3))  # those of a root begin at one token
    assert torch.equal(first[:, 5:8], first[:, 5:6].expand(-1, 3))
    assert bool((first[:, 2:] > 0).any())


def test_cure_without_branches_is_not_there(policy: VisionPolicy) -> None:
    (plain,), (found,) = (collected(collector(policy, plan), policy) for plan in (None, CURE(branches=0)))
    assert same(plain, found)


def test_cure_wants_whole_sets_of_branches() -> None:
    with pytest.raises(ValueError, match=r"rollout\.group is 10 and rollout\.plan\.branches is 3.* that 4 divides"):
        RolloutConfig(4, 10, 8, plan=CURE())
    with pytest.raises(ValueError, match=r"branches -1, candidates 20.*: give 0 or more"):
        CURE(branches=-1)


# ---- AEPO -------------------------------------------------------------------------------------------------------


def test_the_budget_is_shared_by_how_open_the_root_is() -> None:
    plan, nan = AEPO(beta=0.5), float("nan")
    entropy = torch.tensor(
        [[1.0, 1.0, 1.0], [3.0, 1.0, nan], [1.0, 3.0, 3.0], [2.0, nan, nan], [90.0, 0, 0], [0, 90, 90]]
    )
    sigmoid = [1 / (1 + math.exp(-0.5 * gap)) for gap in (0, 2, -2, 0)]
    assert plan.budget(entropy, 16).tolist() == [*(int(16 * s) for s in sigmoid), 16, 1]
    assert plan.budget(entropy, 16).tolist()[0] == 8


def test_branching_is_penalised_while_it_goes_on() -> None:
    plan = AEPO(threshold=0.5, weight=0.0, penalty=0.25)
    u = torch.tensor([[0.9] * 6])
    # 0.9 >= 0.5; 0.675 after one; 0.45 after two, which begins anew: 0.9, 0.675
    assert plan.branching(torch.zeros(1, 6), u).tolist() == [[False, True, True, False, True, True]]
    drawn = torch.rand(40000, 2, generator=torch.Generator().manual_seed(0))
    share = plan.branching(torch.zeros_like(drawn), drawn)[:, 1].float().mean()
    assert float(share) == pytest.approx(0.5, abs=0.01)
    risen = replace(plan, weight=0.2).branching(torch.tensor([[0.0, 1.0]]).expand_as(drawn), drawn)[:, 1].float().mean()
    assert float(risen) == pytest.approx(0.7, abs=0.01)  # 1 - threshold + weight x 1 nat
    fallen = replace(plan, weight=0.2).branching(torch.tensor([[1.0, 0.0]]).expand_as(drawn), drawn)[:, 1]
    assert float(fallen.float().mean()) == pytest.approx(0.3, abs=0.01)
    ended = plan.branching(torch.tensor([[0.0, float("nan")]]), torch.ones(1, 2))
    assert ended.tolist() == [[False, False]]


def test_five_branches_in_a_row_leave_a_third() -> None:
    """P(branch | l) = P(u (1 - 0.05 l) >= 0.5): 1/2 at first, 1/3 after five."""
    plan = AEPO(penalty=0.05, weight=0.0)
    u = torch.ones(40000, 7)
    u[:, 6] = torch.rand(40000, generator=torch.Generator().manual_seed(0))
    found = plan.branching(torch.zeros_like(u), u)
    assert bool(found[:, 1:6].all())
    assert float(found[:, 6].float().mean()) == pytest.approx(1 / 3, abs=0.01)


def test_entropy_of_windows_is_a_mean_of_what_was_said() -> None:
    entropy = torch.tensor([[1.0, 2.0, 3.0, 9.0, 9.0]])
    alive = torch.tensor([[True, True, True, False, False]])
    found = windows(entropy, alive, 2)
    assert found[0, :2].tolist() == [1.5, 3.0]
    assert bool(found[0, 2].isnan())


def test_a_budget_goes_to_the_earliest_branches() -> None:
    wanted = torch.tensor([[False, True, True], [False, False, True], [False, True, True]])
    rows, steps = earliest(wanted, torch.tensor([0, 0, 1]), torch.tensor([2, 1]))
    assert sorted(zip(rows.tolist(), steps.tolist(), strict=True)) == [(0, 1), (0, 2), (2, 1)]
    rows, _ = earliest(wanted, torch.tensor([0, 0, 1]), torch.tensor([0, 0]))
    assert len(rows) == 0


def test_aepo_spends_what_entropy_allows_and_fills_up(policy: VisionPolicy) -> None:
    first = {}
    for name, plan in {
        "never": AEPO(window=2, threshold=2.0),
        "always": AEPO(window=2, threshold=0.0, beta=0.0),
    }.items():
        with acting(policy):
            found = plan.draw(policy, asked(policy, 8))
        assert found.drawn.transitions.prompt_index.tolist() == [0] * 8 + [1] * 8
        first[name] = found.first.view(2, 8)
    assert not bool(first["never"].any())
    assert (first["always"] > 0).sum(-1).max() == 4  # k - m at sigmoid(0)
    assert set((first["always"] % 2).flatten().tolist()) == {0}


def test_aepo_wants_room_behind_its_first_window() -> None:
    with pytest.raises(ValueError, match=r"max_new_tokens is 20 and rollout\.plan\.window is 20.*a smaller one"):
        RolloutConfig(4, 8, 20, plan=AEPO())
    with pytest.raises(ValueError, match=r"rollout\.plan has window 0"):
        AEPO(window=0)


# ---- SPEAR ------------------------------------------------------------------------------------------------------


def test_the_weight_of_what_is_replayed_rises() -> None:
    plan = SPEAR(coef=2.0, ramp=200)
    assert [plan.gamma(step) for step in (0, 100, 200, 900)] == pytest.approx([0.0, 1.0, 2.0, 2.0])


def test_successes_come_back_once_as_they_were_drawn(policy: VisionPolicy) -> None:
    made = collector(policy, SPEAR(size=3, ramp=0))
    first, second, third = collected(made, policy, 3)
    assert not bool(first.replayed.any())
    history = [float(part.mean()) for part in first.returns().split(8)]
    usual = sum(history) / 2  # the median of two
    centred = first.returns() - torch.tensor(history).repeat_interleave(8)
    good = (centred > 1e-6) & (first.returns() - usual > 1e-6)
    assert int(good.sum()) > 1.5 * 3  # else this test has nothing to look at
    old = rows_of(second, second.replayed.nonzero()[:, 0])
    assert len(old) == 3
    assert len(second) == 16 + 3
    assert torch.equal(second.mask[second.replayed], second.alive[second.replayed])
    drawn = {tuple(completions(first)[row][first.alive[row]].tolist()): row for row in good.nonzero()[:, 0].tolist()}
    for row in range(3):
        source = drawn[tuple(completions(old)[row][old.alive[row]].tolist())]
        assert old.logprobs[row][old.alive[row]].tolist() == first.logprobs[source][first.alive[source]].tolist()
        assert old.stats["entropy"][row][old.alive[row]].tolist() == pytest.approx(
            first.stats["entropy"][source][first.alive[source]].tolist()
        )
        assert int(old.prompt_ids[row]) == int(first.prompt_ids[source])
        assert float(old.returns()[row]) == pytest.approx(float(first.returns()[source]) - usual, abs=1e-6)
    assert len(set(second.group_ids[second.replayed].tolist()) | {0, 1}) == 5
    kept = [one["step"] for one in made.plan.state_dict()["kept"]]
    assert 0 not in kept  # all that was kept has had its turn
    assert third.replayed is not None


def test_a_replayed_ratio_is_to_the_policy_of_then(policy: VisionPolicy) -> None:
    """After a step of the weights fresh rows have ratio 1 and replayed ones have not, with `rescore` too."""
    made = collector(policy, SPEAR(size=2, ramp=0))
    collected(made, policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    policy.weights_changed()
    (rollout,) = collected(made, policy, seed=1)
    assert int(rollout.replayed.sum()) == 2
    moved = torch.where(rollout.mask, score(policy, rollout, 4) - rollout.logprobs, 0.0).abs().amax(-1)
    assert float(moved[~rollout.replayed].max()) < 1e-5
    assert float(moved[rollout.replayed].min()) > 1e-3
    start, found = {name: tensor.clone() for name, tensor in policy.state_dict().items()}, []
    for rescore in (False, True):
        policy.load_state_dict(start)
        optimizer = torch.optim.SGD(policy.parameters(), 0.1)
        config = UpdateConfig(rescore=rescore, max_grad_norm=1e9, micro_rows=5)
        metrics = update(policy, rollout, GRPO, optimizer, RUNTIME, config)
        assert metrics["parity/logprob_diff_max"] < 1e-5
        found.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)
    flat = torch.cat([start[name].flatten() for name, _ in policy.named_parameters()])
    assert float((found[0] - flat).abs().max()) > 1e-4


def test_spear_without_weight_is_not_there(policy: VisionPolicy) -> None:
    plain, found = (collected(collector(policy, plan), policy, 3) for plan in (None, SPEAR(size=1, coef=0.0)))
    for one, other in zip(plain, found, strict=True):
        assert same(one, other)
        assert torch.equal(GRPO.assign(one).advantages, GRPO.assign(other).advantages)


def test_what_is_kept_is_bounded_and_grows_old(policy: VisionPolicy) -> None:
    made = collector(policy, SPEAR(size=2, coef=0.0, tolerance=1))
    collected(made, policy, 4)
    kept = made.plan.state_dict()["kept"]
    assert len(kept) == 8
    wide = collector(policy, SPEAR(size=100, tolerance=2, ramp=0))
    collected(wide, policy, 5)
    # nothing is due; before a step what is older than 2 steps goes, and its own successes come after that
    assert {one["step"] for one in wide.plan.state_dict()["kept"]} == {2, 3, 4}


def test_a_resumed_buffer_goes_on_as_it_would_have(policy: VisionPolicy) -> None:
    import json

    made, generator = collector(policy, SPEAR(size=3, ramp=4)), torch.Generator().manual_seed(0)
    with acting(policy):
        made.collect(policy, generator)
        state, randomness = json.loads(json.dumps(made.state_dict())), generator.get_state()
        wanted = [made.collect(policy, generator) for _ in range(2)]
        other, again = collector(policy, SPEAR(size=3, ramp=4)), torch.Generator()
        other.load_state_dict(state)
        again.set_state(randomness)
        found = [other.collect(policy, again) for _ in range(2)]
    assert any(bool(rollout.replayed.any()) for rollout in wanted)
    for one, two in zip(wanted, found, strict=True):
        assert same(one, two)
        assert torch.equal(one.replayed, two.replayed)
    assert json.loads(json.dumps(other.state_dict())) == json.loads(json.dumps(made.state_dict()))


def test_usual_is_the_median_of_the_card() -> None:
    part = HistoryMedian()
    assert part.usual is None
    part.load_state_dict({"means": [0.2, 0.4, 0.9]})
    assert part.usual == 0.4
    assert [reward - part.usual > 0 for reward in (1.0, 0.3)] == [True, False]


# ---- UloRL ------------------------------------------------------------------------------------------------------


class Ending(VisionPolicy):
    """Ends answers now and then, so that they are of many lengths."""

    def log_softmax(self, logits: Tensor) -> Tensor:
        likely = torch.zeros(logits.shape[-1]).index_fill(0, torch.tensor(self.eos_ids), 3.5)
        return super().log_softmax(logits + likely)


@pytest.fixture
def ending(folder: Path) -> VisionPolicy:
    policy = VisionPolicy.load(PolicyConfig(str(folder), freeze_vision=False)).eval()
    policy.__class__ = Ending
    return policy


def moved(policy: VisionPolicy, seed: int) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    policy.weights_changed()


SEGMENTS = UloRL(segment=3)


def test_answers_go_on_in_the_next_step(ending: VisionPolicy) -> None:
    """What is open is no row of the rollout that lives; it comes back word for word, with more behind it."""
    made, generator = collector(ending, SEGMENTS, group=3, prompts=4), torch.Generator().manual_seed(0)
    went_on = finished = 0
    opened: list[dict] = []
    for step in range(6):
        with acting(ending):
            rollout = made.collect(ending, generator)
        assert len(rollout) == 12
        assert rollout.group_ids.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
        alive = rollout.alive.any(-1).view(4, 3)
        assert torch.equal(alive.any(-1), alive.all(-1))  # groups are whole
        assert bool(alive.any())
        told = completions(rollout)
        for slot, group in enumerate(opened):  # those that were open keep the first places
            for place, kept in enumerate(group):
                row, n = 3 * slot + place, len(kept["tokens"])
                assert told[row, :n].tolist() == list(kept["tokens"])
                assert int(rollout.prompt_ids[row]) == kept["number"]
                if bool(alive[slot, place]):
                    assert rollout.behaviour_logprobs[row, :n].tolist() == list(kept["logprobs"])
                    went_on += int(rollout.alive[row].sum()) > n
        lengths = rollout.alive.sum(-1)[alive.flatten()]
        last = told[alive.flatten()].gather(-1, (lengths - 1)[:, None])[:, 0]
        assert all(int(n) == LENGTH or int(t) in ending.eos_ids for n, t in zip(lengths, last, strict=True))
        check_policy(ending, rollout)
        moved(ending, step)
        opened = made.plan.state_dict()["open"]
        finished += int(alive.all(-1).sum())
        assert len(opened) == 4 - int(alive.all(-1).sum())
    assert went_on > 0
    assert finished >= 6


def test_segments_are_on_policy_and_remember_who_drew_them(ending: VisionPolicy) -> None:
    made, older = collector(ending, SEGMENTS, group=3, prompts=4, reward=Places()), 0.0
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        with acting(ending):
            rollout = made.collect(ending, generator)
        difference = torch.where(rollout.mask, score(ending, rollout, 5) - rollout.logprobs, 0.0)
        assert float(difference.abs().max()) < 1e-5
        gap = torch.where(rollout.mask, rollout.logprobs - rollout.behaviour_logprobs, 0.0).abs().amax(-1)
        older = max(older, float(gap.max()))
        for rescore in (False, True):
            optimizer = torch.optim.SGD(ending.parameters(), 0.0)
            found = update(ending, rollout, GRPO, optimizer, RUNTIME, UpdateConfig(rescore=rescore, micro_rows=5))
            assert found["parity/logprob_diff_max"] < 1e-5
        moved(ending, step)
    assert older > 1e-3


def test_a_segment_as_long_as_an_answer_is_not_there(ending: VisionPolicy) -> None:
    plain, found = (collected(collector(ending, plan), ending, 2) for plan in (None, UloRL(segment=LENGTH)))
    for one, other in zip(plain, found, strict=True):
        assert same(one, other)
        assert torch.equal(other.behaviour_logprobs, other.logprobs)


def test_open_answers_are_resumed(ending: VisionPolicy) -> None:
    made = collector(ending, SEGMENTS, group=3, prompts=4)
    check_collector(made, ending, lambda: torch.Generator().manual_seed(0))
    collected(made, ending)
    assert made.plan.state_dict()["open"]  # else there was nothing to resume
    with pytest.raises(ValueError, match=r"rollout\.plan has segment 0: give 1 or more"):
        UloRL(segment=0)


# ---- what does not go together --------------------------------------------------------------------------------


def test_what_does_not_go_together_is_refused(policy: VisionPolicy) -> None:
    with pytest.raises(ValueError, match=r"rollout\.turns is 2 and rollout\.plan is CURE.*set turns to 1, or plan"):
        RolloutConfig(4, 4, 8, turns=2, plan=CURE())
    with pytest.raises(ValueError, match=r"rollout\.plan has size 0"):
        SPEAR(size=0)
    two = Runtime(RuntimeConfig(device="cpu"), seed=0)
    two.world = 2
    with pytest.raises(
        ValueError, match=r"rollout\.plan is SPEAR on 2 processes.*: run it on one, or set plan to null"
    ):
        AnswerCollector(EXAMPLES, Encoder(policy.processor, Direct(), ()), Vowels(), RolloutConfig(plan=SPEAR()), two)


RECIPE = Path(__file__).resolve().parent.parent / "configs/vision/cls_rl.yaml"


def test_a_plan_is_named_in_a_config() -> None:
    plan = load(str(RECIPE), ["rollout.plan=vision.plans.CURE", "rollout.plan.branches=1"]).experiment.rollout.plan
    assert plan == CURE(branches=1)
    assert load(str(RECIPE)).experiment.rollout.plan is None
    with pytest.raises(ConfigError, match=r"rollout\.group is 8 and rollout\.plan\.branches is 2"):
        load(str(RECIPE), ["rollout.plan=vision.plans.CURE", "rollout.plan.branches=2"])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            ["tool=vision.rrvf.RenderAndCompare", "tool.renderer=rewards.render.Charts"],
            r"rollout\.plan is SPEAR and `tool` is set: .* set one to null",
        ),
        (["synthetic.generator=vision.synthetic.Backgrounds"], r"rollout\.plan is SPEAR and `synthetic` is set"),
        (
            ["train.resample=2"],
            r"rollout\.plan is SPEAR, which remembers .* train\.resample is 2: .* set resample to 0",
        ),
        (["policy.critic.widths=[8]"], r"rollout\.plan is SPEAR, whose rows .*widths=.*: nobody recorded"),
    ],
)
def test_a_plan_is_refused_before_anything_runs(more: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(str(RECIPE), ["rollout.plan=vision.plans.SPEAR", *more])
