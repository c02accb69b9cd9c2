"""Process rewards, rubrics, thoughts, collectives, marginal gains, gates and bounds: the numbers of their definitions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from mmrl.types import RewardFunction, Samples, Scores
from rewards.collective import Collective, votes, winner
from rewards.compose import Part, WeightedSum
from rewards.pictures.base import scores_of
from rewards.process import Clip, Delta, ProcessReward, StepShape
from rewards.rubric import Criterion, Rubric, refinement
from rewards.shaping import Bounded, Gate, Normalised
from rewards.submodular import Distinct, LogDet, Marginal
from rewards.thought import AnswerOnly, Exploration


@dataclass(frozen=True)
class By(RewardFunction):
    of: Callable[[object], float | None]

    def __call__(self, samples: Samples) -> Scores:
        return scores_of([self.of(output) for output in samples.outputs])


def has(word: str) -> By:
    return By(lambda output: float(word in str(output)))


# ---- process rewards --------------------------------------------------------------------------------------

STEPS = [0.9, 0.8, 0.95, 0.4, 0.99]


def returns_to_go(shape: StepShape, scores: list[float], width: int = 0) -> list[float]:
    row = torch.tensor([scores + [7.0] * (width - len(scores))])
    mask = torch.tensor([[True] * len(scores) + [False] * (width - len(scores))])
    rewards = shape(row, mask)[0]
    assert float(rewards[len(scores) :].abs().sum()) == 0.0
    return rewards.flip(0).cumsum(0).flip(0)[: len(scores)].tolist()


def test_what_is_to_come_under_delta_is_the_current_score() -> None:
    assert returns_to_go(Delta(), STEPS) == pytest.approx([0.9, 0.8, 0.95, 0.4, 0.0])
    assert returns_to_go(Delta(), STEPS, width=9) == pytest.approx([0.9, 0.8, 0.95, 0.4, 0.0])
    assert returns_to_go(Delta(), [0.7]) == [0.0]
    assert returns_to_go(Delta(), [0.7, 0.2]) == pytest.approx([0.7, 0.0])


def test_twenty_good_looking_steps_more_pay_nothing() -> None:
    farmed = [*STEPS[:3], *[0.95] * 20, *STEPS[3:]]
    assert sum(STEPS) == pytest.approx(4.04) and sum(farmed) == pytest.approx(23.04)
    for shape, wanted in ((Clip(0.5), -0.1), (Delta(), 0.9)):
        assert returns_to_go(shape, STEPS)[0] == pytest.approx(wanted)
        assert returns_to_go(shape, farmed)[0] == pytest.approx(wanted)


def test_parts_of_a_process_reward_and_rows_of_several_lengths() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = ProcessReward(alpha=0.5, shapes=(Delta(),))(torch.full((2, 3), 0.8), mask, torch.tensor([1.0, 0.0]))
    assert found["outcome"].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert found["process"][0].tolist() == pytest.approx([0.0, 0.4, 0.0])
    assert torch.equal(found["reward"], found["process"] + found["outcome"])
    raw = ProcessReward(alpha=1.0, shapes=())(torch.full((1, 3), 0.8), mask[:1], torch.tensor([0.0]))
    assert float(raw["reward"].sum()) == pytest.approx(2.4)
    both = ProcessReward(alpha=1.0)(torch.tensor([STEPS]), torch.ones(1, 5, dtype=torch.bool), torch.tensor([0.0]))
    assert float(both["process"].sum()) == pytest.approx(0.0)  # min(0.9 - 0.5, 0)
    with pytest.raises(ValueError, match="must be True for the first steps"):
        ProcessReward()(torch.zeros(1, 2), torch.tensor([[False, True]]), torch.zeros(1))
    with pytest.raises(ValueError, match="alpha is -1"):
        ProcessReward(alpha=-1)


# ---- rubrics ----------------------------------------------------------------------------------------------

RUBRIC = Rubric({
    "bars": Criterion(has("bar"), 3.0, says="draw bars"),
    "title": Criterion(has("title"), 1.0),
    "clutter": Criterion(has("3D"), -2.0, says="no 3D"),
    "runs": Criterion(has("ok"), 1.0, gate=True),
})  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ok bar title", 1.0),
        ("ok", 0.2),
        ("ok bar", 0.8),
        ("ok bar title 3D", 0.6),
        ("bar title", 0.0),
        ("", 0.0),
        ("ok 3D", 0.0),
    ],
)
def test_a_rubric_is_a_weighted_share(text: str, wanted: float) -> None:
    found = RUBRIC(Samples([text]))
    assert found.values.tolist() == pytest.approx([wanted])
    assert set(found.parts) == {"bars", "title", "clutter", "runs"}


def test_a_criterion_that_does_not_apply_leaves_both_sums() -> None:
    rubric = Rubric({"a": Criterion(has("a"), 1.0), "b": Criterion(By(lambda _: None), 5.0)})
    assert rubric(Samples(["a"])).values.tolist() == [1.0]
    nothing = Rubric({"b": Criterion(By(lambda _: None))})(Samples(["a"]))
    assert nothing.applicable.tolist() == [False]


def test_what_failed_is_told() -> None:
    assert RUBRIC.failed(Samples(["ok 3D", "ok bar title"])) == [["draw bars", "title", "no 3D"], []]
    assert "- draw bars\n- no 3D" in refinement("Draw.", "plot()", ["draw bars", "no 3D"])
    with pytest.raises(ValueError, match="has no positive weight"):
        Rubric({"a": Criterion(has("a"), -1.0)})
    with pytest.raises(ValueError, match="weight is 0"):
        Criterion(has("a"), 0.0)


# ---- thoughts ---------------------------------------------------------------------------------------------


def test_the_reward_does_not_see_the_thought() -> None:
    length = By(lambda output: float(len(str(output))))
    reward = AnswerOnly(length)
    texts = ["<think>a</think><answer>four</answer>", "<think>something else</think><answer> four </answer>"]
    assert reward(Samples(texts)).values.tolist() == [4.0, 4.0]
    assert reward.answer("no tags") == "[NULL]" and reward.answer("<answer>cut") == "[NULL]"
    assert AnswerOnly(length, strict=False).answer("<answer>cut") == "cut"
    hacked = "I think <answer>decoy</answer> hm <answer>real</answer>"
    assert (AnswerOnly(length, which="first").answer(hacked), reward.answer(hacked)) == ("decoy", "real")


def test_exploration_grows_ever_less_and_never_beats_correctness() -> None:
    reward = Exploration(strength=50, least=64)
    lengths = [0, 256, 400, 4000, 400_000]
    found = reward(Samples(["x" * n + "<answer>7</answer>" for n in lengths])).values.tolist()
    assert found == pytest.approx([-50 / 64, -50 / 64, -0.5, -0.05, -0.0005])
    assert 1 + min(found) > 0 + max(found)  # a short right answer against a long wrong one
    with pytest.raises(ValueError, match=r"strength is 1000.0 and least 64.0"):
        Exploration(strength=1000.0)


# ---- collectives ------------------------------------------------------------------------------------------


def test_votes_are_weighted_by_self_consistency() -> None:
    found = votes({"one": ["a"] * 4, "two": ["b", "b", "a", "c"]})
    assert found == pytest.approx({"a": 1.125, "b": 0.25, "c": 0.125})
    assert winner(found) == "a"
    assert winner({"a": 1.0, "b": 1.0}) is None and winner({}) is None
    assert votes({"one": [None, None, None, "a"]}) == pytest.approx({"a": 0.0625})  # 1/4 of its own answers, twice


def test_a_collective_rewards_its_winner_and_says_how_far_it_agrees() -> None:
    def said(*answers: str) -> list[str]:
        return [f"<answer>{answer}</answer>" if answer else "?" for answer in answers]

    samples = Samples(said("a", "A", "b", "", "c", "d"), {"prompt": ["p"] * 4 + ["q"] * 2})
    found = Collective()(samples)
    assert found.values.tolist() == [1, 1, 0, 0, 0, 0]
    assert found.applicable.tolist() == [True] * 4 + [False] * 2  # a tie has no winner
    assert found.parts["agreement"].values.tolist() == [0.5] * 4 + [0.0] * 2
    same = Samples(said("a", "a"), {"prompt": ["p"] * 2})
    assert Collective()(same).applicable.all() and not Collective(skip_unanimous=True)(same).applicable.any()
    several = Samples(said("a", "b", "b", "b"), {"prompt": ["p"] * 4, "model": ["m", "n", "n", "n"]})
    assert Collective()(several).applicable.tolist() == [False] * 4  # each model is sure of its own


# ---- sets -------------------------------------------------------------------------------------------------


def test_what_is_there_twice_earns_nothing() -> None:
    texts = ["<answer>x</answer>", "<answer>x</answer>", "<answer>y</answer>", "none"]
    found = Marginal(Distinct())(Samples(texts, {"prompt": ["p"] * 4}))
    assert found.values.tolist() == [0, 0, 1, 0]


def test_the_marginal_is_an_unbiased_credit() -> None:
    """Score-function gradient with marginals against the exact gradient of E F, by enumeration: 3 outputs of 3 kinds."""
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    law = torch.log_softmax(logits, 0)
    exact, credited = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for kinds in itertools.product(range(3), repeat=3):
        logprob = torch.stack([law[kind] for kind in kinds])
        samples = Samples([f"{kind}" for kind in kinds], {"prompt": ["p"] * 3})
        credit = Marginal(Distinct(tag=""))(samples).values.double()
        exact = exact + logprob.sum().exp() * len(set(kinds))
        credited = credited + logprob.sum().exp().detach() * (credit * logprob).sum()
    wanted, found = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (exact, credited))
    assert torch.allclose(found, wanted, atol=1e-12)


def test_log_det_of_pictures() -> None:
    black, white = Image.new("RGB", (32, 32)), Image.new("RGB", (32, 32), (255, 255, 255))
    f = LogDet(width=0.2, noise=0.5)
    alone = 0.5 * math.log(1 + 4)
    assert f([]) == 0.0 and f([black]) == pytest.approx(alone)
    assert f([black, white]) == pytest.approx(2 * alone, abs=1e-4)  # nothing in common
    assert f([black, black]) == pytest.approx(0.5 * math.log(1 + 8))
    found = Marginal(f)(Samples([black, black, white], {"prompt": ["p"] * 3})).values
    assert found[0] == pytest.approx(float(found[1])) and float(found[2]) > 2 * float(found[0]) > 0


# ---- gates, bounds, normalisers ---------------------------------------------------------------------------


def test_a_gate_cannot_be_paid_off() -> None:
    reward = Gate(has("ok"), By(lambda output: None if "?" in str(output) else 9.0), otherwise=-1.0)
    found = reward(Samples(["ok", "no", "ok ?", "no ?"]))
    assert found.values.tolist() == [9.0, -1.0, 0.0, -1.0]
    assert found.applicable.tolist() == [True, True, False, True]
    assert set(found.parts) == {"condition", "use"}


def test_bounds_and_units() -> None:
    length = By(lambda output: float(len(str(output))))
    found = Bounded(length, low=-1.0, high=1.0, shift=4.0, scale=2.0)(Samples(["", "xxxx", "xxxxx", "x" * 100]))
    assert found.values.tolist() == [-1.0, 0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="low is 2.0 and high 1.0"):
        Bounded(length, low=2.0, high=1.0)
    with pytest.raises(ValueError, match="scale is 0"):
        Bounded(length, scale=0.0)


def test_normalised_within_groups_and_without_units() -> None:
    length = By(lambda output: float(len(str(output))) if output != "?" else None)
    samples = Samples(["x", "xxx", "xx", "xx", "?"], {"prompt": ["a", "a", "b", "b", "a"]})
    found = Normalised(length)(samples)
    assert found.values.tolist() == pytest.approx([-1.0, 1.0, 0.0, 0.0, 0.0])
    assert found.applicable.tolist() == [True] * 4 + [False]
    louder = Normalised(By(lambda output: None if output == "?" else 1000.0 * len(str(output))))(samples)
    assert torch.allclose(louder.values, found.values)


def test_named_parts_reach_the_sum_that_is_logged() -> None:
    total = WeightedSum({"rubric": Part(RUBRIC), "bounded": Part(Bounded(has("ok"), high=0.5), 2.0)})(
        Samples(["ok bar"])
    )
    assert total.values.tolist() == pytest.approx([0.8 + 1.0])
    assert set(total.parts) == {"rubric", "bounded"} and set(total.parts["rubric"].parts) >= {"bars", "runs"}
