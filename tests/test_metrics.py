"""Intervals, tallies, rollout metrics and the metrics file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from mmrl.metrics import MetricWriter, Tally, rollout_metrics, wilson
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.types import Rollout
from tests.toy import ToyTransitions

RUNTIME = Runtime(RuntimeConfig(device="cpu"), 0)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775328),  # z^2 / (n + z^2)
        (10, 10, 0.7224672, 1.0),
        (5, 10, 0.2365931, 0.7634069),
        (15, 148, 0.0624, 0.1605),  # Newcombe 1998, table I
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_interval(successes: int, n: int, low: float, high: float) -> None:
    found = wilson(successes, n)
    assert (found.value, found.n) == (successes / n, n)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


def test_wilson_of_nothing_knows_nothing() -> None:
    found = wilson(0, 0)
    assert (found.low, found.high, found.n) == (0.0, 1.0, 0)


def test_tally_means_count_decisions_and_not_micro_batches() -> None:
    tally = Tally()
    tally.add_masked("update", {"kl": torch.tensor([[1.0, 2.0, math.nan]])}, torch.tensor([[True, True, False]]))
    tally.add_masked("update", {"kl": torch.tensor([[6.0]])}, torch.tensor([[True]]))
    tally.add_masked("update", {"kl": torch.tensor([[math.nan]])}, torch.tensor([[False]]))
    tally.add("update/loss", 1.0)
    tally.add("update/loss", 3.0)
    tally.maximum("ratio", 1.5)
    tally.maximum("ratio", 1.25)
    assert tally.over_ranks(RUNTIME) == {"update/kl": 3.0, "update/loss": 2.0, "ratio": 1.5}


def test_tally_leaves_out_what_nothing_counted() -> None:
    tally = Tally()
    tally.add_masked("update", {"kl": torch.zeros(1, 1)}, torch.tensor([[False]]))
    assert tally.over_ranks(RUNTIME) == {}


def test_tally_maximum_does_not_hide_nan() -> None:
    tally = Tally()
    tally.maximum("parity/logprob_diff_max", math.nan)
    tally.maximum("parity/logprob_diff_max", 0.0)
    assert math.isnan(tally.over_ranks(RUNTIME)["parity/logprob_diff_max"])


def rollout() -> Rollout:
    """Two groups: one of equal rewards, one with a failed row."""
    nan = math.nan
    alive = torch.tensor([[True, True], [True, False], [True, True], [False, False]])
    blank = torch.zeros(4, 2)
    return Rollout(
        transitions=ToyTransitions(blank.long(), blank.long()),
        logprobs=blank,
        mask=alive,
        alive=alive,
        rewards=torch.tensor([[0.1, 0.2], [0.3, nan], [0.0, 5.0], [nan, nan]]),
        discounts=blank + 1,
        group_ids=torch.tensor([0, 0, 1, 1]),
        stats={"entropy": torch.tensor([[1.0, 2.0], [3.0, nan], [2.0, 2.0], [nan, nan]])},
        reward_parts={"form": torch.tensor([1.0, 0.0, 0.0, 9.0])},
        applicable={"form": torch.tensor([True, True, False, True])},
    )


def test_rollout_metrics() -> None:
    found = rollout_metrics(rollout())
    assert found["rollout/reward_mean"] == pytest.approx((0.3 + 0.3 + 5.0) / 3)
    assert found["rollout/reward_std"] == pytest.approx(float(torch.tensor([0.3, 0.3, 5.0]).std(correction=0)))
    assert found["rollout/length_mean"] == pytest.approx(5 / 3)
    assert found["rollout/zero_spread_groups"] == pytest.approx(1.0)  # the second has one valid row left
    assert found["rollout/failed_rows"] == 0.25
    assert found["rollout/entropy"] == pytest.approx(2.0)
    assert found["reward/form"] == 0.5


def test_zero_spread_groups_is_a_share_of_groups() -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    alive = torch.ones(4, 2, dtype=torch.bool)
    changed = rollout().with_(rewards=rewards, alive=alive, mask=alive, stats={})
    assert rollout_metrics(changed)["rollout/zero_spread_groups"] == pytest.approx(0.5)


def test_rollout_where_everything_failed() -> None:
    nothing = torch.zeros(4, 2, dtype=torch.bool)
    found = rollout_metrics(rollout().with_(alive=nothing, mask=nothing, reward_parts={}, applicable={}))
    assert found["rollout/failed_rows"] == 1.0
    assert all(math.isfinite(value) for value in found.values())


# ---- the file --------------------------------------------------------------------------------------------


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_new_run_starts_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "left": 1}\n')
    writer = MetricWriter(tmp_path)
    writer.write(0, {"eval/accuracy": 0.5})
    writer.close()
    assert lines(tmp_path) == [{"step": 0, "eval/accuracy": 0.5}]


def test_resuming_truncates_to_the_checkpoint(tmp_path: Path) -> None:
    old = "".join(json.dumps({"step": step, "x": step / 10}) + "\n" for step in (0, 1, 2, 2, 3))
    (tmp_path / "metrics.jsonl").write_text(old + '{"step": 4, "x": 0.')  # a kill in the middle of a line
    writer = MetricWriter(tmp_path, resume_step=2)
    writer.write(3, {"x": 7.0})
    writer.close()
    assert [(line["step"], line["x"]) for line in lines(tmp_path)] == [(0, 0.0), (1, 0.1), (2, 0.2), (2, 0.2), (3, 7.0)]


def test_half_a_line_at_the_checkpoint_itself(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "x": 0.12')
    MetricWriter(tmp_path, resume_step=1).close()
    assert lines(tmp_path) == [{"step": 0}]


def test_resuming_keeps_the_digits(tmp_path: Path) -> None:
    text = '{"step": 1, "x": 0.11770833283662796, "y": 1e-45}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    MetricWriter(tmp_path, resume_step=1).close()
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_resuming_rewrites_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = MetricWriter(tmp_path)
    for step in range(4):
        first.write(step, {"x": float(step)})
    first.close()
    again = MetricWriter(tmp_path, resume_step=1)
    again.write(2, {"x": 20.0})
    again.close()
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("x")] == [(0, 0.0), (1, 1.0), (2, 20.0)]


def test_resuming_replaces_the_file_in_one_move(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    with path.open() as before:  # a reader of the old file must still have all of it
        MetricWriter(tmp_path, resume_step=1).close()
        assert before.read() == '{"step": 1}\n{"step": 2}\n'
    assert lines(tmp_path) == [{"step": 1}]


def test_wandb_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match="pip install wandb"):
        MetricWriter(tmp_path, wandb_project="mine")


def test_a_mean_has_the_interval_that_its_values_allow():
    from mmrl.metrics import mean_of

    applies = torch.tensor([True, True, True, False])
    found = mean_of(torch.tensor([1.0, 2.0, 3.0, 99.0]), applies)
    half = 1.96 * 1.0 / math.sqrt(3)
    assert (found.value, found.n) == (2.0, 3)
    assert (found.low, found.high) == (pytest.approx(2 - half), pytest.approx(2 + half))
    assert mean_of(torch.tensor([1.0, 0.0, 1.0, 0.5]), applies) == wilson(2, 3)
    single = mean_of(torch.tensor([0.3]), torch.tensor([True]))
    assert (single.low, single.high, single.n) == (single.value, single.value, 1)  # finite, for charts and JSON
    assert mean_of(torch.tensor([0.3]), torch.tensor([False])).n == 0
