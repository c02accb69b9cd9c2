"""Robots that are told what to do and see pictures: the small policy, its processors, several tasks, demonstrations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_TOKENS, OBS_STATE

from mmrl.cli import main as mmrl
from mmrl.runtime import acting
from mmrl.testing import check_policy
from tests.toy_robot import Plane, collector, load
from vla import demonstrations
from vla.cloning import CloningConfig, clone, forgotten
from vla.demonstrations import DemonstrationsConfig, Episode, Frames, Scripted
from vla.embedded.encoders import BEGIN, NOTHING, UNKNOWN, WORDS_FROM
from vla.embedded.processor_small_flow import WordsStep
from vla.experts import PlaceSphere, PullCube, PushCube
from vla.exploration import FlowNoise
from vla.sim import rendering
from vla.sim.base import Observations, SimulationConfig, SimulationError, TaskConfig

LEFT, RIGHT = "Go left!", "go right, please"
EYES = ("observation.images.front", "observation.images.hand")


class SeenPlane(Plane):
    """With two cameras, and a sentence for each row."""

    @property
    def instructions(self) -> tuple[str, ...]:
        return tuple((LEFT, RIGHT)[row % 2] for row in range(len(self)))

    def seen(self) -> Observations:
        shade = (127 + 100 * self.at[:, :1, None, None]).clamp(0, 255).to(torch.uint8)
        views = {"front": shade.expand(-1, 3, 16, 24).contiguous(), "hand": shade.expand(-1, 3, 8, 8).contiguous()}
        return Observations(super().seen().state, views, self.instructions)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that was shown two ways to go, by words and by how bright pictures are."""
    generator = torch.Generator().manual_seed(0)
    states, bright = torch.rand(200, 3, generator=generator), torch.arange(200) % 4 < 2
    told = [(LEFT, RIGHT)[number % 2] for number in range(200)]
    way = torch.tensor([(-1.0, 1.0)[number % 2] for number in range(200)])
    chunks = torch.stack([way, bright * 2.0 - 1], -1)[:, None].expand(-1, 3, -1).contiguous()
    shade = (bright * 200).to(torch.uint8)[:, None, None, None]
    images = {
        name: shade.expand(-1, 3, *size).contiguous() for name, size in zip(EYES, ((16, 24), (8, 8)), strict=True)
    }
    frames = Frames(states, chunks, torch.zeros(200, 3, dtype=torch.bool), 1, tuple(told), images)
    config = CloningConfig(steps=400, rows=64, horizon=3, width=24, depth=2, language=True)
    out = tmp_path_factory.mktemp("policy")
    clone(frames, config, generator, out, progress=False)
    return out


def observed(count: int, sentences: Sequence[str], shade: int = 200) -> Observations:
    views = {
        "front": torch.full((count, 3, 16, 24), shade, dtype=torch.uint8),
        "hand": torch.full((count, 3, 8, 8), shade, dtype=torch.uint8),
    }
    return Observations(torch.full((count, 3), 0.5), views, tuple(sentences))


# ---- the policy -------------------------------------------------------------------------------------------


def test_a_policy_of_before_gives_the_same_numbers() -> None:
    path = "assets/vla/pushcube"
    config = PreTrainedConfig.from_pretrained(path)
    policy = get_policy_class(config.type).from_pretrained(path)
    before, after = make_pre_post_processors(config, path)
    state, noise = torch.linspace(-1, 1, 70).view(2, 35), torch.linspace(-1, 1, 32).view(2, 4, 4)
    found = after(policy.predict_action_chunk(before({OBS_STATE: state}), noise))[:, -1]
    expected = [[0.907417, 1.035099, 1.180254, -4.42256], [-1.271472, 1.967126, -0.217821, -0.937466]]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-5)
    assert not any("sentence" in name or "pictures" in name for name in policy.state_dict())


def test_words_and_pictures_decide_what_is_done(folder: Path) -> None:
    policy = load(folder)
    noise = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    with acting(policy):
        bright = policy.best(observed(4, (LEFT, RIGHT, LEFT, RIGHT)), noise).mean(1)
        dark = policy.best(observed(4, (LEFT, RIGHT, LEFT, RIGHT), 0), noise).mean(1)
    assert bool((bright[[0, 2], 0] < -0.3).all())
    assert bool((bright[[1, 3], 0] > 0.3).all())
    assert bool((bright[:, 1] > 0.3).all())
    assert bool((dark[:, 1] < -0.3).all())


