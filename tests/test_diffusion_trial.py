"""`mmrl check` and `mmrl init` where pictures are better or worse, never right or wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion.trial import sheet_of
from mmrl.check import rewards
from mmrl.cli import main
from mmrl.experiment import Trial, Tried
from mmrl.types import Rollout
from mmrl.verdicts import Groups, verdict, zero_spread
from mmrl.yaml_files import read_yaml
from tests.fake_judge import FakeJudge, serving
from tests.tiny_pipelines import make
from tests.toy import ToyTransitions

CONFIG = """\
experiment: diffusion
policy: {{model: {model}, adapter: {{rank: 4, alpha: 8}}}}
data: {{train: train.txt, eval: held_out.txt}}
rewards: {{mine: {{use: {reward}}}}}
algorithm:
  advantage: mmrl.advantages.GroupRelative
  surrogate: {{class_path: mmrl.surrogates.PPOClip, init_args: {{clip_low: 1.0e-4, clip_high: 1.0e-4}}}}
  aggregate: mmrl.aggregates.TokenMean
sampling: {{steps: 3, guidance: 3.0, size: [16, 16]}}
rollout: {{prompts: 2, group: 3, portion: 1}}
train: {{steps: 20, lr: 1.0e-3}}
evaluate: {{every: 5, samples: 2}}
"""
REWARD = """\
def first(images, prompts, **row):
    return [image.convert("L").tobytes()[0] / 255 for image in images]
def never(images, prompts, **row):
    return [None for _ in images]
def cats(images, prompts, **row):
    return [image.convert("L").tobytes()[0] / 255 if "cat" in prompt else None for image, prompt in zip(images, prompts)]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / "sd"
    make("sd", folder)
    return folder


