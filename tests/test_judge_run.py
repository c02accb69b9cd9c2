"""A judge that dies in mid-run, through `mmrl train` on a tiny pipeline: it comes back, or it stays away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrl.cli import main
from tests.fake_judge import FakeJudge, Request, by_brightness, serving
from tests.tiny_pipelines import make

CONFIG = """\
experiment: diffusion
policy: {{model: {model}, scheduler: LCMScheduler}}
data: {{train: train.txt, eval: held_out.txt}}
rewards:
  style:
    use:
      class_path: rewards.pictures.Judge
      init_args: {{url_env: JUDGE_URL, rubric: style.md, model: m, pause_s: 0.1, retries: {retries}, concurrency: 2}}
algorithm:
  advantage: mmrl.advantages.GroupRelative
  surrogate: {{class_path: mmrl.surrogates.PPOClip, init_args: {{clip_low: 1.0e-4, clip_high: 1.0e-4}}}}
  aggregate: mmrl.aggregates.TokenMean
sampling: {{steps: 3, guidance: 1.0, size: [16, 16]}}
rollout: {{prompts: 2, group: 3{portion}}}
train: {{steps: 3, lr: 1.0e-2}}
evaluate: {{every: 2, samples: 2}}
save: {{every: null, best: reward}}
logging: {{progress: false}}
"""
BEFORE, STEP = 6, 6
"""Calls of an evaluation (4 pictures, then 2 samples), and of a step."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / "sd"
    make("sd", folder)
    return folder


@pytest.fixture
def judge(monkeypatch) -> Iterator[FakeJudge]:
    with serving(FakeJudge()) as fake:
        monkeypatch.setenv("JUDGE_URL", fake.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield fake


@pytest.fixture
def project(tmp_path, model, monkeypatch):
    (tmp_path / "train.txt").write_text("a red cat\na blue dog\na red dog\n")
    (tmp_path / "held_out.txt").write_text("a blue cat\na cat\n")
    (tmp_path / "style.md").write_text("Bright pictures are good.")
    monkeypatch.chdir(tmp_path)

    def write(retries: int, portion: str = "") -> str:
        (tmp_path / "config.yaml").write_text(CONFIG.format(model=model, retries=retries, portion=portion))
        return "config.yaml"

    return write


def leaves_after(judge: FakeJudge, calls: int, for_s: float | None = None) -> None:
    """It answers so many more calls and is away then, for good or for a while."""
    last, left = len(judge.asked) + calls, threading.Event()

    def answer(request: Request) -> str:
        if len(judge.asked) >= last and not left.is_set():
            left.set()
            judge.away = True
            if for_s is not None:
                threading.Timer(for_s, lambda: setattr(judge, "away", False)).start()
        return by_brightness(request)

    judge.answer = answer


def comes_back(judge: FakeJudge) -> None:
    judge.answer, judge.away = by_brightness, False


def numbers(run: str) -> tuple[list[dict], dict]:
    """What a run logged but for its times, and its summary."""
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]
    return kept, json.loads(Path(run, "summary.json").read_text())


def same(one: str, other: str) -> None:
    (lines, summary), (others, again) = numbers(one), numbers(other)
    assert lines == others
    for key in ("eval_before", "eval_after", "best"):
        assert summary[key] == again[key]


def test_a_judge_that_comes_back_changes_nothing(judge, project, caplog):
    config = project(retries=8)
    assert main(["train", config, "--run", "whole"]) == 0
    assert len(judge.asked) == 3 * BEFORE + 3 * STEP
    leaves_after(judge, BEFORE + STEP + 2, for_s=1.0)
    began = time.monotonic()
    assert main(["train", config, "--run", "paused"]) == 0
    assert judge.turned_away > 0
    assert time.monotonic() - began > 1
    same("whole", "paused")
    said = [record.getMessage() for record in caplog.records if "; try " in record.getMessage()]
    assert 1 <= len(said) <= 8  # why nothing moves, once for the calls that wait together
    assert "; try 2 in " in said[0]


@pytest.mark.parametrize(
    ("calls", "step", "portion"),
    [(BEFORE + STEP + 2, 1, ""), (BEFORE + STEP + 1, 1, ", portion: 1"), (BEFORE + 2 * STEP + 2, 2, ""),
     (BEFORE + 2 * STEP + 5, 2, ""), (2 * BEFORE + 3 * STEP + 1, 3, "")],
    ids=["in a step", "in a portion of one", "in an evaluation", "in its samples", "in the last evaluation"],
)  # fmt: skip
def test_a_judge_that_stays_away_stops_the_run_and_loses_nothing(judge, project, capfd, calls, step, portion):
    config = project(retries=2, portion=portion)
    assert main(["train", config, "--run", "whole"]) == 0
    leaves_after(judge, calls)
    capfd.readouterr()
    assert main(["train", config, "--run", "halves"]) == 2
    out, err = capfd.readouterr()
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert said == [f"error: {said[0][7:]}"]
    assert "gave no answer in 3 tries over" in said[0]
    assert said[0].endswith("see whether it runs, then resume")
    assert f"saved at step {step}" in out + err
    assert "Traceback" not in err
    assert Path("halves/checkpoints/latest").read_text() == f"step_{step:06d}"

    began = time.monotonic()
    assert main(["train", "--run", "halves", "--resume"]) == 2  # it is still away, which is said at once
    assert "no judge answers at http://127.0.0.1" in capfd.readouterr().err
    assert time.monotonic() - began < 30
    assert Path("halves/checkpoints/latest").read_text() == f"step_{step:06d}"

    comes_back(judge)
    assert main(["train", "--run", "halves", "--resume"]) == 0
    same("whole", "halves")


def test_only_the_first_of_several_portions_waits_for_a_lost_judge(judge, project):
    config = project(retries=1, portion=", portion: 1")
    leaves_after(judge, BEFORE)
    assert main(["train", config, "--run", "run"]) == 2
    assert judge.turned_away <= 4  # two questions at a time, two tries each: a second portion would ask again


def test_a_budget_that_is_used_up_can_be_raised_on_resume(judge, project, capfd):
    config = project(retries=0)
    assert main(["train", config, "--run", "whole"]) == 0
    use = "rewards.style.use"
    assert main(["train", config, "--run", "halves", f"{use}.budget_calls=14"]) == 2
    out, err = capfd.readouterr()
    assert "has made 12 calls, needs 6 more, and budget_calls is 14: raise it and resume" in err
    assert "saved at step 1" in out + err
    assert main(["train", "--run", "halves", "--resume", f"{use}.budget_calls=100", f"{use}.retries=3"]) == 0
    same("whole", "halves")
    assert main(["train", "--run", "halves", "--resume", f"{use}.temperature=1.0"]) == 1
    assert "was started with another config" in capfd.readouterr().err