@pytest.mark.parametrize("exploration", [None, FlowNoise(0.1, 0.4)], ids=["sde", "noise"])
def test_what_is_recorded_scores_the_same(folder: Path, exploration: FlowNoise | None) -> None:
    policy = load(folder, **({"exploration": exploration} if exploration else {}))
    with acting(policy):
        rollout = collector(SeenPlane(6)).collect(policy, torch.Generator().manual_seed(3))
    assert set(rollout.transitions.inputs) == {OBS_STATE, OBS_LANGUAGE_TOKENS, *EYES}  # type: ignore[attr-defined]
    check_policy(policy, rollout)
    steps = torch.arange(rollout.logprobs.shape[1]).expand(6, -1)
    found = policy(rollout.transitions, steps)
    apart = (found.logprobs - rollout.logprobs)[rollout.mask].abs().max()
    assert float(apart.detach()) <= 1e-5 * policy.decision_size
    assert found.values is not None
    found.values.sum().backward()  # the critic reads what the encoders made, and sends nothing into them
    assert all(parameter.grad is None for parameter in policy.adapter.parameters())
    policy(rollout.transitions, steps).logprobs.sum().backward()
    encoders = [policy.adapter.model.sentence, *policy.adapter.model.pictures]  # type: ignore[list-item, misc]
    assert all(bool(encoder.out.weight.grad.any()) for encoder in encoders)  # type: ignore[union-attr]


def test_pictures_are_encoded_once_a_chunk(folder: Path) -> None:
    policy, calls = load(folder), []
    policy.adapter.model.pictures[0].register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr, operator]
    with acting(policy):
        policy.best(observed(2, (LEFT, RIGHT)), torch.zeros(2, 3, 2))
    assert len(calls) == 1


def test_lerobot_runs_it_by_itself(folder: Path) -> None:
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder)
    before, after = make_pre_post_processors(config, str(folder))
    policy.reset()
    views = {EYES[0]: torch.ones(3, 16, 24), EYES[1]: torch.ones(3, 8, 8)}
    action = after(policy.select_action(before({OBS_STATE: torch.full((3,), 0.5), **views, "task": RIGHT})))
    assert action.shape == (1, 2)
    ours = load(folder)
    seen, noise = observed(2, (LEFT, RIGHT)), torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(1))
    batch = {OBS_STATE: seen.state, "task": [LEFT, RIGHT]}
    batch |= {name: seen.images[name.rsplit(".", 1)[1]].float() / 255 for name in EYES}
    with acting(ours):
        assert torch.equal(after(policy.predict_action_chunk(before(batch), noise)), ours.best(seen, noise))
    with pytest.raises(ValueError, match="give the batch a `task`"):
        before({OBS_STATE: torch.zeros(3), **views})


def test_sentences_become_tokens() -> None:
    step = WordsStep(["cube", "push"], 3)
    assert step.tokens(["Push the cube!", "", "push push push push"]).tolist() == [
        [BEGIN, WORDS_FROM + 1, UNKNOWN, WORDS_FROM],
        [BEGIN, NOTHING, NOTHING, NOTHING],
        [BEGIN, WORDS_FROM + 1, WORDS_FROM + 1, WORDS_FROM + 1],
    ]
    tokens = step.tokens(["push the cube"] * 400)
    found = forgotten(tokens, 0.25, torch.Generator().manual_seed(0))
    assert bool((found[:, 0] == BEGIN).all())
    assert float((found != tokens)[:, [1, 3]].float().mean()) == pytest.approx(0.25, abs=0.05)


def test_unknown_and_empty_sentences_are_acted_on(folder: Path) -> None:
    policy = load(folder)
    with acting(policy):
        seen = observed(3, ("", "hurry " * 40, f"{LEFT} {'now ' * 30}"))
        assert bool(torch.isfinite(policy.best(seen, torch.zeros(3, 3, 2))).all())


