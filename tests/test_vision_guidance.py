"""Plans that choose what is asked and what is told: DRIVE's phases of hard prompts, RGR-GRPO's refined answers.

What is measured is that they do what they say, not that anything learns more.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmrl.advantages import GroupRelative
from mmrl.cli import main
from mmrl.config import load
from mmrl.scoring import score
from mmrl.surrogates import GSPO, PACS, Guided, PPOClip
from mmrl.testing import check_collector, check_policy
from mmrl.types import RewardFunction, Samples, Scores
from rewards.rubric import Criterion, Rubric
from tests.test_surrogates import batch_of, gradient
from tests.test_vision_plans import EXAMPLES, Vowels, collected, collector, same
from tests.tiny_vlms import make
from vision.collector import AnswerCollector
from vision.plans import HardPhases, Plan, Refined, refined
from vision.policy import PolicyConfig, VisionPolicy
from vision.transitions import Prompt

pytestmark = pytest.mark.timeout(240)
GROUP = 4


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> VisionPolicy:
    path = tmp_path_factory.mktemp("qwen2_5_vl")
    make("qwen2_5_vl", path)
    return VisionPolicy.load(PolicyConfig(str(path), freeze_vision=False)).eval()


# ---- hard prompts, by phases --------------------------------------------------------------------------------------


class Known(RewardFunction):
    """Example i of the pool passes with i mod 5 of its first four answers."""

    def __call__(self, samples: Samples) -> Scores:
        seen, values = Counter[str](), []
        for name in samples.ids:
            values.append(float(seen[name] % GROUP < number(name) % (GROUP + 1)))
            seen[name] += 1
        return Scores(torch.tensor(values), torch.ones(len(values), dtype=torch.bool))


def number(name: str) -> int:
    return next(place for place, example in enumerate(EXAMPLES) if example.id == name)


def phases(policy: VisionPolicy, **more: object) -> AnswerCollector:
    return collector(policy, HardPhases(**more), GROUP, prompts=8, reward=Known())  # type: ignore[arg-type]


def asked_in(made: AnswerCollector, policy: VisionPolicy) -> list[int]:
    collected(made, policy)
    return [number(example.id) for example in made.asked[::GROUP]]


def test_each_phase_asks_what_is_left_and_keeps_the_hardest(policy: VisionPolicy) -> None:
    made = phases(policy, phases=2)
    first = [n for _ in range(3) for n in asked_in(made, policy)]
    assert sorted(first) == list(range(24))
    assert made.measured() == {"phases/number": 1.0, "phases/prompts": 12.0}
    hardest = [n for rate in (0, 1, 2) for n in range(24) if n % 5 == rate][:12]  # rates 0 and 1/4, two of 1/2
    second = [n for _ in range(2) for n in asked_in(made, policy)]
    assert set(second[:12]) == set(hardest) and second[12:] == second[:4]
    assert made.measured() == {"phases/number": 2.0, "phases/prompts": 6.0}
    last = [asked_in(made, policy) for _ in range(4)]
    assert {n for step in last for n in step} == {0, 5, 10, 15, 20, 1}
    assert made.measured()["phases/prompts"] == 6.0  # nothing is narrowed after the last phase


def test_where_none_would_be_left_all_stay(policy: VisionPolicy) -> None:
    class Always(Known):
        def __call__(self, samples: Samples) -> Scores:
            return Scores(torch.ones(len(samples)), torch.ones(len(samples), dtype=torch.bool))

    made = collector(policy, HardPhases(), GROUP, prompts=24, reward=Always())
    asked_in(made, policy)
    assert made.measured() == {"phases/number": 1.0, "phases/prompts": 24.0}
    assert sorted(asked_in(made, policy)) == list(range(24))


def test_phases_go_on_where_they_stood(policy: VisionPolicy) -> None:
    one, other = phases(policy), phases(policy)
    for _ in range(4):
        asked_in(one, policy)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for _ in range(3):
        assert asked_in(one, policy) == asked_in(other, policy)
    assert one.state_dict() == other.state_dict()


def test_phases_are_refused_where_they_cannot_be(policy: VisionPolicy) -> None:
    with pytest.raises(ValueError, match=r"rollout\.plan has phases 0"):
        HardPhases(phases=0)
    with pytest.raises(ValueError, match="set resample to 0"):
        load("vision/drive_hard", ["train.resample=2"])


def test_the_recipe_of_the_second_stage_begins_from_the_first(tmp_path: Path) -> None:
    small = ["data.protocol.evaluation=10", "evaluate.samples=0", "logging.progress=false", "save.every=null"]
    broad, hard = str(tmp_path / "broad"), tmp_path / "hard"
    assert main(["train", "vision/cls_rl_nothink", "train.steps=1", "evaluate.every=null", *small, "--run", broad]) == 0
    more = ["data.protocol.pool=8", "rollout.group=8", "rollout.prompts=4", "train.steps=5"]
    more.append("rollout.plan.focus.drop_solved=false")  # so that the numbers do not depend on the answers
    assert main(["train", "vision/drive_hard", *more, *small, "--from", broad, "--run", str(hard)]) == 0
    lines = [json.loads(line) for line in (hard / "metrics.jsonl").read_text().splitlines()]
    told = [(line["phases/number"], line["phases/prompts"]) for line in lines if "phases/number" in line]
    assert told[0] == (0.0, 8.0) and told[1] == (1.0, 4.0) and told[2] == (2.0, 2.0) and told[4] == (4.0, 2.0)


# ---- refined answers ----------------------------------------------------------------------------------------------

RUBRIC = Rubric({f"{n}": Criterion(Vowels(), least=n, says=f"have {n} vowels") for n in (1, 3, 5, 7, 9)})


def refining(policy: VisionPolicy, plan: Plan | None, rubric: RewardFunction = RUBRIC) -> AnswerCollector:
    return collector(policy, plan, 2, prompts=12, reward=rubric)


def test_a_refined_answer_joins_the_group_that_it_betters(
    policy: VisionPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Prompt] = []
    draw = refined.draw

    def spied(*given: object) -> object:
        shown.extend(given[1])  # type: ignore[arg-type]
        return draw(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(refined, "draw", spied)
    made = refining(policy, Refined())
    (rollout,) = collected(made, policy)
    (plain,) = collected(refining(policy, None), policy)
    fresh, guided = slice(0, 24), range(24, len(rollout))
    assert len(guided) > 0 and len(made.asked) == len(made.conversations) == len(rollout)
    assert torch.equal(rollout.returns()[fresh], plain.returns())
    told = policy.processor.tokenizer.decode(shown[0].tokens)
    assert "It fails the following" in told and "have 9 vowels" in told
    for row in guided:
        group = rollout.group_ids == rollout.group_ids[row]
        own = group.clone()
        own[row] = False
        assert rollout.returns()[row] > rollout.returns()[own].max()
        assert rollout.prompt_ids is not None and len(rollout.prompt_ids[group].unique()) == 1
        transitions = rollout.transitions.rows(torch.tensor([row]))
        (prompt,) = vars(transitions)["prompts"]
        assert torch.equal(prompt.tokens, made.encode(made.asked[row]).tokens)  # the question, without what was told
        assert float(RUBRIC(Samples([made.conversations[row].answer])).values[0]) == float(rollout.returns()[row])
    assert bool((rollout.stats["guided"] > 0).any(1)[fresh].logical_not().all())
    assert torch.equal(rollout.stats["guided"][24:] > 0, rollout.alive[24:])


def test_refined_answers_keep_parity_and_are_compared_with_their_whole_group(policy: VisionPolicy) -> None:
    made = refining(policy, Refined())
    (rollout,) = collected(made, policy)
    difference = torch.where(rollout.mask, score(policy, rollout, 8) - rollout.logprobs, 0.0)
    assert float(difference.abs().max()) < 1e-5
    credit = GroupRelative(normalise=False)(rollout).advantages[:, 0]
    sums = [float(credit[rollout.group_ids == group].sum()) for group in rollout.group_ids.unique()]
    assert sums == pytest.approx([0.0] * 12, abs=1e-5)
    assert bool((credit[24:] > 0).all())
    check_policy(policy, rollout)


def test_without_anything_to_refine_a_rollout_is_as_ever(policy: VisionPolicy) -> None:
    enough = Refined(enough=1e-6)  # any rubric above 0 will do, and one vowel is in every group
    easy = Rubric({"any": Criterion(Vowels(), least=0)})
    (rollout,) = collected(refining(policy, enough, easy), policy)
    (plain,) = collected(refining(policy, None, easy), policy)
    assert same(rollout, plain) and not rollout.stats["guided"].any()
    check_collector(refining(policy, enough, easy), policy, lambda: torch.Generator().manual_seed(0))


def test_prompts_that_do_not_fit_are_not_refined(policy: VisionPolicy) -> None:
    made = refining(policy, Refined())
    made.encode.check(EXAMPLES)
    made.encode = replace(made.encode, max_prompt_tokens=max(made.encode.lengths.values()))
    (rollout,) = collected(made, policy)
    assert len(rollout) == 24


def test_refinement_needs_a_rubric(policy: VisionPolicy) -> None:
    with pytest.raises(ValueError, match=r"rewards has \['vowels'\]: give a rewards\.rubric\.Rubric"):
        collected(refining(policy, Refined(), Vowels()), policy)
    with pytest.raises(ValueError, match="enough 0"):
        Refined(enough=0)


# ---- what they are trained by -------------------------------------------------------------------------------------


def test_guided_decisions_move_by_the_shaped_probability() -> None:
    """df/dp = g / (p + g)^2: 82.6 times as much at .01 as at .9."""
    logprobs = torch.tensor([[0.01, 0.9]], dtype=torch.float64).log()
    batch = replace(batch_of(logprobs, torch.ones_like(logprobs)), stats={"guided": torch.ones_like(logprobs)})
    found = gradient(Guided(), logprobs, batch) / logprobs.exp()  # by p
    assert (-found).tolist()[0] == pytest.approx([0.1 / 0.11**2, 0.1])
    assert float(found[0, 0] / found[0, 1]) == pytest.approx(82.6, abs=0.1)


def test_what_is_not_guided_is_left_to_its_own_surrogate() -> None:
    old = torch.log(torch.rand(3, 4, generator=torch.Generator().manual_seed(0)))
    advantages = torch.tensor([1.0, -1.0, 2.0])[:, None].expand(3, 4)
    plain = batch_of(old, advantages)
    logprobs, wanted = old + math.log(1.1), PPOClip()(old + math.log(1.1), plain)[0]
    for stats in ({}, {"guided": torch.zeros(3, 4)}):
        assert torch.equal(Guided()(logprobs, replace(plain, stats=stats))[0], wanted)
    some = torch.tensor([0.0, 1.0, 0.0])[:, None].expand(3, 4)
    found = Guided()(logprobs, replace(plain, stats={"guided": some}))[0]
    assert torch.equal(found[[0, 2]], wanted[[0, 2]])
    p = logprobs[1].exp()
    assert torch.allclose(found[1], p / (p + 0.1))
    for own in (GSPO(), PACS()):
        with pytest.raises(ValueError, match=r"Guided\.own is"):
            Guided(own=own)
    with pytest.raises(ValueError, match=r"Guided\.gamma is 0"):
        Guided(gamma=0)