@pytest.fixture
def project(tmp_path, model, monkeypatch):
    (tmp_path / "train.txt").write_text("a red cat\na blue dog, sitting\n")
    (tmp_path / "held_out.txt").write_text("a blue cat\na cat\n")
    (tmp_path / "trial_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)

    def write(reward: str) -> str:
        (tmp_path / "config.yaml").write_text(CONFIG.format(model=model, reward=reward))
        return "config.yaml"

    return write


def trial_of(rows: list[list[float | None]]) -> Trial:
    """Groups of outputs with these rewards, None where none applies."""
    flat = [value for group in rows for value in group]
    there = torch.tensor([value is not None for value in flat])
    values = torch.tensor([[0.0 if value is None else value] for value in flat])
    ids = torch.tensor([number for number, group in enumerate(rows) for _ in group])
    nothing = torch.zeros(len(flat), 1)
    rollout = Rollout(
        ToyTransitions(nothing.long(), nothing.long()), nothing, there[:, None], there[:, None], values, nothing + 1,
        ids, reward_parts={"mine": values[:, 0]}, applicable={"mine": there},
    )  # fmt: skip
    return Trial(rollout, [Tried("x", "a cat")] * len(flat), {}, "", None, "", 0.0)


@pytest.mark.parametrize(
    ("rows", "flat", "said"),
    [
        ([[1.0, 2.0], [3.0, 2.5]], 0.0, "OK to start"),
        ([[1.0, 1.0], [3.0, 3.0]], 1.0, "DO NOT START: all outputs of a prompt get the same reward"),
        ([[1.0, 1.0], [3.0, 3.0], [1.0, 2.0]], 2 / 3, "CAREFUL: most groups teach nothing"),
        ([[1.0, 1.001], [30.0, 30.001]], 0.0, "CAREFUL: the reward hangs on the prompt"),
        ([[None, None], [None, None]], 1.0, "DO NOT START: no reward applies"),
        ([[None, 1.0], [2.0, 3.0]], 0.5, "OK to start"),
    ],
)
def test_a_verdict_without_right_and_wrong(rows, flat, said):
    trial = trial_of(rows)
    groups = zero_spread(trial)
    assert groups == Groups(0.0, 0.0, flat)
    assert verdict(trial, groups).startswith(said)
    assert "all wrong" not in str(groups)
    assert "nan" not in rewards(trial)


def test_check_shows_pictures_and_says_what_a_run_takes(project, tmp_path, capsys):
    assert main(["check", project("trial_reward.first")]) == 0
    said = capsys.readouterr().out
    for words in ("2 prompts to train on, 2 held out", "sampled   zero-spread groups 0%   OK to start", "within a prompt",
                  "largest sample (train-2: 16 x 16 pixels, 3 steps, with guidance)", "20 steps and 5 evaluations",
                  "MB a checkpoint", "pictures  6, the best first: check.png", "best 3 of 6", "'a blue dog, sitting'"):  # fmt: skip
        assert words in said, words
    for words in ("expected", "->  ", "judge", "nan"):
        assert words not in said, words
    assert Image.open("check.png").width > 3 * 64
    assert not (tmp_path / "runs").exists()
    assert list(tmp_path.glob(".mmrl*")) == []


def test_check_of_a_reward_that_never_applies_says_so(project, capsys):
    assert main(["check", project("trial_reward.never")]) == 0
    said = capsys.readouterr().out
    assert "DO NOT START: no reward applies to any of these outputs" in said
    assert "none of the rewards (mine) applies to any of 6 outputs" in said
    assert "nan" not in said
    assert not Path("check.png").exists()


def test_check_of_a_reward_that_applies_to_some(project, capsys):
    assert main(["check", project("trial_reward.cats")]) == 0
    said = capsys.readouterr().out
    assert "applies to 3 of 6" in said
    assert "pictures  3, the best first" in said
    assert "mine=-" not in said


@pytest.mark.parametrize(("mode", "calls", "total"), [("absolute", 6, 150), ("rank", 2, 50)])
def test_check_counts_the_calls_of_a_judge(project, tmp_path, monkeypatch, capsys, mode, calls, total):
    (tmp_path / "style.md").write_text("Bright pictures are good.")
    with serving(FakeJudge()) as judge:
        monkeypatch.setenv("JUDGE_URL", judge.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        use = f"{{class_path: rewards.pictures.Judge, init_args: {{url_env: JUDGE_URL, rubric: style.md, model: m, mode: {mode}, budget_calls: 120}}}}"
        assert main(["check", project("trial_reward.first"), f"rewards.style={{use: {use}}}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    evaluation = 6 if mode == "absolute" else 2
    assert (
        f"judge style: {calls} calls a step, {evaluation} an evaluation -> 20 steps and 5 evaluations: {total} calls"
        in said
    )
    assert ("TOO MANY for budget_calls 120" in said) == (total > 120)
    assert f"this check made {len(judge.asked)}" in said
    assert len(judge.asked) <= 3 * calls + evaluation  # none for the step that memory is measured on


def test_a_sheet_holds_every_picture_with_what_it_got():
    pictures = [Image.new("RGB", (400, 200), (n * 20, 0, 0)) for n in range(10)]
    sheet = sheet_of(pictures, [str(n) for n in range(10)])
    assert sheet.size == (8 * 194, 2 * (96 + 16))
    assert sheet.getpixel((100, 50)) == (0, 0, 0)
    assert sheet.getpixel((194 + 100, 112 + 50)) == (180, 0, 0)


def test_init_writes_a_folder_that_runs_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "diffusion", "mine"]) == 0
    assert "next: cd mine && mmrl check config.yaml && mmrl train config.yaml" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "mine")
    assert len(Path("config.yaml").read_text().splitlines()) <= 40
    assert sorted(path.name for path in Path("data").iterdir()) == ["captions.txt", "held_out.txt", "train.txt"]
    quickly = ["train.steps=1", "data.eval_pictures=1", "evaluate.samples=1", "rollout={prompts: 2, group: 2}"]
    assert main(["train", "config.yaml", "--run", "run", "logging.progress=false", *quickly]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert {"reward_margin", "reward_align", "gold_accuracy", "kl"} <= set(summary["eval_after"])
    assert summary["eval_before"]["gold_accuracy"]["value"] > 0.8
    assert read_yaml(Path("run/config.yaml"))["save"]["best"] == "reward"
    assert main(["init", "diffusion", "."]) == 2
    assert "already holds" in capsys.readouterr().err