def test_what_it_needs_and_is_not_seen_is_refused(folder: Path) -> None:
    policy, state = load(folder), torch.zeros(1, 3)
    with pytest.raises(
        ValueError, match=r"reads the camera observation.images.front .* set simulation.observe to images"
    ):
        policy.adapter.inputs(Observations(state, {}, (LEFT,)))
    small = {"front": torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "hand": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}
    with pytest.raises(ValueError, match=r"it is \(3, 8, 8\): .* simulation.image_size to 16"):
        policy.adapter.inputs(Observations(state, small, (LEFT,)))
    with pytest.raises(ValueError, match="reads a state of 3 numbers and the task tells 5"):
        policy.adapter.inputs(Observations(torch.zeros(1, 5), observed(1, (LEFT,)).images, (LEFT,)))
    shorter = policy.adapter.inputs(Observations(torch.zeros(1, 2), observed(1, (LEFT,)).images, (LEFT,)))
    assert shorter[OBS_STATE].shape == (1, 3)


# ---- demonstrations ---------------------------------------------------------------------------------------


def made(count: int, size: int, first: float) -> list[Episode]:
    """Episodes of 2, 3, ... steps, each number another."""
    return [
        Episode(
            torch.full((2 + number, size), first + number),
            torch.full((2 + number, 2), -float(number)),
            torch.zeros(2 + number, 2),
            number,
            {"front": torch.full((2 + number, 3, 8, 8), 10 * number, dtype=torch.uint8)},
        )
        for number in range(count)
    ]


def test_several_tasks_are_stored_and_read_back(tmp_path: Path) -> None:
    tasks = [TaskConfig("PushCube-v1", LEFT), TaskConfig("PickCube-v1", RIGHT)]
    demonstrations.write(tmp_path / "set", tasks, [made(3, 2, 0.0), made(2, 4, 100.0)], 20)
    dataset = LeRobotDataset("set", root=tmp_path / "set")
    assert dataset.num_episodes == 5
    assert [dataset[0]["task"], dataset[len(dataset) - 1]["task"]] == [LEFT, RIGHT]
    assert dataset[0][EYES[0]].shape == (3, 8, 8)
    frames = demonstrations.read(tmp_path / "set", None, 2)
    assert frames.states.shape == (2 + 3 + 4 + 2 + 3, 4)
    assert frames.states[:2].tolist() == [[0, 0, 0, 0]] * 2
    assert frames.states[-1].tolist() == [101] * 4
    assert frames.sentences == (LEFT,) * 9 + (RIGHT,) * 5
    assert frames.images[EYES[0]].shape == (14, 3, 8, 8)
    assert frames.images[EYES[0]].flatten(1)[:, 0].tolist() == [0] * 2 + [10] * 3 + [20] * 4 + [0] * 2 + [10] * 3
    assert frames.pad[:, 1].nonzero()[:, 0].tolist() == [1, 4, 8, 10, 13]
    one = demonstrations.read(tmp_path / "set", 1, 2)
    assert (one.episodes, one.sentences) == (2, (LEFT,) * 2 + (RIGHT,) * 2)
    some = demonstrations.read(tmp_path / "set", (2, 1), 2)
    assert (some.episodes, some.sentences) == (3, (LEFT,) * 5 + (RIGHT,) * 2)
    with pytest.raises(ValueError, match="episodes is 3, and .* has 2"):
        demonstrations.read(tmp_path / "set", 3, 2)
    with pytest.raises(ValueError, match=r"episodes is \[1, 1, 1\] for 2 tasks"):
        demonstrations.read(tmp_path / "set", (1, 1, 1), 2)


def test_experts_and_numbers_are_of_as_many_tasks(tmp_path: Path) -> None:
    tasks, nobody = (TaskConfig("PushCube-v1"), TaskConfig("PullCube-v1")), torch.Generator()
    config = DemonstrationsConfig(str(tmp_path / "none"), 1, Scripted((PushCube(),)))
    with pytest.raises(ValueError, match="expert is of 1 tasks and env of 2"):
        demonstrations.ensure(config, tasks, nobody)
    config = DemonstrationsConfig(str(tmp_path / "none"), (1, 2, 3), Scripted((PushCube(), PullCube())))
    with pytest.raises(ValueError, match=r"episodes is \[1, 2, 3\] for 2 tasks"):
        demonstrations.ensure(config, tasks, nobody)


