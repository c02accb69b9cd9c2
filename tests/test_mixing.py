"""Training on several tasks: which examples come next, who scores them, and what pilot runs say of mixtures."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrl.cli import main
from mmrl.config import load
from mmrl.mixtures import basis, design
from mmrl.order import Weighted
from mmrl.pilots import FindMixture, _mean_of_others, sentences, worth
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.tasks import train_missing
from mmrl.types import RewardFunction, Samples, Scores
from mmrl.yaml_files import ConfigError
from rewards.boxes import BoxIoU
from rewards.tasks import ByTask
from rewards.text import AnswerMatch
from tests.toy import toy_config
from vision.data import Mixed, Placed, Source, TableCharts

RUNTIME = Runtime(RuntimeConfig(device="cpu"), seed=3)
TASKS = ["a"] * 5 + ["b"] * 7 + ["c"] * 3
WEIGHTS = {"a": 0.5, "b": 1.5, "c": 0.0}


def order(seed: int = 3, weights: dict[str, float] | None = None) -> Weighted:
    return Weighted(TASKS, weights or WEIGHTS, Runtime(RuntimeConfig(device="cpu"), seed=seed), "prompts")


# ---- which examples come next -------------------------------------------------------------------------------------


def test_tasks_come_as_often_as_their_weights_say() -> None:
    weights, drawn = {"a": 0.2, "b": 0.5, "c": 0.3}, Counter[str]()
    made = order(weights=weights)
    for number in range(1, 400):
        drawn[TASKS[made.take(1)[0]]] += 1
        assert all(abs(drawn[task] - weights[task] * number) <= 1 for task in weights)
    assert {TASKS[number] for number in order().take(200)} == {"a", "b"}  # a weight of 0 is never drawn


def test_within_a_task_none_comes_twice_before_all_have_come() -> None:
    taken = order().take(64)
    for task, size in (("a", 5), ("b", 7)):
        own = [number for number in taken if TASKS[number] == task]
        for epoch in range(len(own) // size):
            assert len(set(own[epoch * size : (epoch + 1) * size])) == size


def test_the_order_is_of_the_seed_and_goes_on_where_it_stood() -> None:
    whole = order().take(40)
    assert whole == order().take(40) and whole != order(seed=4).take(40)
    first = order()
    assert first.take(7) == whole[:7]
    state, again = json.loads(json.dumps(first.state_dict())), order()
    again.load_state_dict(state)
    assert again.take(9) + again.take(24) == whole[7:]
    assert order().share(12) == (range(12), whole[:12])


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}])
def test_every_task_with_examples_has_a_weight(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give every task with examples a weight"):
        order(weights=weights)


@pytest.mark.parametrize("weights", [{"x": 1.0}, {"x": 1.0, "y": -1.0}, {"x": 0.0, "y": 0.0}, {"x": 1.0, "y": np.inf}])
def test_weights_that_are_none_are_refused(weights: dict[str, float]) -> None:
    sources: dict[str, Source] = {"x": Placed(count=2), "y": Placed(count=2)}
    with pytest.raises(ValueError, match=r"data\.source\.weights is"):
        Mixed(sources, weights)


def test_objects_beside_are_of_the_same_part_of_the_digits() -> None:
    """A training picture shows no digit that another part holds out, not even beside the one that is asked for."""
    own = [Placed(first=first, count=4, task="count", objects_each=9, scale=(0.1, 0.1)) for first in (0, 1700)]
    labels = [{label for example in source.examples() for label in example.columns["labels"]} for source in own]  # type: ignore[attr-defined]
    for found, source in zip(labels, own, strict=True):
        only = Placed(first=source.first, count=4).examples()
        assert found <= {example.answer for example in only}


# ---- who scores them ----------------------------------------------------------------------------------------------


class Alone(RewardFunction):
    """Refuses to be shown rows of another task, and does not apply to the output "none"."""

    def __call__(self, samples: Samples) -> Scores:
        assert set(samples.columns["task"]) == {"b"} and list(samples.ids) == ["1", "3"]
        applies = torch.tensor([output != "none" for output in samples.outputs])
        return Scores(torch.where(applies, 0.25, 9.0), applies)


SHOWN = Samples(
    ["x", "some", "0 0 2 2", "none", "x"],
    {
        "task": ["a", "b", "c", "b", "d"], "answer": ["x", "", "", "", "x"],
        "boxes": [None, None, ((0, 0, 4, 2),), None, None],
    },
    ["0", "1", "2", "3", "4"],
)  # fmt: skip


def test_each_row_is_scored_by_the_rule_of_its_task() -> None:
    found = ByTask({"a": AnswerMatch(), "b": Alone(), "c": BoxIoU(), "e": Alone()})(SHOWN)
    assert found.values.tolist() == [1.0, 0.25, 0.5, 0.0, 0.0]
    assert found.applicable.tolist() == [True, True, True, False, False]  # nobody scores task d, b not its second
    assert found.parts["b"].applicable.tolist() == [False, True, False, False, False]
    assert not found.parts["e"].applicable.any()


def test_by_task_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="goes by the column 'task'"):
        ByTask({"a": AnswerMatch()})(Samples(["x"], {"answer": ["x"]}))
    with pytest.raises(ValueError, match="uses is empty"):
        ByTask({})
    with pytest.raises(ValueError, match=r"has a rule for 'nmae', and the data has the tasks \['count', 'name'\]"):
        ByTask({"nmae": AnswerMatch()}).check_tasks(["name", "count"])
    with pytest.raises(ValueError, match="cannot be imported"):
        ByTask({"a": "rewards.text.no_such"})


def test_the_recipe_holds_out_other_digits_and_draws_by_its_weights(tmp_path: Path) -> None:
    small = ["data.source.weights={name: 1, count: 0, box: 3}", "rollout.prompts=8", "rollout.group=2"]
    experiment = load("vision/mixture", small).experiment
    parts = experiment.build(RUNTIME)
    with torch.no_grad():
        rollout = parts.collector.collect(parts.policy, torch.Generator().manual_seed(0))
    asked = Counter(str(example.columns["task"]) for example in vars(parts.collector)["asked"])
    assert asked == {"name": 4, "box": 12}
    assert rollout.alive.any(-1).all()
    split = vars(experiment)["data"].split
    numbers = [{int(e.id.rpartition("-")[2]) for e in part} for part in (split.pool, split.evaluation)]
    assert max(numbers[0]) < min(numbers[1]) and min(numbers[0]) >= 400  # the start saw those before
    assert Counter(e.columns["task"] for e in split.evaluation) == {"name": 250, "count": 250, "box": 250}


# ---- what pilot runs say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_the_design_tells_all_terms_apart(tasks: int) -> None:
    found = design(tasks)
    assert found.sum(1) == pytest.approx(1.0) and (found >= 0).all()
    assert len(found) == {2: 5, 3: 10, 5: 21}[tasks]  # of two tasks the half and all alike are one
    assert np.linalg.matrix_rank(basis(found)) == tasks * (tasks + 1) // 2 < len(found)


def plan(**more: object) -> FindMixture:
    given = {"recipe": "vision/mixture", "key": "data.source.weights", "tasks": ("x", "y", "z"), "figures": ("f", "g")}
    return FindMixture(**{**given, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tasks": ("x",)}, "two or more names"),
        ({"tasks": ("x", "x")}, "two or more names"),
        ({"figures": ()}, "one or more"),
        ({"pilots": ((1.0, 0.0, 0.0),) * 8}, "8 pilots tell 1 of 6 terms apart"),
        ({"held_out": ((0.5, 0.5),)}, "give 3 weights"),
        ({"held_out": ((0.0, 0.0, 0.0),)}, "not all 0"),
        ({"held_out": ((2.0, 2.0, 0.0),)}, "which is a pilot too"),
        ({"seeds": ()}, "seeds is"),
        ({"seeds": (1, 1)}, "each once"),
    ],
)
def test_a_plan_that_cannot_say_anything_is_refused_before_it_runs(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(**wrong)


def test_runs_are_the_recipe_at_each_mixture() -> None:
    runs = plan(held_out=((6.0, 3.0, 1.0),), seeds=(0, 7), overrides=("train.steps=2",)).runs()
    assert len(runs) == 2 * 11
    recipe, words = runs["0.6000_0.3000_0.1000_seed7"]
    assert recipe == "vision/mixture" and words[0] == "train.steps=2" and words[-1] == "seed=7"
    assert 'data.source.weights={"x": 0.6, "y": 0.3, "z": 0.1}' in words


def finished(folder: Path, made: FindMixture, best: np.ndarray, noise: float = 0.0) -> None:
    """Summaries of the runs of a plan, of a quadratic with its highest value at `best`; of the two figures one is .1
    above and one .1 below the score, and seed 1 is `noise` above seed 0."""
    for name, (_, words) in made.runs().items():
        mapping = next(word for word in words if word.startswith(made.key))
        weights = np.array(list(json.loads(mapping.partition("=")[2]).values()))
        score = 0.8 - float(((weights - best) ** 2).sum()) + noise * name.endswith("seed1")
        target = folder / "runs" / name / "summary.json"
        target.parent.mkdir(parents=True)
        target.write_text(json.dumps({"eval_after": {"f": {"value": score + 0.1}, "g": {"value": score - 0.1}}}))


def test_the_command_finds_the_mixture_and_says_how_far_to_believe_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "plan.yaml"
    config.write_text(
        "task: mmrl.pilots.FindMixture\nrecipe: vision/mixture\nkey: data.source.weights\ntasks: [x, y, z]\n"
        "figures: [f, g]\nheld_out: [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1]]\nridge: 1.0e-9\n"
    )
    best = np.array([0.5, 0.3, 0.2])
    made = plan(held_out=((0.6, 0.3, 0.1), (0.1, 0.8, 0.1)), seeds=(0, 1))
    finished(tmp_path / "found", made, best, noise=0.02)
    assert main(["mixture", str(config), "seeds=[0, 1]", "--run", str(tmp_path / "found")]) == 0
    said = capsys.readouterr().out
    assert "Most is expected of x 0.50, y 0.30, z 0.20: 0.810" in said
    assert "On 2 held-out mixtures the prediction is off by 0.000, closer than the mean of the pilots" in said
    found = json.loads((tmp_path / "found" / "mixture.json").read_text())
    assert found["chosen"]["weights"] == pytest.approx(best, abs=0.01)
    assert found["noise"] == pytest.approx(0.02 / 2**0.5)
    assert found["worth"]["held_out"]["rank_correlation"] == pytest.approx(1.0)
    assert found["worth"]["left_out"]["error"] < 1e-4 < found["worth"]["left_out"]["error_of_the_mean"]


def test_a_figure_that_no_run_has_is_named(tmp_path: Path) -> None:
    made = plan(figures=("f", "h"))
    finished(tmp_path, made, np.full(3, 1 / 3))
    with pytest.raises(ValueError, match=r"figures has 'h', which .* has not; it has f, g"):
        made.run(tmp_path)


def test_worth_is_beside_that_of_the_mean() -> None:
    found = worth([0.1, 0.3], [0.2, 0.2], 0.25)
    assert found["error"] == pytest.approx(0.1) and found["error_of_the_mean"] == pytest.approx(0.05)
    assert found["rank_correlation"] is None
    others = _mean_of_others([0.1, 0.2, 0.6])
    assert others == pytest.approx([0.4, 0.35, 0.15])
    assert worth([0.1, 0.2, 0.6], [0.1, 0.2, 0.6], others)["error_of_the_mean"] == pytest.approx(0.3)


def test_finished_pilots_of_another_config_are_no_pilots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_config(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    assert train_missing({"one": ("toy.yaml", ["seed=3"])}, tmp_path) == 0
    before = (tmp_path / "runs" / "one" / "summary.json").stat().st_mtime_ns
    assert train_missing({"one": ("toy.yaml", ["seed=3"])}, tmp_path) == 0  # it is there
    assert (tmp_path / "runs" / "one" / "summary.json").stat().st_mtime_ns == before
    with pytest.raises(
        ConfigError, match=r"one was run with another config \(train.steps: 1 -> 2\): name another folder"
    ):
        train_missing({"one": ("toy.yaml", ["seed=3", "train.steps=2"])}, tmp_path)


def test_mixed_sources_keep_their_own_ids_thoughts_and_drafts() -> None:
    charts = TableCharts(count=4)
    mixed = Mixed({"charts": charts})
    example, own = mixed.examples()[0], charts.examples()[0]
    assert example.id == f"charts/{own.id}"
    assert mixed.draft(example, random.Random(0)) == charts.draft(own, random.Random(0))
    with pytest.raises(ValueError, match="has a column 'task', which is for the name of its source"):
        Mixed({"outer": mixed}).examples()


def test_what_was_trained_in_the_end_is_told_in_pairs() -> None:
    runs = {"chosen": [{"score": 0.5}, {"score": 0.7}], "uniform": [{"score": 0.4}, {"score": 0.4}]}
    half = {"weights": [0.5, 0.5], "predicted": 0.5}
    told = {"worth": {}, "noise": None, "tasks": ["x", "y"], "chosen": half, "uniform": half, "final": runs}
    assert "a difference of +0.200 ± 0.141 over 2 seeds" in sentences(told)[-1]


def test_the_command_is_for_its_own_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mixture", "rewards/train"]) == 2
    assert "is for `mmrl rewards train`, not `mmrl mixture`" in capsys.readouterr().err
