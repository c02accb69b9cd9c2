"""Paired comparisons: the statistics by hand, and whole comparisons on the toy domain."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from mmrl.arms import read_plan
from mmrl.cli import main
from mmrl.comparison import Arm, Comparison
from mmrl.run import RunFolder
from mmrl.yaml_files import ConfigError
from tests.toy import toy_config


def arm(name: str, *after: float) -> Arm:
    seeds = range(len(after))
    return Arm(name, dict(enumerate(after)), dict.fromkeys(seeds, 0.1), dict.fromkeys(seeds, 2.0))


def test_the_paired_interval_by_hand():
    """Differences 0.1, 0.2, 0.3: mean 0.2, sd 0.1, t(0.975, 2) = 4.302653."""
    a, b = arm("a", 0.6, 0.8, 1.0), arm("b", 0.5, 0.6, 0.7)
    found = Comparison([b, a], "accuracy").difference(a, b)
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.2 - half, abs=1e-6), pytest.approx(0.2 + half, abs=1e-6))
    assert found.n == 3


def test_pairing_uses_only_the_seeds_of_both():
    a = Arm("a", {0: 1.0, 1: 1.0, 5: 9.0}, {0: 0.0}, {0: 0.0})
    b = Arm("b", {0: 0.5, 1: 0.3, 7: -9.0}, {0: 0.0}, {0: 0.0})
    found = Comparison([a, b], "m").difference(a, b)
    assert (found.value, found.n) == (pytest.approx(0.6), 2)


def test_what_overlaps_is_not_ranked():
    arms = [arm("a", 0.5, 0.6, 0.7), arm("b", 0.55, 0.5, 0.8), arm("c", 0.1, 0.2, 0.31)]
    found = Comparison(arms, "accuracy")
    ranks = {a.name: found.rank(a) for a in arms}
    assert ranks["a"] == ranks["b"] == 1
    assert ranks["c"] > 1
    text = " ".join(found.sentences())
    assert "a is better than c" in text
    assert "Not told apart by accuracy, so not ranked: a and b" in text


def test_pairing_sees_what_the_spread_over_seeds_hides():
    """Seeds differ by 0.3, arms by 0.05 in every seed."""
    a, b = arm("a", 0.3, 0.6, 0.9, 0.45), arm("b", 0.25, 0.551, 0.851, 0.4)
    assert Comparison([b, a], "accuracy").rank(b) == 2


def test_lower_may_be_better():
    a, b = arm("a", 1.0, 2.0, 3.0), arm("b", 0.1, 1.1, 2.11)
    found = Comparison([a, b], "loss", higher_is_better=False)
    assert (found.rank(b), found.rank(a)) == (1, 2)


def test_many_arms_need_more_than_two_do():
    """The same pair is told apart alone and not among twelve arms."""
    a, b = arm("a", 0.60, 0.63, 0.57), arm("b", 0.50, 0.51, 0.49)
    assert Comparison([a, b], "m").beats(a, b)
    others = [arm(f"o{i}", 0.5, 0.6, 0.4) for i in range(10)]
    assert not Comparison([a, b, *others], "m").beats(a, b)


@pytest.mark.parametrize("values", [(0.1,), (0.1, 0.2)])
def test_fewer_than_three_seeds_rank_nothing(values):
    found = Comparison([arm("a", *values), arm("b", *(v + 5 for v in values))], "m")
    assert [found.rank(a) for a in found.arms] == [1, 1]
    assert found.sentences()[0].startswith("Nothing is ranked")


def test_the_same_difference_in_every_seed_is_not_ranked():
    assert Comparison([arm("a", 0.5, 0.5, 0.5), arm("b", 0.25, 0.25, 0.25)], "m").rank(arm("b", 0.25, 0.25, 0.25)) == 1


def test_identical_arms_are_not_told_apart():
    assert not Comparison([arm("a", 0.5, 0.5, 0.5), arm("b", 0.5, 0.5, 0.5)], "m").beats(
        arm("a", 0.5, 0.5, 0.5), arm("b", 0.5, 0.5, 0.5)
    )


def test_tables_are_escaped_and_complete():
    found = Comparison([arm("plain", 0.5, 0.6, 0.7), arm("50%_more & {x}", 0.1, 0.2, 0.31)], "accuracy")
    rows = list(csv.DictReader(found.to_csv().splitlines()))
    assert [row["arm"] for row in rows] == ["plain", "50%_more & {x}"]
    assert float(rows[1]["difference"]) == pytest.approx(-0.396667, abs=1e-6)
    latex = found.to_latex()
    assert r"50\%\_more \& \{x\}" in latex
    assert latex.count(r"\\") == 3
    assert "rank" in latex


def write(folder: Path, monkeypatch, text: str) -> Path:
    monkeypatch.chdir(folder)
    toy_config(folder, steps=3)
    (folder / "own.yaml").write_text(text)
    return folder / "own.yaml"


TWO = """\
recipe: toy.yaml
overrides: [evaluate.every=null]
arms:
  plain: []
  faster: [train.lr=0.1]