@pytest.mark.parametrize(("task", "expert"), [("PullCube-v1", PullCube()), ("PlaceSphere-v1", PlaceSphere())])
def test_experts_succeed(task: str, expert: PullCube | PlaceSphere) -> None:
    found, _ = demonstrations.demonstrate(TaskConfig(task, max_steps=60), Scripted(expert), 14, torch.Generator())
    assert len(found) == 14
    assert max(episode.seed for episode in found) < 16  # of the first 16


def test_one_policy_is_cloned_from_two_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = (
        "env=[{id: PushCube-v1, name: push, instruction: push the cube, max_steps: 24}, "
        "{id: PickCube-v1, name: pick, instruction: pick the cube up, max_steps: 50}]"
    )
    experts = "[{class_path: vla.experts.PushCube}, {class_path: vla.experts.PickCube}]"
    words = [
        tasks, "warmup.demonstrations.episodes=[2, 1]", f"warmup.demonstrations.script={{expert: {experts}}}",
        f"warmup.demonstrations.folder={tmp_path / 'set'}", "warmup.cloning.steps=20", "held_out.episodes=2",
        "held_out.between=2", "held_out.step=auto", "simulation.workers=1", "simulation.copies=2", "logging.progress=false",
    ]  # fmt: skip
    assert mmrl(["warmup", "vla/warmup_words", *words, "--output", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out" / "warmup.json").read_text())
    assert told["demonstrations"] == 3
    assert told["held_out_step"] == "auto"  # and not the task's own
    assert {name: figure["n"] for name, figure in told["eval_held_out"].items() if "rate" in name} == {
        "success_rate": 4, "success_rate/push": 2, "success_rate/pick": 2,
    }  # fmt: skip
    config = PreTrainedConfig.from_pretrained(tmp_path / "out")
    assert config.vocabulary == ["cube", "pick", "push", "the", "up"]
    assert config.robot_state_feature.shape == (42,)
    assert mmrl(["warmup", "vla/warmup_words", "warmup.cloning.language=false"]) == 2
    assert "env is several tasks: set warmup.cloning.language to true" in capsys.readouterr().err


# ---- pictures ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _vulkan() -> None:
    try:
        rendering.settings()
    except SimulationError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("_vulkan")
def test_what_an_expert_did_is_seen_and_the_fast_path_sees_the_same(tmp_path: Path) -> None:
    """Demonstrations of states, replayed where pictures are drawn; and the task's own step shows the same pictures."""
    from vla.sim.start import start

    task = TaskConfig("PushCube-v1", "push it", max_steps=24)
    sees = SimulationConfig(copies=1, workers=1, observe="images", image_size=64, rebuild=True)
    script = Scripted(PushCube(), noise=0.0)  # so that what was meant is what was done
    demonstrations.ensure(DemonstrationsConfig(str(tmp_path / "set"), 1, script), task, torch.Generator(), sees)
    frames = demonstrations.read(tmp_path / "set", None, 1)
    camera = "observation.images.base_camera"
    assert frames.states.shape == (len(frames.states), 25)  # nothing of the cube
    assert frames.images[camera].shape == (len(frames.states), 3, 64, 64)
    with start([task], replace(sees, step="official")) as simulator:  # they were drawn by the fast path
        assert not simulator.tasks[0].fast
        assert sees.step == "auto"
        first = simulator.reset(torch.tensor([0]), torch.tensor([script.first_seed]))
        last = simulator.chunk_step(frames.chunks[None, :6, 0]).observations
    for number, official in ((0, first), (6, last)):
        assert torch.equal(frames.images[camera][number], official.images["base_camera"][0])
        assert np.allclose(frames.states[number], official.state[0], atol=5e-5)
    assert not torch.equal(first.images["base_camera"], last.images["base_camera"])
    assert frames.chunks.shape[2] == 4
    assert ACTION in LeRobotDataset("set", root=tmp_path / "set").meta.features
