"""Rewards: rule-based text rewards, their weighted sum, the contract checks (I16) and the messages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from mmrl.testing import ContractError, check_reward
from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import Part, RewardError, WeightedSum
from rewards.consistency import ConsistentAnswer
from rewards.text import AnswerMatch, ExactMatch, TagFormat, tagged
from tests.toy import RightActions

MALFORMED = (
    "",
    " ",
    "<",
    "<answer>",
    "</answer><answer>",
    "<answer></answer>",
    "<think><answer>",
    "\x00\ud83d",
    "<" * 2000,
    None,
    7,
)


def score(function: RewardFunction, *texts: object, answer: str = "cat") -> list[float]:
    return function(Samples(texts, {"answer": [answer] * len(texts)})).values.tolist()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("  <think>a</think>\n\n <answer>b</answer>\n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        ("<think>line\nline</think><answer>b</answer>", 1.0),
        ("<think>1 < 2 and <b>bold</b></think><answer>b</answer>", 1.0),
        ("", 0.0),
        ("b", 0.0),
        ("<think>a</think>", 0.0),
        ("<answer>b</answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),  # order
        ("so: <think>a</think><answer>b</answer>", 0.0),  # text before
        ("<think>a</think> hence <answer>b</answer>", 0.0),  # between
        ("<think>a</think><answer>b</answer>.", 0.0),  # after
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0),  # repeated
        ("<think>a</think><think>a</think><answer>b</answer>", 0.0),
        ("<think><think>a</think></think><answer>b</answer>", 0.0),  # nested in itself
        ("<think>a<answer>b</answer></think>", 0.0),  # nested in the other
        ("<think>a<answer>b</answer>", 0.0),  # not closed
        ("<think>a</think><answer>b", 0.0),
        ("<THINK>a</THINK><answer>b</answer>", 0.0),
        ("< think>a</think><answer>b</answer>", 0.0),
    ],
)
def test_tag_format(text: str, wanted: float) -> None:
    assert score(TagFormat(), text) == [wanted]


def test_optional_tags_may_be_missing() -> None:
    adaptive = TagFormat(("think", "answer"), optional=("think",))
    assert score(adaptive, "<answer>b</answer>", "<think>a</think><answer>b</answer>", "<think>a</think>") == [1, 1, 0]


def test_tag_format_is_fast_on_hostile_text() -> None:
    assert score(TagFormat(), "<think>" * 3000, "<think>" + "a<" * 20000) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<answer>cat</answer>", 1.0),
        ("<think>dog</think> <answer> Cat\n</answer>", 1.0),
        ("cat", 1.0),
        (" CAT ", 1.0),
        ("<answer>dog</answer>", 0.0),
        ("<answer>dog</answer><answer>cat</answer>", 0.0),  # the first counts
        ("<answer>cat", 0.0),  # opened and not closed is no answer
        ("cat</answer>", 0.0),
        ("a cat", 0.0),
        ("", 0.0),
    ],
)
def test_answer_match(text: str, wanted: float) -> None:
    assert score(AnswerMatch(), text) == [wanted]


def test_exact_match_is_letter_for_letter() -> None:
    assert score(ExactMatch(), "cat", "Cat", "cat ", "", "<answer>cat</answer>") == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_answers_that_are_no_text() -> None:
    assert ExactMatch()(Samples(["7", "8"], {"answer": [7, 7]})).values.tolist() == [1.0, 0.0]


def test_tagged() -> None:
    assert tagged("x<a> 1 </a><a>2</a>", "a") == "1"
    assert tagged("<a>1", "a") == tagged("", "a") == ""


@pytest.mark.parametrize("function", [AnswerMatch(), ExactMatch()], ids=str)
def test_missing_column_is_named(function: RewardFunction) -> None:
    with pytest.raises(ValueError, match=r"compares with the column 'answer', and the data has \['label'\]"):
        function(Samples(["cat"], {"label": ["cat"]}))


SAMPLES = Samples(
    ["cat", "<answer>dog</answer>", "<think>a</think><answer>cat</answer>", ""],
    {"answer": ["cat", "cat", "CAT", "x"]},
    ["a", "b", "c", "d"],
)
SUM = WeightedSum({"accuracy": Part(AnswerMatch(), 1.0), "form": Part(TagFormat(), 0.5)})


@pytest.mark.parametrize("function", [AnswerMatch(), ExactMatch(), TagFormat(), TagFormat(optional=("think",)), SUM])
def test_batch_equals_one_by_one_and_malformed_is_finite(function: RewardFunction) -> None:
    check_reward(function, SAMPLES, MALFORMED)


def test_toy_reward_keeps_the_contract() -> None:
    check_reward(RightActions(), Samples([[1, 2], [0]], {"state": [0, 3]}), (None, "", [], {}, 3))


# ---- the weighted sum and what it refuses -----------------------------------------------------------------


@dataclass(frozen=True)
class Given(RewardFunction):
    """The same for every batch, or raises."""

    values: Sequence[float] = ()
    applicable: Sequence[bool] = ()
    error: Exception | None = None

    def __call__(self, samples: Samples) -> Scores:
        if self.error is not None:
            raise self.error
        return Scores(torch.tensor(self.values), torch.tensor(self.applicable or [True] * len(self.values)))


TWO = Samples(["one", "two"], {}, ["first", "second"])


def test_weighted_sum_keeps_its_parts() -> None:
    found = WeightedSum({"a": Part(Given([1.0, 2.0]), 2.0), "b": Part(Given([10.0, 20.0]), -0.5)})(TWO)
    assert found.values.tolist() == [-3.0, -6.0]
    assert {name: part.values.tolist() for name, part in found.parts.items()} == {"a": [1.0, 2.0], "b": [10.0, 20.0]}


def test_parts_that_do_not_apply_leave_the_sum() -> None:
    partly = Given([math.nan, 4.0], [False, True])
    never = Given([math.nan, math.nan], [False, False])
    both = WeightedSum({"a": Part(partly), "b": Part(Given([1.0, 1.0]))})(TWO)
    assert both.values.tolist() == [1.0, 5.0]
    assert both.applicable.tolist() == [True, True]
    alone = WeightedSum({"a": Part(partly), "c": Part(never)})(TWO)
    assert alone.values.tolist() == [0.0, 4.0]
    assert alone.applicable.tolist() == [False, True]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (Given([1.0, math.nan]), r"rewards.mine is nan for sample 1 \(example second\), output 'two'"),
        (Given([math.inf, 1.0]), r"rewards.mine is inf for sample 0 \(example first\), output 'one'"),
        (Given([1.0]), r"rewards.mine gave \(1,\) scores for 2 samples: give one number per sample"),
        (Given([1.0, 2.0, 3.0]), r"rewards.mine gave \(3,\) scores for 2 samples"),
        (Given(error=KeyError("x")), r"rewards.mine \(Given\) raised KeyError on a batch of 2 samples: 'x'"),
        (Given(error=ZeroDivisionError("by zero")), "raised ZeroDivisionError on a batch of 2 samples: by zero"),
    ],
    ids=["nan", "inf", "short", "long", "KeyError", "ZeroDivisionError"],
)
def test_broken_rewards_are_named(function: RewardFunction, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        WeightedSum({"mine": Part(function)})(TWO)


class Listed(RewardFunction):
    def __call__(self, samples: Samples) -> Scores:
        return [1.0] * len(samples)  # type: ignore[return-value]


def test_a_reward_that_returns_no_scores_is_named() -> None:
    with pytest.raises(RewardError, match=r"rewards.mine .*Scores"):
        WeightedSum({"mine": Part(Listed())})(TWO)


def test_an_empty_sum_is_refused() -> None:
    with pytest.raises(ValueError, match="give at least one"):
        WeightedSum({})


# ---- check_reward bites -----------------------------------------------------------------------------------


class Ranked(RewardFunction):
    """Depends on the others of the batch."""

    def __call__(self, samples: Samples) -> Scores:
        return Scores(torch.arange(len(samples)).float(), torch.ones(len(samples), dtype=torch.bool))


class Fragile(RewardFunction):
    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __call__(self, samples: Samples) -> Scores:
        empty = [not str(output) for output in samples.outputs]
        scores = Scores(torch.ones(len(samples)), torch.ones(len(samples), dtype=torch.bool))
        if any(empty) and self.fault == "raises":
            raise IndexError("no first word")
        if any(empty) and self.fault == "nan":
            return dataclasses.replace(scores, values=torch.full((len(samples),), math.nan))
        if self.fault == "length":
            return dataclasses.replace(scores, values=torch.ones(len(samples) + 1))
        if self.fault == "float applicable":
            return dataclasses.replace(scores, applicable=torch.ones(len(samples)))
        if self.fault == "silent part":
            return dataclasses.replace(scores, parts={"p": Scores(torch.ones(1), torch.ones(1, dtype=torch.bool))})
        if self.fault == "not applicable":
            return dataclasses.replace(scores, applicable=torch.zeros(len(samples), dtype=torch.bool))
        return scores


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (Ranked(), "in a batch and 0 alone"),
        (Fragile("raises"), "raised IndexError on the output ''"),
        (Fragile("nan"), "on the output '' gave a value that is not finite"),
        (Fragile("length"), r"gave \(3,\) values"),
        (Fragile("float applicable"), "it must be bool"),
        (Fragile("silent part"), r"Fragile.p gave \(1,\) values"),
        (Fragile("not applicable"), "other than 0 where it is not applicable"),
    ],
    ids=lambda case: case.fault if isinstance(case, Fragile) else None,
)
def test_check_reward_bites(function: RewardFunction, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_reward(function, TWO)


@dataclass(frozen=True)
class Verdicts(RewardFunction):
    """A judge that says what the column `verdict` says; None: it does not apply."""

    def __call__(self, samples: Samples) -> Scores:
        found = samples.columns["verdict"]
        return Scores(torch.tensor([float(v or 0) for v in found]), torch.tensor([v is not None for v in found]))


def test_a_right_answer_is_worth_more_where_its_thought_leads_there() -> None:
    """The table of R1-Reward: 2, 1, 1.5, 0.5 and, without the form, 1.5."""
    right, wrong = "<think>t</think><answer>a</answer>", "<think>t</think><answer>b</answer>"
    samples = Samples(
        [right, right, right, wrong, "<answer>a</answer>"],
        {"answer": ["a"] * 5, "verdict": [1.0, 0.0, None, 1.0, 1.0]},
    )
    scores = ConsistentAnswer(Verdicts())(samples)
    assert scores.values.tolist() == [2.0, 1.0, 1.5, 0.5, 1.5]
    assert set(scores.parts) == {"right", "format", "consistent"}
