"""Evaluation of rewards: closed forms, known biases found, and a page and an exit status at the end."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl.cli import main
from mmrl.metrics import wilson
from mmrl.types import Estimate, RewardFunction, Samples, Scores
from rewards.compose import Compares
from rewards.evaluation import Bar, Evaluate, Feature, GoldPairs, Pair, Pairs, Probes, Push, Source
from rewards.evaluation.accuracy import accuracy
from rewards.evaluation.agreement import agreements
from rewards.evaluation.bias import damages, interventions, leanings
from rewards.evaluation.calibration import calibration, ece, fit_scale
from rewards.evaluation.edits import HARMLESS, NEUTRAL, SPOILT
from rewards.evaluation.features import features_of
from rewards.evaluation.intervals import bootstrap, mean_of
from rewards.evaluation.judges import places
from rewards.evaluation.overoptimisation import Curve, Point, best_of, best_of_n, fitted, kl_of_best, of_run
from rewards.evaluation.robustness import paraphrased, robustness
from rewards.evaluation.scoring import Scored, score
from rewards.functions import Function
from rewards.pictures.base import scores_of


def scored(margins: Sequence[float], clusters: Sequence[str] = (), better: Sequence[int | None] = ()) -> Scored:
    """Pairs whose first output is the better one, by these margins."""
    names = list(clusters) or [f"p{i}" for i in range(len(margins))]
    wanted = list(better) or [0] * len(margins)
    pairs = [Pair(f"p{i}", "q", ("a", "b"), w, (), c) for i, (c, w) in enumerate(zip(names, wanted, strict=True))]
    return Scored(pairs, np.stack([np.array(margins, dtype=float), np.zeros(len(margins))], axis=1), 0.0, 0.0)


@dataclass(frozen=True)
class By(RewardFunction):
    """Scores by a plain function of the output."""

    of: Callable[[object], float | None]

    def __call__(self, samples: Samples) -> Scores:
        return scores_of([self.of(output) for output in samples.outputs])


def texts(count: int = 200, seed: int = 0) -> list[Pair]:
    """The better text has one more "good" in it; lengths say nothing."""
    chance, found = np.random.default_rng(seed), []
    for number in range(count):
        good = "good. " + "word " * int(chance.integers(1, 20)) + "It's over."
        bad = "bad. " + "word " * int(chance.integers(1, 20)) + "It's over."
        better = int(chance.integers(2))
        found.append(Pair(f"t{number}", "Which?", (bad, good) if better else (good, bad), better))
    return found


def honest(output: object) -> float:
    return float(str(output).count("good"))


# ---- accuracy and intervals -------------------------------------------------------------------------------


def test_accuracy_counts_equal_scores_half_and_leaves_out_what_is_missing() -> None:
    found = accuracy(scored([1.0, -1.0, 0.0, math.nan]))
    assert found["accuracy"].value == pytest.approx(0.5)
    assert found["accuracy"].n == 3
    assert found["applies"].value == 0.75
    assert found["tied"].value == pytest.approx(1 / 3)


def test_plain_cases_have_wilsons_interval_and_clusters_a_wider_one() -> None:
    values = [1.0] * 30 + [0.0] * 10
    alone = mean_of(values, [str(i) for i in range(40)])
    known = wilson(30, 40)
    assert (alone.value, alone.low, alone.high) == pytest.approx((known.value, known.low, known.high), abs=2e-4)
    clustered = mean_of(values, [str(i // 10) for i in range(40)])  # four rankings of ten pairs each
    assert clustered.value == alone.value
    assert clustered.high - clustered.low > 1.5 * (alone.high - alone.low)


def test_the_bootstrap_has_the_width_of_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(0, 2, 400)
    found = bootstrap(lambda index: float(values[index].mean()), [str(i) for i in range(400)])
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_categories_and_ties_of_the_gold() -> None:
    pairs = [replace(p, categories=("x" if i < 2 else "y",)) for i, p in enumerate(scored([1, -1, 2, 0, 3]).pairs)]
    pairs[3] = replace(pairs[3], better=None)
    pairs[4] = replace(pairs[4], better=None)
    found = accuracy(Scored(pairs, np.array([[1, 0], [0, 1], [2, 0], [0, 0], [3, 0]], dtype=float), 0.0, 0.0))
    assert (found["accuracy/x"].value, found["accuracy/y"].value) == (0.5, 1.0)
    assert found["accuracy"].n == 3
    assert found["ties_seen"].value == 0.5


# ---- calibration ------------------------------------------------------------------------------------------


def bradley_terry(scale: float, count: int = 4000) -> np.ndarray:
    """Margins of a judge whose preferences are right with probability sigmoid(scale x |margin|)."""
    chance = np.random.default_rng(3)
    sizes = chance.exponential(1.0, count)
    right = chance.random(count) < 1 / (1 + np.exp(-scale * sizes))
    return np.where(right, sizes, -sizes)


def test_the_scale_of_a_bradley_terry_judge_is_found_and_it_is_calibrated() -> None:
    margins = bradley_terry(2.0)
    assert fit_scale(margins) == pytest.approx(2.0, rel=0.1)
    figures, known = calibration(scored(margins))
    assert known is not None
    assert figures["ece"].value < figures["ece_if_perfect"].high * 1.2
    louder, _ = calibration(scored(100 * margins))  # a reward has no unit
    assert louder["ece"].value == pytest.approx(figures["ece"].value, abs=1e-3)


def test_margins_that_say_nothing_of_certainty_are_found_out() -> None:
    chance = np.random.default_rng(5)
    sizes = np.concatenate([chance.uniform(0, 1, 1000), chance.uniform(4, 5, 1000)])
    right = np.concatenate([chance.random(1000) < 0.95, chance.random(1000) < 0.65])  # surer where it errs more
    figures, _ = calibration(scored(np.where(right, sizes, -sizes)))
    assert figures["ece"].low > figures["ece_if_perfect"].high


def test_calibration_error_by_hand() -> None:
    confidence, right = np.repeat([0.6, 0.9], 10), np.array([1.0] * 6 + [0.0] * 4 + [1.0] * 7 + [0.0] * 3)
    assert ece(confidence, right) == pytest.approx(0.5 * 0.0 + 0.5 * 0.2)
    assert calibration(scored([1.0] * 39)) == ({}, None)


def test_shuffled_preferences_leave_no_scale() -> None:
    signs = np.tile([1.0, -1.0], 500)
    assert fit_scale(signs * np.repeat(np.linspace(0.1, 2, 500), 2)) < 1e-3


# ---- bias -------------------------------------------------------------------------------------------------


def test_a_reward_that_is_length_leans_by_what_the_gold_does_not() -> None:
    pairs = texts()
    measured = score("length", Feature("length"), pairs)
    different = [p for p in pairs if len(str(p.outputs[0])) != len(str(p.outputs[1]))]
    longer = np.mean([len(str(p.outputs[p.better or 0])) > len(str(p.outputs[1 - (p.better or 0)])) for p in different])
    found = leanings(measured)
    assert found["lean/length"].value == pytest.approx(1 - float(longer))
    assert found["gap/length"].value == 1.0  # always right where longer is better, never where shorter is
    assert found["lean/length"].low > 0.3


def test_an_honest_reward_does_not_lean_and_cannot_be_bought() -> None:
    measured = score("honest", By(honest), texts())
    found = leanings(measured) | interventions("honest", By(honest), measured, NEUTRAL)
    assert found["lean/length"].value == 0.0
    assert found["bought/longer"].value == 0.0
    assert found["lift/longer"].value == 0.0
    assert math.isnan(found["gap/length"].value) is False


def test_what_is_paid_by_the_word_is_bought_and_in_how_many_decisions() -> None:
    pairs = [Pair(f"p{i}", "q", ("aaaa", "aa"), 0) for i in range(40)]
    found = interventions("length", Feature("length"), score("length", Feature("length"), pairs), NEUTRAL)
    from rewards.evaluation.edits import FILLER

    assert found["bought/longer"].value == 1.0
    assert found["lift/longer"].value == pytest.approx(len(FILLER) / 2)  # a decision rests on 2 characters


def test_damage_fools_who_does_not_look() -> None:
    pictures = [
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32, 3)).astype(np.uint8)) for i in range(40)
    ]
    pairs = [Pair(f"p{i}", "q", (p, Image.new("RGB", (32, 32))), 0) for i, p in enumerate(pictures)]
    for reward, wanted in ((By(lambda _: 1.0), 1.0), (Feature("detail"), 0.0)):
        found = damages("r", reward, score("r", reward, pairs), SPOILT)
        assert found["fooled/blank"].value == wanted


@pytest.mark.parametrize("edit", [*NEUTRAL, *HARMLESS, *SPOILT], ids=lambda edit: edit.name)
def test_an_edit_changes_one_kind_of_output_the_same_way_each_time(edit) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3)).astype(np.uint8))
    output: object = picture if edit.of_picture is not None else "It's so. It isn't red, and that's the whole of it."
    other: object = "text" if edit.of_picture is not None else picture
    pair = Pair("p", "q", (output, output), 0)
    once, again = edit.pair(pair, (1,), 0), edit.pair(pair, (1,), 0)
    assert once is not None and once.outputs[0] is output
    same = (
        once.outputs[1] == again.outputs[1]
        if isinstance(output, str)
        else list(once.outputs[1].getdata()) == list(again.outputs[1].getdata())
    )
    assert same
    unchanged = (
        output == once.outputs[1]
        if isinstance(output, str)
        else (once.outputs[1].size == picture.size and list(once.outputs[1].getdata()) == list(picture.getdata()))
    )
    assert not unchanged
    assert edit.pair(replace(pair, outputs=(other, other)), (0,), 0) is None


def test_features_of_known_outputs() -> None:
    red = features_of(Image.new("RGB", (16, 64), (255, 0, 0)))
    assert (red["size"], red["brightness"], red["saturation"], red["contrast"]) == (32.0, 1.0, 1.0, 0.0)
    assert features_of(Image.new("RGB", (4, 4), (90, 90, 90)))["saturation"] == 0.0
    assert features_of("# A\n- b\n**c** `d`") == {"length": 17.0, "markup": 6.0}
    assert features_of(7) == {}


# ---- robustness, agreement, judges ------------------------------------------------------------------------


def test_robustness_is_one_for_what_does_not_see_it_and_the_prompt_is_said_otherwise() -> None:
    measured = score("honest", By(honest), texts())
    found = robustness("honest", By(honest), measured, HARMLESS) | paraphrased("honest", By(honest), measured)
    assert {key: value.value for key, value in found.items()} == dict.fromkeys(found, 1.0)
    assert "kept/spelt out" in found and "kept/prompt in other words" in found

    @dataclass(frozen=True)
    class Literal(RewardFunction):
        """Right only as long as the prompt is said in one way."""

        def __call__(self, samples: Samples) -> Scores:
            known = [prompt == "Which?" for prompt in samples.columns["prompt"]]
            return scores_of([honest(o) * (1 if k else -1) for o, k in zip(samples.outputs, known, strict=True)])

    found = paraphrased("literal", Literal(), score("literal", Literal(), texts()))
    assert found["kept/prompt in other words"].value == 0.0


def test_agreement_of_opposite_and_equal_rewards() -> None:
    pairs = texts()
    noisy = score("b", By(lambda o: honest(o) if len(str(o)) % 3 else -honest(o)), pairs)
    one, other = score("a", By(honest), pairs), score("c", By(lambda o: -honest(o)), pairs)
    opposite = agreements({"a": one, "c": other})[0]
    assert (opposite.same.value, opposite.rank) == (0.0, pytest.approx(-1.0))
    same = agreements({"b": noisy, "b2": noisy})[0]
    assert (same.same.value, same.rank, same.errors) == (1.0, pytest.approx(1.0), pytest.approx(1.0))


@dataclass(frozen=True)
class Placed(Compares):
    """A judge that adds `bonus` to what is shown first of a pair."""

    bonus: float

    def __call__(self, samples: Samples) -> Scores:
        return self.in_order(0)(samples)

    def in_order(self, number: int | None) -> RewardFunction:
        bonus = self.bonus

        @dataclass(frozen=True)
        class InOrder(RewardFunction):
            def __call__(self, samples: Samples) -> Scores:
                first = [i % 2 == 0 for i in range(len(samples))]
                return scores_of([honest(o) + bonus * f for o, f in zip(samples.outputs, first, strict=True)])

        return InOrder()


@pytest.mark.parametrize(("bonus", "first", "consistent", "both"), [(0.0, 0.5, 1.0, 1.0), (5.0, 1.0, 0.0, 0.0)])
def test_a_judge_that_goes_by_the_place(bonus: float, first: float, consistent: float, both: float) -> None:
    found = places(Placed(bonus), texts(40))
    values = [found[f"judge/{key}"].value for key in ("first", "consistent", "accuracy_both", "repeats")]
    assert values == [first, consistent, both, 1.0]


# ---- over-optimisation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_best_of_n_is_the_mean_over_all_choices(n: int) -> None:
    chance = np.random.default_rng(n)
    proxy, gold = chance.permutation(5).astype(float), chance.normal(size=5)
    chosen = [max(ids, key=lambda i: proxy[i]) for ids in itertools.combinations(range(5), n)]
    wanted = np.mean([proxy[i] for i in chosen]), np.mean([gold[i] for i in chosen])
    assert best_of(n, proxy, gold) == pytest.approx(wanted)


def test_equal_proxies_share_the_gold() -> None:
    assert best_of(3, np.zeros(4), np.array([1.0, 2.0, 3.0, 6.0])) == pytest.approx((0.0, 3.0))
    with pytest.raises(ValueError, match="best of 5 from 4 candidates: give 1 to 4"):
        best_of(5, np.zeros(4), np.zeros(4))


@pytest.mark.parametrize("n", [1, 2, 4, 64])
def test_the_kl_of_the_best_of_n(n: int) -> None:
    size = 100_000
    place = np.arange(1, size + 1) / size
    chosen = place**n - (place - 1 / size) ** n  # the law of the best of n of so many equally likely outputs
    kept = chosen > 0
    assert kl_of_best(n) == pytest.approx(float((chosen[kept] * np.log(chosen[kept] * size)).sum()), abs=1e-3)


def candidates(prompts: int = 30, each: int = 64) -> tuple[Samples, np.ndarray]:
    proxy = np.random.default_rng(0).normal(size=prompts * each)
    names = [f"p{i}" for i in range(prompts) for _ in range(each)]
    return Samples([""] * len(proxy), {"prompt": names}), proxy


def test_a_gold_that_peaks_is_seen_to_turn_and_one_that_does_not_is_not() -> None:
    samples, proxy = candidates()
    noise = np.random.default_rng(1).normal(0, 0.3, len(proxy))
    curve = best_of_n(samples, proxy, -((proxy - 1.0) ** 2) + noise)  # best where the proxy is 1: the best of about 4
    assert curve.turn is not None
    assert curve.points[curve.turn].label in ("4", "8")
    assert best_of_n(samples, proxy, proxy + noise).turn is None
    assert best_of_n(samples, proxy, np.random.default_rng(2).normal(size=len(proxy))).turn is None  # noise is no turn
    with pytest.raises(ValueError, match="1 prompts have 2 or more outputs"):
        best_of_n(Samples([""] * 4, {"prompt": ["a"] * 4}), proxy[:4], proxy[:4])


def run(folder: Path, golds: Sequence[float], half: float = 0.01) -> Path:
    lines = [
        {"step": 4 * i, "eval/reward": i / 10, "eval/reward/low": i / 10, "eval/reward/high": i / 10, "eval/kl": float(i**2),
         "eval/gold": g, "eval/gold/low": g - half, "eval/gold/high": g + half}
        for i, g in enumerate(golds)
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_turns_where_the_gold_falls_beyond_doubt(tmp_path: Path) -> None:
    found = of_run(run(tmp_path / "a", [0.0, 0.3, 0.5, 0.2]), "gold")
    assert found.turn == 2 and found.points[2].kl == 4.0 and found.points[2].label == "8"
    assert of_run(run(tmp_path / "b", [0.0, 0.3, 0.5, 0.2], half=0.2), "gold").turn is None
    assert of_run(run(tmp_path / "c", [0.0, 0.3, 0.5]), "gold").turn is None
    with pytest.raises(ValueError, match="0 evaluations with reward, kl and 'other'.*it measured gold, kl, reward"):
        of_run(tmp_path / "a", "other")


@pytest.mark.parametrize("logarithm", [False, True])
def test_the_forms_of_gao_are_recovered(logarithm: bool) -> None:
    x = np.linspace(0, 3, 10)
    gold = x * (2.0 - 0.5 * (np.log(np.maximum(x, 1e-9)) if logarithm else x))
    points = [
        Point(float(k**2), Estimate(0, 0, 0, 1), Estimate(float(g) + 7, 0, 0, 1), "")
        for k, g in zip(x, gold, strict=True)
    ]
    assert fitted(Curve(points, None), logarithm) == pytest.approx((2.0, 0.5))


# ---- all of it --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given(Source):
    """Pairs by hand."""

    def pairs(self) -> list[Pair]:
        attack = "<script>alert(1)</script>"
        return [replace(pair, categories=(attack,)) for pair in texts(60)]


def test_one_page_one_file_and_an_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewards: dict[str, RewardFunction | str] = {"honest": By(honest), "length": Feature("length")}
    bars = (Bar("honest", "accuracy", least=0.9), Bar("length", "lean/length", most=0.05))
    assert Evaluate(rewards, Given(), bars=bars[:1]).run(tmp_path) == 0
    assert Evaluate(rewards, Given(), bars=bars).run(tmp_path) == 1
    assert Evaluate(rewards, Given(), bars=(Bar("honest", "no such figure", least=0.0),)).run(tmp_path) == 1
    said = capsys.readouterr().out
    assert "length goes by length: it prefers more of it" in said
    assert "length can be bought" in said
    assert "honest can be bought" not in said
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["figures"]["honest"]["accuracy"]["value"] == 1.0
    assert found["agreement"][0]["first"] == "honest"
    assert found["costs"]["honest"]["cpu_s"] >= 0


def test_what_cannot_be_evaluated_is_refused() -> None:
    pairs = Given()
    with pytest.raises(ValueError, match="rewards is empty"):
        Evaluate({}, pairs)
    with pytest.raises(ValueError, match="'other' is named by push or bars: rewards has mine"):
        Evaluate({"mine": Feature("length")}, pairs, bars=(Bar("other", "accuracy", least=0.5),))
    with pytest.raises(ValueError, match="'other' is named"):
        Evaluate({"mine": Feature("length")}, pairs, push={"other": Push("rewards/push_colour", "gold")})
    with pytest.raises(ValueError, match="has neither least nor most"):
        Bar("mine", "accuracy")
    with pytest.raises(ValueError, match="probes.without names 'x': there are JPEG 50, "):
        Probes(without=("x",))


def test_gold_is_never_the_reward_itself() -> None:
    from rewards.evaluation import Candidates

    class None_(Candidates):
        def draw(self) -> Samples:
            raise AssertionError

    with pytest.raises(ValueError, match=r"gold is the same as rewards.mine: no reward can be judged by itself"):
        Evaluate({"mine": Feature("length")}, Given(), candidates=None_(), gold=Feature("length"))
    with pytest.raises(ValueError, match="candidates are given and gold is not"):
        Evaluate({"mine": Feature("length")}, Given(), candidates=None_())


def words(completions: Sequence[str], **row: object) -> list[float]:
    return [float(text.count("good")) for text in completions]


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": "q", "chosen": p.outputs[p.better or 0], "rejected": p.outputs[1 - (p.better or 0)]}
        for p in texts(40)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    function = "rewards.mine=tests.test_reward_evaluation.words"
    assert main(["rewards", "evaluate", "mine.jsonl", function, "--run", "out"]) == 0
    assert (tmp_path / "out" / "report.html").is_file()
    about = json.loads((tmp_path / "out" / "task.json").read_text())
    assert (
        about["config"]["rewards"] == {"mine": "tests.test_reward_evaluation.words"} and about["provenance"]["versions"]
    )
    bar = "bars=[{reward: mine, figure: accuracy, most: 0.5}]"
    assert main(["rewards", "evaluate", "mine.jsonl", function, bar, "--run", "out"]) == 1
    assert main(["rewards", "evaluate", "none.jsonl", function]) == 2
    assert "pairs.path 'none.jsonl' is not there" in capsys.readouterr().err
    assert main(["rewards", "train", "rewards/pairs"]) == 2
    assert "is for `mmrl rewards pairs`, not `mmrl rewards train`" in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("# nothing\nrewards: {}\n")
    assert main(["rewards", "evaluate", "bad.yaml"]) == 2
    assert "the key `task` is missing" in capsys.readouterr().err
    assert isinstance(Function("tests.test_reward_evaluation.words"), RewardFunction)


def test_gold_pairs_are_the_same_each_time_and_say_nothing_by_light_or_size(tmp_path: Path) -> None:
    one, again = GoldPairs(40).pairs(), GoldPairs(40).pairs()
    assert [list(p.outputs[0].getdata()) for p in one[:60]] == [list(p.outputs[0].getdata()) for p in again[:60]]  # type: ignore[attr-defined]
    decided = [pair for pair in one if pair.better is not None]
    assert len(decided) == 200 and sum(pair.better or 0 for pair in decided) in range(75, 126)
    size = leanings(score("size", Feature("size"), one))["lean/size"]
    assert size.low > 0.3  # size alone is no way to be right: a reward that goes by it leans
    assert accuracy(score("size", Feature("size"), one))["accuracy"].value == pytest.approx(0.5, abs=0.12)
    with pytest.raises(ValueError, match="per_category is 0"):
        GoldPairs(0)
    assert main(["rewards", "pairs", "pairs.init_args.per_category=3", "--run", str(tmp_path)]) == 0
    read = Pairs(str(tmp_path / "pairs.jsonl")).pairs()
    assert [(p.id, p.better, p.categories) for p in read] == [
        (p.id, p.better, p.categories) for p in GoldPairs(3).pairs()
    ]
    assert isinstance(read[0].outputs[0], Image.Image)


def test_not_applicable_leaves_the_figures(tmp_path: Path) -> None:
    measured = score("half", By(lambda o: honest(o) if len(str(o)) % 2 else None), texts())
    assert 0 < accuracy(measured)["applies"].value < 1
    nothing = score("none", By(lambda _: None), texts())
    assert accuracy(nothing)["accuracy"].n == 0
    assert (
        Evaluate({"none": By(lambda _: None)}, Given(), bars=(Bar("none", "accuracy", least=0.0),)).run(tmp_path) == 1
    )
    assert torch.isfinite(torch.tensor(accuracy(nothing)["applies"].value))
