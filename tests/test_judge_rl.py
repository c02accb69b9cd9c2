"""A judge of pairs: what it is asked, how its verdicts are paid for in both orders, that it trains, and that it can be a
reward.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest
import torch

from mmrl.cli import main
from mmrl.config import load
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.trainer import Trainer
from mmrl.types import Samples
from rewards.consistency import ThoughtImplies
from rewards.swapped import ShownFirst, SwapAgreement
from vision.collector import AnswerCollector, RolloutConfig
from vision.data import BothOrders, Digits, Example, JudgedDigits
from vision.data.digits import NAMES
from vision.data.judged import WORDS, truth
from vision.demonstrations import DemonstrationCollector
from vision.evaluation import with_other_pictures
from vision.judge import TrainedJudge
from vision.plans import HardPhases, Swapped
from vision.policy import PolicyConfig

RUNTIME = Runtime(RuntimeConfig(device="cpu"), 0)
SMALL = ["data.protocol.clusters=20", "data.protocol.pool=4", "data.protocol.evaluation=4", "data.protocol.dev=2"]


# ---- the pairs --------------------------------------------------------------------------------------------


def test_the_gold_is_the_label_and_both_orders_have_it() -> None:
    examples = JudgedDigits().examples()
    labels = {digit.id: digit.answer for digit in Digits().examples()}
    assert len(examples) == 2 * 3 * len(labels) and len({example.id for example in examples}) == len(examples)
    for one, other in zip(examples[::2], examples[1::2], strict=True):
        assert one.columns["pair"] == other.columns["pair"] and one.answer == other.answer
        assert one.columns["shown"] == other.columns["shown"][::-1] != other.columns["shown"]
        label = labels[str(one.columns["cluster"])]
        assert one.answer == truth(str(one.columns["kind"]), label) == one.columns["implied"][label]
    first = [example.answer == example.columns["shown"][0] for example in examples[::2]]
    assert 0.45 < sum(first) / len(first) < 0.55  # no place is the better one
    by_number = JudgedDigits(kinds=("hole",), verdict="number").examples()
    assert {one.answer + other.answer for one, other in zip(by_number[::2], by_number[1::2], strict=True)} == {
        "12",
        "21",
    }
    with pytest.raises(ValueError, match=r"JudgedDigits.kinds is \('colour',\): give one or more of parity"):
        JudgedDigits(kinds=("colour",))


def test_words_say_what_they_should() -> None:
    told = {kind: [truth(kind, name) for name in NAMES] for kind in WORDS}
    assert told["parity"] == ["even", "odd"] * 5
    assert told["hole"] == ["holed", *["solid"] * 3, "holed", "solid", "holed", "solid", "holed", "holed"]
    assert told["size"] == ["small"] * 5 + ["large"] * 5


def test_nothing_stands_in_two_parts_and_the_pool_has_both_orders_beside_each_other() -> None:
    split = BothOrders(evaluation=20, dev=10, clusters=15, pool=30).split(JudgedDigits())
    parts = (split.demonstrations, split.pool, split.dev, split.evaluation)
    assert [len(part) for part in parts] == [6 * count for count in (15, 30, 10, 20)]
    clusters = [{example.columns["cluster"] for example in part} for part in parts]
    assert not any(one & other for one, other in combinations(clusters, 2))
    for part in (split.demonstrations, split.pool):
        for one, other in zip(part[::2], part[1::2], strict=True):
            assert one.columns["pair"] == other.columns["pair"] and one.id != other.id
    half = len(split.evaluation) // 2
    pairs = [example.columns["pair"] for example in split.evaluation]
    assert pairs[:half] == pairs[half:] and len(set(pairs)) == half
    for one, other in zip(split.evaluation, with_other_pictures(split.evaluation), strict=True):
        assert one.images[0].tobytes() != other.images[0].tobytes()  # the control does not show the same picture again
    with pytest.raises(ValueError, match="does not ask each pair twice in a row"):
        BothOrders().split(Digits())
    with pytest.raises(ValueError, match="leaves nothing for RL of 1797 clusters"):
        BothOrders(evaluation=1797).split(JudgedDigits())


def asking(pool: Sequence[Example], prompts: int = 4, **more: object) -> AnswerCollector:
    """What asks `pool` by the plan; nothing is drawn."""
    config = RolloutConfig(prompts=prompts, group=2, plan=Swapped())
    return AnswerCollector(pool, None, None, config, RUNTIME, **more)  # type: ignore[arg-type]


def test_a_plan_asks_each_pair_once_an_epoch_in_both_orders() -> None:
    pool = [Example(f"{pair}-{order}", (), "q", "a", {"pair": pair}) for pair in range(6) for order in (0, 1)]
    collector, seen = asking(pool), []
    for _ in range(3):
        places, numbers = collector.turn()
        assert places == [0, 1, 2, 3]
        assert [number ^ 1 for number in numbers[::2]] == numbers[1::2]
        seen += numbers
    assert sorted(seen) == list(range(12))
    with pytest.raises(ValueError, match="which asks 2 at a time, and there are 3 prompts on 1 processes out of 12"):
        asking(pool, prompts=3)
    with pytest.raises(ValueError, match="out of 11 examples: give multiples of 2 and 2"):
        asking(pool[:-1])
    with pytest.raises(ValueError, match="0-1 and 1-0 are not one pair in both orders"):
        asking([pool[1], pool[2]])
    with pytest.raises(ValueError, match="goes through the examples in its own way, and data.source has weights"):
        asking(pool, weights={"digits": 1.0})
    with pytest.raises(ValueError, match="HardPhases, which goes through the examples in its own way"):
        HardPhases().check_pool(pool, 4, True, RUNTIME)


def test_answers_have_room_for_what_was_demonstrated() -> None:
    """The longest thought, of zero or four, has 13 tokens; a start that is asked for fewer looks worse than it is."""
    loaded = load("vision/judge", SMALL).experiment
    policy = loaded.load_policy(RUNTIME)
    examples = list(loaded.data.split.demonstrations)
    shown = DemonstrationCollector(loaded.data.training, examples, [loaded.encoder(policy)], 4, RUNTIME)
    shown.check_lengths(policy, loaded.rollout.max_new_tokens)
    with pytest.raises(ValueError, match="rollout.max_new_tokens is 12, and the demonstration of .* has 13 tokens"):
        shown.check_lengths(policy, 12)


# ---- what is paid for -------------------------------------------------------------------------------------


def verdicts(*rows: tuple[str, str, str]) -> Samples:
    """Of pair, what was shown ("even odd") and what was answered."""
    return Samples(
        [f"<answer>{said}</answer>" for _, _, said in rows],
        {"pair": [pair for pair, _, _ in rows], "shown": [tuple(shown.split()) for _, shown, _ in rows]},
    )


def test_agreement_is_with_the_other_order_alone() -> None:
    scores = SwapAgreement()(
        verdicts(
            ("a", "even odd", "even"), ("a", "even odd", "odd"), ("a", "odd even", "even"), ("a", "odd even", "even"),
            ("a", "odd even", "odd"), ("a", "even odd", "nonsense"), ("b", "small large", "small"),
        )
    )  # fmt: skip
    assert scores.applicable.tolist() == [True] * 6 + [False]
    assert scores.values[:6].tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 0.0])


def test_a_judge_that_goes_by_the_place_gets_one_half_in_both_orders() -> None:
    """By number or by word: the first place always; and one that does not look at places."""
    by_place = verdicts(("a", "even odd", "1"), ("a", "odd even", "1"))
    assert ShownFirst()(by_place).values.tolist() == [1, 1]
    assert SwapAgreement()(by_place).values.tolist() == [0, 0]
    by_word = verdicts(("a", "even odd", "2"), ("a", "odd even", "odd"), ("b", "even odd", "neither"))
    assert ShownFirst()(by_word).values[:2].tolist() == [0, 1] and not ShownFirst()(by_word).applicable[2]
    assert SwapAgreement()(by_word).values[:2].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"need the columns pair and shown: there are \['pair'\]"):
        SwapAgreement()(Samples(["x"], {"pair": ["a"]}))


def test_the_mean_agreement_of_drawn_verdicts_is_that_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    chance = {("even", "odd"): 0.7, ("odd", "even"): 0.4}  # q: the first one wins
    rows = [
        ("a", " ".join(shown), shown[0] if float(torch.rand((), generator=generator)) < q else shown[1])
        for shown, q in chance.items()
        for _ in range(400)
    ]
    q, back = 0.7, 1 - 0.4  # of "even" in either order
    assert float(SwapAgreement()(verdicts(*rows)).values.mean()) == pytest.approx(
        q * back + (1 - q) * (1 - back), abs=0.03
    )


def test_a_thought_leads_to_an_answer_by_rule() -> None:
    implied = {"three": "odd", "five": "odd", "four": "even"}
    said = [
        "<think>It is three.</think><answer>odd</answer>", "<think>It is four.</think><answer>odd</answer>",
        "<think>Hm.</think><answer>odd</answer>", "<think>three or four</think><answer>odd</answer>",
        "<think>Three or five</think><answer>Odd</answer>",
    ]  # fmt: skip
    loud = {word.upper(): answer.title() for word, answer in implied.items()}  # words are words, however written
    assert torch.equal(
        ThoughtImplies()(Samples(said, {"implied": [loud] * 5})).values,
        ThoughtImplies()(Samples(said, {"implied": [implied] * 5})).values,
    )
    scores = ThoughtImplies()(Samples(said, {"implied": [implied] * 5}))
    assert scores.applicable.tolist() == [True, True, False, False, True]
    assert scores.values[scores.applicable].tolist() == [1, 0, 1]


# ---- the shipped start, training, and the judge as a reward -------------------------------------------------


@pytest.mark.parametrize("arm", ["stable_reinforce", "ppo", "stable_reinforce_swap"])
def test_the_recipe_takes_a_step_that_moves_it_and_scores_as_it_drew(arm: str) -> None:
    from benchmarks.judge_rl import ARMS

    words = [*ARMS[arm], *SMALL, "rollout.prompts=4", "rollout.group=2", "train.update.epochs=2"]
    experiment = load("vision/judge", words).experiment
    runtime = Runtime(experiment.runtime, 0)
    parts = experiment.build(runtime)
    trainer = Trainer(parts, experiment.train, runtime)
    before = [parameter.detach().clone() for parameter in parts.policy.parameters()]
    metrics = trainer.step()
    assert metrics["parity/logprob_diff_max"] <= 1e-5
    assert any(not torch.equal(a, b) for a, b in zip(before, parts.policy.parameters(), strict=True))
    asked = [example.columns["pair"] for example in parts.collector.asked]
    assert asked[:4] == asked[0:1] * 4 and len(set(asked)) == 2  # two pairs, both orders, two answers each
    assert 0 <= metrics["reward/swap"] <= 1


@dataclass(frozen=True)
class Stub(TrainedJudge):
    """Prefers "good"; between others what is shown first."""

    def _liked(self, samples, asked):
        texts = [(samples.outputs[i], samples.outputs[j]) for i, j in asked]
        return [None if "?" in both else both.index("good") if "good" in both else 0 for both in texts]


def test_a_judge_scores_by_the_others_it_is_preferred_to() -> None:
    samples = Samples(["bad", "good", "worse", "?", "?"], {"picture": [None] * 5, "group": [0, 0, 0, 1, 1]})
    judge = Stub(PolicyConfig("assets/vision/judge"))
    both = judge(samples)
    assert both.values[:3].tolist() == [0.25, 1.0, 0.25] and both.applicable.tolist() == [True] * 3 + [False] * 2
    assert judge.in_order(0)(samples).values[:3].tolist() == [0.5, 1.0, 0.0]  # a bias to the place shows
    with pytest.raises(ValueError, match=r"looks at the column 'picture', and there are \['group'\]"):
        judge(Samples(["a", "b"], {"group": [0, 0]}))


def test_the_shipped_judge_is_measured_as_any_reward_is(tmp_path: Path) -> None:
    words = ["pairs.init_args.protocol.init_args.evaluation=20", "probes.judged=60"]
    assert main(["rewards", "evaluate", "rewards/judge", *words, "--run", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())["figures"]["judge"]
    assert found["accuracy"]["value"] > 0.5 and found["applies"]["value"] > 0.8
    assert {"judge/first", "judge/consistent", "judge/accuracy_both"} <= found.keys()
    assert found["judge/repeats"]["value"] == 1


def test_an_empty_output_is_judged_as_any_other() -> None:
    """A policy that is trained by such a judge may write nothing; that ends no run."""
    picture = JudgedDigits().examples()[0].pictures()[0]
    samples = Samples(["", "odd"], {"picture": [picture] * 2, "group": [0, 0]})
    judge = TrainedJudge(PolicyConfig("assets/vision/judge"), max_new_tokens=16)
    assert judge(samples).values.shape == (2,)
