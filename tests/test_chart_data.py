"""Charts of real tables: equal to what the sandbox draws, no program twice, and a division that keeps programs apart."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from mmrl.config import load
from rewards.render import Baseline, Charts, Differences, Within
from rewards.render.elements import chart_of, right_elements
from tests.rendering import need_bubblewrap
from vision.data import FewPairs, TableCharts, drawings
from vision.data.charts import COLOURS, KINDS, drawn, program, slipped
from vision.data.tables import FEWEST, SKLEARN, VEGA, columns

pytest.importorskip("vega_datasets")
pytestmark = pytest.mark.timeout(180)
SMALL = TableCharts(count=150)


def test_tables_are_real_and_none_is_missing() -> None:
    found = columns()
    assert {column.table for column in found} == {*SKLEARN, *VEGA}
    assert all(len(set(column.numbers)) >= FEWEST for column in found)
    assert all(math.isfinite(number) for column in found for number in column.numbers)
    wheat = next(column for column in found if (column.table, column.name) == ("wheat", "wheat"))
    assert wheat.numbers[:3] == (41, 45, 42)
    iris = next(column for column in found if column.table == "iris")
    assert iris.numbers[:2] == (5.1, 4.9)


def test_no_program_stands_twice_and_values_are_of_few_levels() -> None:
    examples = SMALL.examples()
    assert SMALL.examples() is examples  # drawn once
    assert len({example.answer for example in examples}) == len({example.id for example in examples}) == 150
    kinds = Counter(str(example.columns["kind"]) for example in examples)
    assert set(kinds) == set(KINDS) and min(kinds.values()) > 30
    for example in examples:
        chart = chart_of(example.answer)
        assert chart is not None and chart.kind == example.columns["kind"]
        assert set(chart.colours) <= set(COLOURS)
        levels = [10 * value for value in chart.values] if chart.kind == "pie" else chart.values
        assert all(abs(level - round(level)) < 1e-9 and 1 <= level <= 8 for level in levels)
        if chart.kind != "pie":
            assert program(chart) == example.answer
        assert SMALL.thought_agrees(SMALL.thought(example), f"<answer>{example.answer}</answer>")
    first, second = examples[:2]
    assert SMALL.thought_agrees(SMALL.thought(first), second.answer) is False
    assert SMALL.thought_agrees("I do not know.", first.answer) is None


@pytest.mark.parametrize("source", [SMALL, TableCharts(count=12, size=48, values=4, seed=1)], ids=["32", "48"])
def test_the_pictures_are_what_the_sandbox_draws(source: TableCharts) -> None:
    need_bubblewrap()
    examples = source.examples()[:45]
    with Within(Charts(workers=1), source.before()) as renderer:
        for drawn, example in zip(renderer.render([one.answer for one in examples]), examples, strict=True):
            assert drawn.picture is not None, drawn.message
            assert np.array_equal(drawn.picture, np.asarray(example.images[0])), example.answer


def test_a_slip_is_one_thing_wrong_and_the_differ_sees_it() -> None:
    chance = np.random.default_rng(0)
    for example in SMALL.examples():
        gold = chart_of(example.answer)
        wrong = chart_of(program(slipped(gold, chance)))
        assert gold is not None and wrong is not None
        right, of = right_elements(wrong, gold)
        assert of - 2 <= right < of or gold.kind == "pie"
        assert wrong.kind == gold.kind and len(wrong.values) == len(gold.values)
        said = Differences()(np.asarray(drawn([wrong], 32)[0]), np.asarray(example.images[0]))
        if wrong.kind != "pie" or wrong.colours != gold.colours:
            assert said != "same.", (program(wrong), example.answer)


def test_few_pairs_are_demonstrations_and_only_theirs_are_labels() -> None:
    split = FewPairs(pairs=40, evaluation=30, dev=20, pool=50).split(SMALL)
    parts = (split.demonstrations, split.pool, split.dev, split.evaluation)
    assert [len(part) for part in parts] == [40, 50, 20, 30]
    assert len({example.answer for part in parts for example in part}) == 140
    assert set(split.labels) == {example.answer for example in split.demonstrations}
    more = FewPairs(pairs=60, evaluation=30, dev=20).split(SMALL)
    assert more.demonstrations[:40] == split.demonstrations and more.evaluation == split.evaluation
    with pytest.raises(ValueError, match="leaves nothing for RL"):
        FewPairs(pairs=100, evaluation=30, dev=20).split(SMALL)
    with pytest.raises(ValueError, match="pairs 0"):
        FewPairs(pairs=0)


@pytest.mark.parametrize("task", ["charts", "pages", "emoji"])
def test_the_recipe_knows_what_unrelated_pictures_get(task: str) -> None:
    experiment = load(f"vision/rrvf_{task}").experiment
    pool = experiment.data.split.pool
    measured = Baseline.of([np.asarray(example.images[0]) for example in pool], seed=0, pairs=256).means
    vision, tools = experiment.rewards["vision"].use, experiment.rewards["tools"].use
    assert vision.alike.baseline.means == pytest.approx(measured, abs=0.002)
    assert tools.vision == vision
    renderer = experiment.tool.renderer
    around = (experiment.data.training.before(), "") if task != "emoji" else (drawings.BEFORE, drawings.AFTER)
    assert (renderer.before, renderer.after) == around


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="values 5"):
        TableCharts(values=5)
    with pytest.raises(ValueError, match="kinds"):
        TableCharts(kinds=("bars",))
    with pytest.raises(ValueError, match="there are only"):
        TableCharts(count=500, values=2, kinds=("pie",)).examples()
