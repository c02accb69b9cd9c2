"""Pairwise-RL: comparisons in both orders by hand, groups and tournaments, a judge that is trained, and anchors that a
resume finds again."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl.cli import main
from mmrl.testing import check_reward
from mmrl.types import RewardFunction, Samples, Scores
from rewards.compose import Compares, RewardError
from rewards.evaluation import Candidates, Evaluate, Labelled, Pair, Source
from rewards.functions import as_scores
from rewards.pairwise import AgainstAnchor, Meeting, PairJudge, tournament
from rewards.training import OpenClip, TrainBradleyTerry, Trained, TrainedPairwise, TrainPairwise
from rewards.training.pairwise import pairwise_loss
from tests.tiny_pipelines import make

CLIP = "assets/rewards/clip_a"


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@dataclass(frozen=True)
class Worth(PairJudge):
    """Outputs are numbers, and so is the constant of a prompt that is added to all of them. It leans to what is shown
    first, and cannot read "?"; with `deaf` not what is shown second after a larger one either."""

    lean: float = 0.0
    deaf: bool = False
    asked: Counter[str] | None = None

    def first_better(self, samples: Samples, asked: Sequence[Meeting]) -> list[float | None]:
        if self.asked is not None:
            self.asked["questions"] += len(asked)
        constants = samples.columns.get("constant", [0.0] * len(samples))
        found: list[float | None] = []
        for i, j in asked:
            if "?" in (samples.outputs[i], samples.outputs[j]):
                found.append(None)
                continue
            u, v = (float(samples.outputs[k]) + float(constants[k]) for k in (i, j))  # type: ignore[arg-type]
            found.append(None if self.deaf and u > v else sigmoid(u - v + self.lean))
        return found


@dataclass(frozen=True)
class Brighter(PairJudge):
    """By the mean of the pixels."""

    def first_better(self, samples: Samples, asked: Sequence[Meeting]) -> list[float | None]:
        light = [float(np.asarray(one).mean()) for one in samples.outputs]
        return [sigmoid(light[i] - light[j]) for i, j in asked]


def beside(outputs: Sequence[object], anchors: Sequence[object], **columns: Sequence[object]) -> Samples:
    return Samples(outputs, {"prompt": ["q"] * len(outputs), "anchor": anchors, **columns})


# ---- against an anchor ------------------------------------------------------------------------------------


def test_the_win_probability_by_hand_and_one_half_against_oneself() -> None:
    lean, apart = 0.7, 1.3
    scores = AgainstAnchor(Worth(lean=lean))(beside([apart, 0.0, 2.0], [0.0, apart, 2.0]))
    p = (sigmoid(apart + lean) + 1 - sigmoid(-apart + lean)) / 2
    assert scores.values.tolist() == pytest.approx([p, 1 - p, 0.5])
    check_reward(AgainstAnchor(Worth(lean=lean)), beside([1.0, 2.0], [0.0, 5.0]), ())


def test_a_lean_is_gone_to_first_order_and_the_rest_is_the_second() -> None:
    apart = 0.9
    s = sigmoid(apart)
    curve = s * (1 - s) * (1 - 2 * s)

    def left(lean: float) -> float:
        return AgainstAnchor(Worth(lean=lean))(beside([apart], [0.0])).values.double().item() - s

    assert abs(sigmoid(apart + 0.2) - s) > 0.03  # one order alone
    assert left(0.2) == pytest.approx(0.2**2 / 2 * curve, rel=0.05)
    assert left(0.4) / left(0.2) == pytest.approx(4, rel=0.1)  # no first order
    assert left(-0.2) == pytest.approx(left(0.2), rel=1e-3)


def test_what_is_added_to_all_outputs_of_a_prompt_changes_no_reward() -> None:
    outputs, anchors = [1.0, -0.5, 0.25, 3.0], [0.0, 0.0, 1.0, 1.0]
    judge, group = Worth(lean=0.5), {"group": [0, 0, 1, 1]}
    constants = {"constant": [512.0, 512.0, -64.0, -64.0]}  # exact in floating point
    plain = AgainstAnchor(judge)(beside(outputs, anchors)).values
    assert torch.equal(plain, AgainstAnchor(judge)(beside(outputs, anchors, **constants)).values)
    assert torch.equal(judge(Samples(outputs, group)).values, judge(Samples(outputs, {**group, **constants})).values)


def test_log_odds_are_bounded() -> None:
    reward = AgainstAnchor(Worth(), scale="log_odds", bound=3.0)
    assert reward(beside([1.25, 50.0, -50.0, 0.0], [0.0] * 4)).values.tolist() == pytest.approx(
        [1.25, 3, -3, 0], abs=1e-5
    )
    with pytest.raises(ValueError, match=r"AgainstAnchor.scale is 'odds': give probability or log_odds"):
        AgainstAnchor(Worth(), scale="odds")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"AgainstAnchor.bound is 0: give log-odds above 0"):
        AgainstAnchor(Worth(), bound=0)


def test_what_cannot_be_read_counts_half_and_what_has_no_anchor_does_not_apply() -> None:
    scores = AgainstAnchor(Worth())(beside(["?", 1.0, 1.0], [0.0, None, 0.0]))
    assert scores.applicable.tolist() == [False, False, True]
    half = AgainstAnchor(Worth(deaf=True))(beside([1.0], [0.0]))  # only q(anchor, output) is read
    assert half.values.tolist() == pytest.approx([(0.5 + 1 - sigmoid(-1.0)) / 2])
    with pytest.raises(ValueError, match="AgainstAnchor reads the column 'reference'"):
        AgainstAnchor(Worth(), column="reference")(beside([1.0], [0.0]))


@dataclass(frozen=True)
class Loud(Compares):
    """Scores that are no probabilities."""

    def in_order(self, number: int | None) -> RewardFunction:
        return self

    def __call__(self, samples: Samples) -> Scores:
        return as_scores([10.0] * len(samples))


def test_scores_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="Loud scores from 10 to 10, which are no probabilities"):
        AgainstAnchor(Loud())(beside([1.0], [0.0]))


def test_an_anchor_of_a_picture_may_be_a_file(tmp_path: Path) -> None:
    grey = [Image.new("RGB", (4, 4), (level,) * 3) for level in (100, 101, 99)]
    grey[0].save(tmp_path / "anchor.png")
    scores = AgainstAnchor(Brighter())(beside(grey, [str(tmp_path / "anchor.png")] * 3))
    assert scores.values.tolist() == pytest.approx([0.5, sigmoid(1), sigmoid(-1)])


# ---- against a group --------------------------------------------------------------------------------------


def test_the_rewards_of_a_group_by_hand_and_their_sum() -> None:
    outputs = [0.0, 1.0, 3.0]
    scores = Worth(lean=0.4)(Samples(outputs, {"group": [7, 7, 7]}))
    p = {(i, j): (sigmoid(u - v + 0.4) + 1 - sigmoid(v - u + 0.4)) / 2 for i, u in enumerate(outputs) for j, v in enumerate(outputs)}  # fmt: skip
    assert scores.values.tolist() == pytest.approx([sum(p[i, j] for j in range(3) if j != i) / 2 for i in range(3)])
    assert float(scores.values.sum()) == pytest.approx(1.5)
    assert not Worth()(Samples([1.0], {"group": [0]})).applicable.any()  # nobody to meet


@pytest.mark.parametrize(("size", "rounds"), [(8, 3), (8, 6), (5, 1), (5, 3), (6, 2)])
def test_a_tournament_has_a_meeting_a_round_no_pair_twice_and_the_same_sum(size: int, rounds: int) -> None:
    met = tournament(size, rounds, torch.Generator().manual_seed(1))
    times = Counter(who for one, other in met for who in {one, other})
    assert set(times.values()) == {rounds} and len(times) == size
    assert len({frozenset(meeting) for meeting in met}) == len(met)
    outputs = torch.randn(2 * size, generator=torch.Generator().manual_seed(2)).tolist()
    asked: Counter[str] = Counter()
    samples = Samples(outputs, {"group": [0] * size + [1] * size})
    judge = Worth(lean=1.0, rounds=rounds, asked=asked)
    scores = judge(samples)
    assert scores.values.view(2, size).sum(1).tolist() == pytest.approx([size / 2] * 2, abs=1e-5)
    assert asked["questions"] == 2 * 2 * rounds * (size // 2)
    assert torch.equal(judge(samples).values, scores.values)  # a resume has the same
    assert not torch.equal(replace(judge, seed=1)(samples).values, scores.values)


def test_rounds_enough_for_all_are_everyone_against_everyone() -> None:
    samples = Samples([0.0, 1.0, 2.5, -1.0], {"group": [0] * 4})
    assert torch.equal(Worth(rounds=3)(samples).values, Worth()(samples).values)
    with pytest.raises(ValueError, match="Worth.rounds is 0: give 1 or more, or null for everyone against everyone"):
        Worth(rounds=0)


# ---- a judge that is trained ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fixed(Source):
    """Pairs by hand."""

    given: tuple[Pair, ...] = ()

    def pairs(self) -> list[Pair]:
        return list(self.given)


def config(**changes: object) -> TrainPairwise:
    return replace(TrainPairwise(OpenClip(model=CLIP), Fixed()), **changes)  # type: ignore[arg-type]


def test_the_loss_by_hand() -> None:
    logits, wanted = torch.tensor([[1.0, -2.0], [0.5, 0.5]]), torch.tensor([1.0, 0.5])
    entropy = [
        -math.log(sigmoid(1)),
        -math.log(sigmoid(2)),
        *[-(math.log(sigmoid(0.5)) + math.log(sigmoid(-0.5))) / 2] * 2,
    ]
    apart = [(sigmoid(1) + sigmoid(-2) - 1) ** 2, (2 * sigmoid(0.5) - 1) ** 2]
    assert float(pairwise_loss(logits, wanted, 0.0)) == pytest.approx(sum(entropy) / 4)
    assert float(pairwise_loss(logits, wanted, 3.0)) == pytest.approx(sum(entropy) / 4 + 3 * sum(apart) / 2)
    with pytest.raises(ValueError, match="consistency is -1: give 0 or more, 1 is usual"):
        config(consistency=-1)


def circle(count: int) -> tuple[torch.Tensor, list[Pair]]:
    """Stone, paper and scissors: what no score of one can say."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(3, (count,), generator=generator)
    other = (kinds + torch.randint(1, 3, (count,), generator=generator)) % 3
    vectors = torch.nn.functional.one_hot(torch.stack([kinds, other], 1), 3).float()
    better = ((other - kinds) % 3 == 1).long().tolist()  # the next one of the circle beats it
    return vectors, [Pair(f"p{i}", "q", ("a", "b"), won) for i, won in enumerate(better)]