seeds: [0, 1, 2]
workers: 2
"""


def environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def finished(folder: Path) -> list[Path]:
    """Summaries of runs whose controls are done too: an earlier one is written for the case that these are killed."""
    found = folder.glob("found/*/seed*/summary.json")
    return [path for path in found if not json.loads(path.read_text()).get("controls_pending")]


def test_a_comparison_runs_survives_a_kill_and_is_not_run_twice(tmp_path, monkeypatch, capsys):
    file = write(tmp_path, monkeypatch, TWO)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    words = [sys.executable, "-m", "mmrl", "compare", str(file), "--run", "found"]
    child = subprocess.Popen(
        words, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored where the suite runs in a shell's background
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (ended := finished(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=60) == 130
    before = ended[0].stat().st_mtime_ns
    assert main(["compare", str(file), "--run", "found"]) == 0
    assert ended[0].stat().st_mtime_ns == before
    rows = list(csv.DictReader((tmp_path / "found" / "table.csv").read_text().splitlines()))
    assert [(row["arm"], row["seeds"]) for row in rows] == [("plain", "3"), ("faster", "3")]
    summaries = [json.loads((tmp_path / "found" / "plain" / f"seed{s}" / "summary.json").read_text()) for s in range(3)]
    mean = sum(summary["eval_after"]["accuracy"]["value"] for summary in summaries) / 3
    assert float(rows[0]["mean"]) == pytest.approx(mean)
    page = (tmp_path / "found" / "report.html").read_text()
    assert "Arms" in page
    assert "faster, 3 seeds" in page
    file.write_text(TWO.replace("0.1]", "0.2]"))
    assert main(["compare", str(file), "--run", "found"]) == 2
    assert "was run with other values of train.lr" in capsys.readouterr().err


def test_a_failed_run_stops_no_other(tmp_path, monkeypatch, capsys):
    text = "recipe: toy.yaml\narms: {plain: [], broken: ['rewards.right.use={class_path: tests.test_compare.Broken}']}\nseeds: [0]\n"
    file = write(tmp_path, monkeypatch, text)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    assert main(["compare", str(file), "--run", "found"]) == 1
    said = capsys.readouterr().out
    assert "failed: broken, seed 0: see found/broken/seed0.log" in said
    assert "on purpose" in (tmp_path / "found" / "broken" / "seed0.log").read_text()
    assert "plain" in (tmp_path / "found" / "table.csv").read_text()


from dataclasses import dataclass  # noqa: E402

from mmrl.types import RewardFunction, Samples, Scores  # noqa: E402


@dataclass(frozen=True)
class Broken(RewardFunction):
    def __call__(self, samples: Samples) -> Scores:
        raise RuntimeError("on purpose")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("arms:", "amrs:"), "did you mean 'arms'"),
        (("[0, 1, 2]", "[0, 0]"), "each once"),
        (("[0, 1, 2]", "3"), "give whole numbers"),
        (("faster: [train.lr=0.1]", "faster: [train.lr]"), "give a list of key=value"),
        (("faster: [train.lr=0.1]", "faster: [train.lrr=0.1]"), "did you mean 'lr'"),
        (("recipe: toy.yaml\n", ""), "has no recipe"),
        (("workers: 2", "workers: none"), "workers is 'none'"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is(tmp_path, monkeypatch, change, words):
    file = write(tmp_path, monkeypatch, TWO.replace(*change))
    with pytest.raises(ConfigError, match=words):
        read_plan(file, tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_a_grid_is_every_arm_at_every_value(tmp_path, monkeypatch):
    file = write(tmp_path, monkeypatch, TWO + "grid: {train.lr: [0.1, 0.2], train.steps: [3]}\n")
    plan = read_plan(file, tmp_path / "found")
    assert len(plan.runs) == 2 * 2 * 3
    assert plan.runs[0].arm == "plain, train.lr=0.1, train.steps=3"
    assert plan.runs[0].overrides[-2:] == ("train.lr=0.1", "train.steps=3")


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with RunFolder(tmp_path / "run").in_use():
        code = f"from pathlib import Path; from mmrl.run import RunFolder\nwith RunFolder(Path({str(tmp_path / 'run')!r})).in_use(): pass"
        done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
        assert "another process trains in" in done.stderr
    with RunFolder(tmp_path / "run").in_use():
        pass
