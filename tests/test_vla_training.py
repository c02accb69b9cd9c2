"""Robots end to end over real physics: scripted experts, demonstrations in lerobot's format, cloning, RL, resuming."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_STATE

from mmrl.cli import main as mmrl
from vla import demonstrations, experiments
from vla.demonstrations import DemonstrationsConfig, Scripted
from vla.experts import PickCube, PushCube
from vla.sim.base import TaskConfig

SHORT = [
    "logging.progress=false", "rollout.episodes=4", "held_out.episodes=4", "held_out.between=2", "evaluate.every=1",
    "evaluate.samples=2", "simulation.workers=1", "env.max_steps=12", "save.every=1", "train.critic_warmup=1",
    "train.update.critic_epochs=2", "train.update.epochs=2", "save.keep=3", "train.update.max_kl=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three demonstrations of PushCube."""
    script = Scripted(PushCube(), noise=0.1)
    folder = tmp_path_factory.mktemp("data") / "shown"
    config, generator = DemonstrationsConfig(str(folder), 3, script), torch.Generator().manual_seed(0)
    return demonstrations.ensure(config, TaskConfig("PushCube-v1", "push it"), generator)


def without_times(path: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


def test_the_expert_of_pick_cube_succeeds() -> None:
    found, rate = demonstrations.demonstrate(TaskConfig("PickCube-v1"), Scripted(PickCube()), 14, torch.Generator())
    assert rate == 20
    assert len(found) == 14
    assert max(episode.seed for episode in found) < 16  # of the first 16
    assert all(episode.states.shape[1] == 42 and episode.actions.shape[1] == 4 for episode in found)
    assert max(len(episode.states) for episode in found) <= 50


def test_demonstrations_are_lerobots_own(shown: Path) -> None:
    """Chunks are those that lerobot itself would cut."""
    dataset = LeRobotDataset("shown", root=shown, delta_timestamps={ACTION: [number / 20 for number in range(4)]})
    frames = demonstrations.read(shown, None, 4)
    assert dataset.num_episodes == frames.episodes == 3
    assert dataset.meta.info.codebase_version == "v3.0"
    assert len(dataset) == len(frames.states)
    for number in (0, len(dataset) // 2, len(dataset) - 2):
        item = dataset[number]
        assert item["task"] == "push it"
        assert torch.equal(item[OBS_STATE], frames.states[number])
        assert torch.equal(item[ACTION], frames.chunks[number])
        assert torch.equal(item[f"{ACTION}_is_pad"], frames.pad[number])
    fewer = demonstrations.read(shown, 2, 4)
    assert fewer.episodes == 2
    assert torch.equal(fewer.states, frames.states[: len(fewer.states)])
    with pytest.raises(ValueError, match="episodes is 9, and .* has 3"):
        demonstrations.read(shown, 9, 4)
    with pytest.raises(FileNotFoundError, match="holds no LeRobotDataset"):
        demonstrations.ensure(DemonstrationsConfig("nowhere"), TaskConfig("PushCube-v1"), torch.Generator())


def test_a_policy_is_cloned_and_lerobot_runs_it(shown: Path, tmp_path: Path) -> None:
    out = tmp_path / "cloned"
    more = [f"warmup.demonstrations.folder={shown}", "warmup.demonstrations.episodes=2", "warmup.cloning.steps=20"]
    small = ["held_out.episodes=2", "held_out.between=2", "simulation.workers=1", "env.max_steps=8"]
    assert mmrl(["warmup", "vla/warmup_pushcube", *more, *small, "logging.progress=false", "--output", str(out)]) == 0
    told = json.loads((out / "warmup.json").read_text())
    assert told["demonstrations"] == 2
    assert told["held_out_step"] == "official"
    assert told["eval_held_out"]["success_rate"]["n"] == 2
    config = PreTrainedConfig.from_pretrained(out)
    policy = get_policy_class(config.type).from_pretrained(out)
    before, after = make_pre_post_processors(config, str(out))
    policy.reset()
    action = after(policy.select_action(before({OBS_STATE: torch.zeros(35)})))
    assert action.shape == (1, 4)


def test_a_run_that_is_resumed_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With new scenes; without them the last digits of a contact depend on what a scene has seen before."""
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    settings = [*SHORT, "simulation.rebuild=true", "train.steps=3"]
    assert mmrl(["train", "vla/pirl_pushcube", *settings, "--run", str(whole)]) == 0
    shutil.copytree(whole, halved)
    for name in ("summary.json", "report.html"):
        (halved / name).unlink()
    shutil.rmtree(halved / "checkpoints" / "step_000003")
    (halved / "checkpoints" / "latest").write_text("step_000002")
    assert mmrl(["train", *settings, "--run", str(halved), "--resume"]) == 0
    assert without_times(whole / "metrics.jsonl") == without_times(halved / "metrics.jsonl")
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["primary_metric"] == "success_rate"
    assert summary["eval_after"]["success_rate"]["n"] == 4
    assert {"success_rate", "success_at_end", "steps", "broken"} == set(summary["eval_after"])
    assert summary["parity"]["logprob_diff_max"] <= 1e-5
    assert summary["cpu_s"] > 0.5
    assert (whole / "report.html").is_file()
    samples = json.loads((whole / "samples" / "step_000003" / "samples.json").read_text())
    assert [sample["id"] for sample in samples] == ["seed 10000", "seed 10001"]
    monkeypatch.setattr(experiments, "simulate", None)  # the policy alone is needed
    assert mmrl(["export", str(whole), "--to", str(tmp_path / "exported")]) == 0
    lerobots = get_policy_class("small_flow").from_pretrained(tmp_path / "exported")
    ours = get_policy_class("small_flow").from_pretrained(whole / "checkpoints" / "step_000003" / "policy")
    assert all(torch.equal(a, b) for a, b in zip(lerobots.parameters(), ours.parameters(), strict=True))


def test_a_reward_that_the_simulator_does_not_give_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert mmrl(["train", "vla/pirl_pushcube", "env.reward=sparse"]) == 2
    assert "env.reward is sparse: set it to normalized_dense" in capsys.readouterr().err


def test_several_tasks_have_their_own_figures(tmp_path: Path) -> None:
    """One of them is trained, one is a variant that is evaluated only."""
    first = "{id: PushCube-v1, instruction: push it, reward: normalized_dense, max_steps: 8}"
    second = "{id: PushCube-v1, name: again, instruction: push it again, reward: normalized_dense, max_steps: 12}"
    unseen = "{id: PushCube-v1, name: unseen, instruction: push, max_steps: 8}"
    settings = [s for s in SHORT if not s.startswith("env.")]
    words = [f"env=[{first}, {second}]", f"held_out.tasks=[{unseen}]", "train.steps=2", *settings]
    before = {process.pid for process in multiprocessing.active_children()}
    assert mmrl(["train", "vla/pirl_pushcube", *words, "--run", str(tmp_path / "run")]) == 0
    assert {process.pid for process in multiprocessing.active_children()} <= before  # its simulators end with the run
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    after = summary["eval_after"]
    assert {name: after[name]["n"] for name in after if "rate" in name} == {
        "success_rate": 8, "success_rate/PushCube-v1": 4, "success_rate/again": 4, "success_rate/unseen": 4,
    }  # fmt: skip
    whole = after["success_rate/PushCube-v1"]["value"] + after["success_rate/again"]["value"]
    assert after["success_rate"]["value"] == whole / 2
    line = without_times(tmp_path / "run" / "metrics.jsonl")[-1]
    assert {"eval/success_rate", "eval/success_rate/again"} <= set(line) | set(
        without_times(tmp_path / "run" / "metrics.jsonl")[-2]
    )
    told = json.loads((tmp_path / "run" / "samples" / "step_000002" / "samples.json").read_text())
    assert [sample["prompt"] for sample in told] == ["push it", "push it", "push it again", "push it again"]


def test_tasks_that_share_a_name_or_do_not_share_out_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    task = "{id: PushCube-v1, reward: normalized_dense}"
    assert mmrl(["train", "vla/pirl_pushcube", f"env=[{task}, {task}]"]) == 2
    assert "are called PushCube-v1: give each a `name`" in capsys.readouterr().err
    other = task.replace("id: PushCube-v1", "id: PickCube-v1")
    assert mmrl(["train", "vla/pirl_pushcube", f"env=[{task}, {other}]", "rollout.episodes=41"]) == 2
    assert "rollout.episodes is 41 for 2 tasks" in capsys.readouterr().err
    assert mmrl(["train", "vla/pirl_pushcube", "env=[]"]) == 2
    assert "env is an empty list" in capsys.readouterr().err
    assert mmrl(["train", "vla/pirl_pushcube", "env.max_step=3"]) == 2
    assert "max_step" in capsys.readouterr().err