def test_two_outputs_together_say_what_no_score_of_either_says() -> None:
    vectors, pairs = circle(400)
    parts = {"train": list(range(300)), "validation": list(range(300, 350)), "test": list(range(350, 400))}
    _, joint = config(hidden=16, epochs=15, lr=0.02).fitted(vectors, pairs, parts)
    apart = TrainBradleyTerry(OpenClip(model=CLIP), Fixed(), hidden=16, epochs=15, lr=0.02)
    _, scores = apart.fitted(vectors, pairs, parts)
    assert min(joint) < 0.1
    assert min(scores) > 0.6  # about log 2: a guess


def test_the_penalty_brings_the_orders_together() -> None:
    """Preferences by chance: what a head of two orders makes of them differs with the order."""
    vectors = torch.randn(300, 2, 16, generator=torch.Generator().manual_seed(0))
    chance = torch.randint(2, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    pairs = [Pair(f"p{i}", "q", ("a", "b"), won) for i, won in enumerate(chance)]
    parts = {name: list(range(300)) for name in ("train", "validation", "test")}
    off = []
    for weight in (0.0, 10.0):
        task = config(hidden=16, epochs=20, lr=0.01, consistency=weight)
        head, _ = task.fitted(vectors, pairs, parts)
        with torch.no_grad():
            off.append(float((head(task.read(vectors)).sigmoid().sum(1) - 1).abs().mean()))
    assert off[1] < off[0] / 2


def shades(count: int, seed: int) -> tuple[Pair, ...]:
    """Grey pictures, the brighter one better."""
    chance, found = np.random.default_rng(seed), []
    for number in range(count):
        levels = chance.choice(200, 2, replace=False) + 30
        pictures = [Image.new("RGB", (16, 16), (int(level),) * 3) for level in levels]
        found.append(Pair(f"s{seed}-{number}", "a cat", (pictures[0], pictures[1]), int(levels[1] > levels[0])))
    return tuple(found)


def test_a_trained_judge_comes_back_from_disk_as_a_judge_of_groups_and_anchors(tmp_path: Path) -> None:
    task = config(pairs=Fixed(shades(150, 0)), hidden=16, epochs=40, lr=0.01)
    assert task.run(tmp_path / "pairwise") == 0
    about = json.loads((tmp_path / "pairwise" / "training.json").read_text())
    judge = TrainedPairwise(str(tmp_path / "pairwise"))
    fresh = shades(60, 1)
    figures = Evaluate({"judge": judge}, Fixed(fresh)).measured({"judge": judge}, fresh).figures["judge"]
    assert figures["accuracy"].value > 0.9 < about["accuracy"]["test"]["value"]
    assert {"judge/first", "judge/consistent", "judge/accuracy_both"} <= figures.keys()
    dark, bright = (Image.new("RGB", (16, 16), (level,) * 3) for level in (60, 200))
    reward = AgainstAnchor(judge)
    scores = reward(
        Samples([bright, dark, dark, None], {"prompt": ["a cat"] * 4, "anchor": [dark, dark, bright, dark]})
    )
    values = scores.values.tolist()
    assert values[1] == pytest.approx(0.5) and values[0] > 0.8 and values[0] + values[2] == pytest.approx(1.0)
    assert scores.applicable.tolist() == [True, True, True, False]
    with pytest.raises(RewardError, match=r"reads 2 outputs at once: use rewards.training.TrainedPairwise"):
        Trained(judge.folder)(Samples([dark], {"prompt": ["a cat"]}))
    TrainBradleyTerry(task.backbone, task.pairs, epochs=1).run(tmp_path / "bt")
    with pytest.raises(RewardError, match=r"reads 1 outputs at once: use rewards.training.Trained$"):
        reward = AgainstAnchor(TrainedPairwise(str(tmp_path / "bt")))
        reward(Samples([dark], {"prompt": ["a cat"], "anchor": [bright]}))
    with pytest.raises(ValueError, match=r"TrainedPairwise.folder '.*' has no head.json"):
        TrainedPairwise(str(tmp_path))


@dataclass(frozen=True)
class Numbers(Candidates):
    """Two prompts, one with a tie."""

    def draw(self) -> Samples:
        return Samples(["1", "3", "3", "2", "x", "0"], {"prompt": ["a", "a", "a", "b", "b", "b"]})


@dataclass(frozen=True)
class Read(RewardFunction):
    """The number that is written."""

    def __call__(self, samples: Samples) -> Scores:
        return as_scores([float(o) if str(o).isdigit() else None for o in samples.outputs])


def test_pairs_labelled_by_a_known_reward() -> None:
    found = Labelled(Numbers(), Read()).pairs()
    told = [(pair.prompt, pair.outputs, pair.better, pair.cluster) for pair in found]
    assert told == [
        ("a", ("1", "3"), 1, "prompt-0"), ("a", ("1", "3"), 1, "prompt-0"), ("a", ("3", "3"), None, "prompt-0"),
        ("b", ("2", "0"), 0, "prompt-1"),
    ]  # fmt: skip


# ---- anchors of a run -------------------------------------------------------------------------------------

PROJECT = """\
experiment: diffusion
policy: {{model: {model}, scheduler: LCMScheduler, critic: {{widths: [8]}}}}
anchors: true
data: {{train: train.txt, eval: held_out.txt, eval_pictures: 2}}
rewards: {{wins: {{use: {{class_path: rewards.pairwise.AgainstAnchor, init_args: {{judge: tests.test_pairwise.Brighter}}}}}}}}
watch: []
algorithm:
  advantage: mmrl.advantages.GAE
  surrogate: {{class_path: mmrl.surrogates.PPOClip, init_args: {{clip_low: 1.0e-4, clip_high: 1.0e-4}}}}
  aggregate: mmrl.aggregates.TokenMean
  value_loss: mmrl.value_loss.ValueRegression
sampling: {{steps: 3, guidance: 1.0, size: [16, 16]}}
rollout: {{prompts: 2, group: 2}}
train: {{steps: 2, lr: 3.0e-2}}
evaluate: {{every: null, samples: 1}}
save: {{every: 1}}
logging: {{progress: false}}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make("sd", tmp_path / "sd")
    (tmp_path / "train.txt").write_text("a red cat\na blue dog\n")
    (tmp_path / "held_out.txt").write_text("a blue cat\na cat\n")
    (tmp_path / "anchored.yaml").write_text(PROJECT.format(model=tmp_path / "sd"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_before_training_all_is_its_own_anchor_and_a_resume_has_the_same(project: Path) -> None:
    assert main(["train", "anchored.yaml", "--run", "whole"]) == 0
    whole = json.loads(Path("whole/summary.json").read_text())
    assert whole["eval_before"]["reward"]["value"] == 0.5 == whole["eval_before"]["reward"]["low"]  # of the same noise
    assert whole["eval_after"]["reward"]["value"] != 0.5
    anchors = sorted(path.relative_to("whole") for path in Path("whole/anchors").rglob("*.png"))
    assert len(anchors) == 2 + 2 * 2
    assert main(["train", "anchored.yaml", "--run", "halves", "train.steps=1"]) == 0
    kept = {name: (Path("halves") / name).stat().st_mtime_ns for name in anchors}
    assert main(["train", "--run", "halves", "--resume", "train.steps=2"]) == 0
    assert kept == {name: (Path("halves") / name).stat().st_mtime_ns for name in anchors}  # not drawn again
    assert json.loads(Path("halves/summary.json").read_text())["eval_after"] == whole["eval_after"]
    assert all((Path("halves") / name).read_bytes() == (Path("whole") / name).read_bytes() for name in anchors)
    anchor = Path("halves") / anchors[0]
    anchor.unlink()
    assert main(["evaluate", "halves"]) == 2


def test_a_data_column_and_drawn_anchors_do_not_go_together(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "train.jsonl").write_text('{"prompt": "a red cat", "anchor": "cat.png"}\n')
    assert main(["train", "anchored.yaml", "--run", "run", "data.train=train.jsonl"]) == 2
    assert "anchors is true and data has a column anchor" in capsys.readouterr().err
