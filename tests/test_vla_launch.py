"""What launches, films and checks robots: mostly on a robot without physics, then over ManiSkill from an empty folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE

from mmrl.cli import main as mmrl
from mmrl.metrics import wilson
from mmrl.report import samples
from mmrl.run_files import read_run
from mmrl.runtime import acting
from tests import toy_robot
from vla import evaluation, recording, videos
from vla import replay as replays
from vla.cameras import Compared, camera_line
from vla.evaluation import EpisodeEvaluator, HeldOutConfig, Outcomes, outcomes, without_exploring
from vla.launch import how_it_went, speed
from vla.policy import RobotPolicy
from vla.recording import Trace
from vla.replay import Shown, line_of, of_tasks
from vla.rollouts import Begun, play
from vla.sim import rendering
from vla.sim.base import SimulationConfig, SimulationError, Simulator, TaskConfig
from vla.trial import advice, state_line
from vla.videos import Film, VideosConfig

TASK = TaskConfig("Plane-v1", "go home", control="plane")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> RobotPolicy:
    return toy_robot.load(toy_robot.make_policy(tmp_path_factory.mktemp("toy") / "policy"))


class Drawn(toy_robot.Plane):
    """Its pictures are as bright as the steps that were taken."""

    def __init__(self, copies: int) -> None:
        super().__init__(copies, terminate=False)
        self.config = replace(self.config, video_size=32)

    def render(self, env_index: torch.Tensor) -> torch.Tensor:
        return (20 * self.taken[env_index]).to(torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)


def begun(policy: RobotPolicy, simulator: Simulator) -> Begun:
    with acting(policy):
        return toy_robot.collector(simulator).begin(policy, torch.Generator().manual_seed(5))


def frames_of(path: Path) -> list[float]:
    """Mean brightness of each."""
    with av.open(str(path)) as file:
        assert file.streams.video[0].codec_context.pix_fmt == "yuv420p"
        return [float(frame.to_ndarray(format="rgb24").mean()) for frame in file.decode(video=0)]


# ---- mmrl rollout -----------------------------------------------------------------------------------------


def test_who_watches_changes_nothing(policy: RobotPolicy) -> None:
    """Steps one by one are the chunk, for a row that is lost too."""
    for lose in (None, 2):
        plain, watched = (toy_robot.Plane(6, lose=lose) for _ in range(2))
        start = begun(policy, plain)
        with acting(policy):
            one, other = play(policy, plain, start), play(policy, watched, start, Trace())
        if lose is None:
            for name in ("rewards", "success", "alive", "terminated", "truncated", "broken"):
                assert torch.equal(one.of(name), other.of(name)), name
        else:
            assert other.of("broken")[2].any()
            assert not other.of("alive")[other.of("broken")].any()


def test_figures_of_a_rollout_agree_with_each_other(policy: RobotPolicy) -> None:
    simulator = toy_robot.Plane(12)
    start = begun(policy, simulator)
    with acting(policy):
        played = play(policy, simulator, start)
    found = Outcomes.of(played, start, simulator.task_index)
    told = how_it_went(found, simulator)
    rate = told["success_rate"]
    assert isinstance(rate, dict)
    assert rate["low"] <= rate["value"] <= rate["high"]
    assert rate["n"] == 12
    assert rate["value"] == wilson(int(played.of("success").flatten(1).any(1).sum()), 12).value
    taken = int(played.of("alive").sum())
    fast = speed(taken, played.seconds)
    assert taken == int(found.steps.sum())  # success ends an episode here
    assert set(fast["shares"]) == {"reset", "simulation", "transfer", "inference", "other"}
    assert sum(fast["shares"].values()) == pytest.approx(1.0, abs=1e-3)
    assert sum(played.seconds.parts().values()) == pytest.approx(played.seconds.wall)
    assert fast["env_steps_per_s"] == pytest.approx(taken / fast["seconds"])
    assert fast["env_steps_per_s_of"]["inference"] > fast["env_steps_per_s"]


def test_an_episode_without_exploring_is_that_of_the_evaluation(policy: RobotPolicy) -> None:
    """So that a video shows the very episode that was counted."""
    found = outcomes(policy, toy_robot.Plane(4, terminate=False), range(7, 13), torch.Generator().manual_seed(1))
    start = without_exploring(policy, found.seeds, found.noise)
    simulator = toy_robot.Plane(6, terminate=False)
    with acting(policy):
        again = Outcomes.of(play(policy, simulator, start, Trace()), start, simulator.task_index)
    assert int(found.once.sum()) > 0
    for name in ("once", "at_end", "steps", "broken", "task", "noise"):
        assert torch.equal(vars(found)[name], vars(again)[name]), name
    assert [found.told(row) for row in range(6)] == [again.told(row) for row in range(6)]


def test_a_rollout_is_kept_as_lerobot_reads_it(policy: RobotPolicy, tmp_path: Path) -> None:
    simulator, trace = toy_robot.Plane(5, lose=3), Trace()
    start = begun(policy, simulator)
    with acting(policy):
        play(policy, simulator, start, trace)
    episodes = list(trace.episodes(start, simulator.instructions))
    assert [one.seed for one in episodes] == [seed for row, seed in enumerate(start.seeds) if row != 3]  # 3 was lost
    recording.write(tmp_path / "kept", episodes, 20)
    dataset = LeRobotDataset("kept", root=tmp_path / "kept")
    assert dataset.num_episodes == 4
    assert dataset.fps == 20
    table = dataset.hf_dataset.with_format("torch")[:]
    assert torch.equal(table[ACTION], torch.cat([one.actions for one in episodes]))
    assert torch.equal(table[OBS_STATE], torch.cat([one.states for one in episodes]))
    assert torch.equal(table["next.success"].flatten(), torch.cat([one.success for one in episodes]))
    shown, rate = replays.read(tmp_path / "kept", 9)
    assert rate == 20
    assert [(one.seed, one.instruction) for one in shown] == [(one.seed, "go home") for one in episodes]
    assert all(torch.equal(one.actions, other.actions) for one, other in zip(shown, episodes, strict=True))
    with pytest.raises(FileExistsError, match="is there already: name another folder"):
        recording.write(tmp_path / "kept", episodes, 20)


def test_pictures_are_kept_too(tmp_path: Path) -> None:
    """To the last bit, and the first of an episode is what `mmrl check` compares."""
    images = torch.randint(256, (3, 3, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    numbers, reached = torch.zeros(3), torch.tensor([False, False, True])
    kept = recording.Recorded(torch.ones(3, 2), {"top": images}, torch.ones(3, 4), numbers, reached, "look", 7)
    recording.write(tmp_path / "kept", [kept, kept], 10)
    shown, rate = replays.read(tmp_path / "kept", 1)
    assert (len(shown), rate, shown[0].seed) == (1, 10, 7)
    assert torch.equal(shown[0].images["top"], images[0])


# ---- videos -----------------------------------------------------------------------------------------------


def test_a_video_has_a_frame_before_and_one_after_each_step(policy: RobotPolicy, tmp_path: Path) -> None:
    simulator = Drawn(2)
    camera = Film([tmp_path / "a.mp4", tmp_path / "b.mp4"])
    with acting(policy):
        play(policy, simulator, begun(policy, simulator), camera)
    camera.close()
    for name in ("a", "b"):
        assert frames_of(tmp_path / f"{name}.mp4") == pytest.approx([20.0 * n for n in range(11)], abs=4)
    with pytest.raises(ValueError, match="videos.size is 33: give an even number"):
        VideosConfig(size=33)


def evaluator(monkeypatch: pytest.MonkeyPatch, config: VideosConfig) -> EpisodeEvaluator:
    """On the plane, its episodes drawn."""
    held_out, simulation = HeldOutConfig(episodes=9, between=4), SimulationConfig(copies=4)
    monkeypatch.setattr(evaluation, "start", lambda *_: toy_robot.Plane(4, terminate=False))
    monkeypatch.setattr(videos, "start", lambda tasks, _: Drawn(len(tasks)))
    return EpisodeEvaluator([TASK], simulation, held_out, toy_robot.Plane(4), config)


def rows_in(folder: Path) -> dict[int, dict[str, object]]:
    return {row["seed"]: row for row in json.loads((folder / "samples.json").read_text())}


def test_the_same_seeds_are_filmed_before_and_after(
    policy: RobotPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones, failures, and what was filmed before; what it shows is what was counted."""
    monkeypatch.setattr(rendering, "active", lambda: "nothing")
    part = evaluator(monkeypatch, VideosConfig(episodes=1, failures=1, size=32))
    worse = toy_robot.load(toy_robot.make_policy(tmp_path / "worse", steps=1))
    steps = [tmp_path / "run" / "samples" / f"step_{number:06d}" for number in (0, 1, 2)]
    with acting(worse), acting(policy):
        for one, folder in ((worse, steps[0]), (policy, steps[1]), (policy, steps[2])):
            draws = torch.Generator().manual_seed(3)
            found = part.between(one, draws) if folder == steps[1] else part.evaluate(one, draws)
            assert "success_rate" in found
            part.samples(one, draws, folder, 2)
    before, between, after = map(rows_in, steps)
    filmed = {seed for seed, row in before.items() if row["videos"]}
    assert 10_000 in filmed
    assert len(filmed) == 2
    assert not any(row["videos"] for row in between.values())
    assert filmed <= {seed for seed, row in after.items() if row["videos"]}
    for folder, rows in ((steps[0], before), (steps[2], after)):
        for seed, row in rows.items():
            assert row["picked"] == (seed > 10_001)
            assert str(row["output"]).startswith("success" if row["reward"] else "failure")
            for name in row["videos"]:
                assert len(frames_of(folder / str(name))) == 11
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    pairs = samples(read_run(tmp_path / "run"))
    first = pairs[0]
    assert first["start"]["step"] == 0
    assert first["now"]["step"] == 2
    assert all(pair["clips"][0]["uri"].startswith("data:video/mp4") for pair in (first["now"], first["start"]))


def test_without_vulkan_there_is_a_sentence_and_no_video(
    policy: RobotPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> str:
        raise SimulationError(rendering.MISSING)

    monkeypatch.setattr(rendering, "active", missing)
    part = evaluator(monkeypatch, VideosConfig())
    with acting(policy):
        part.evaluate(policy, torch.Generator().manual_seed(3))
        part.samples(policy, torch.Generator(), tmp_path / "step_000000", 2)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no videos")]
    assert len(said) == 1
    assert "run `make vulkan`" in said[0]
    assert not any(row["videos"] for row in rows_in(tmp_path / "step_000000").values())
    assert not list(tmp_path.rglob("*.mp4"))


# ---- mmrl check -------------------------------------------------------------------------------------------


class Driven(toy_robot.Plane):
    """Controllers side by side: under `backwards` actions have the other sign, `wide` takes three numbers."""

    def __init__(self, copies: int, tasks: list[TaskConfig]) -> None:
        super().__init__(copies * len(tasks), tasks[0].max_steps or 10)
        controls = ("plane", "backwards", "wide")
        size = [3 if task.control == "wide" else 2 for task in tasks]
        self.tasks = tuple(
            replace(self.tasks[0], label=task.label, controls=controls, action_low=(-1.0,) * n, action_high=(1.0,) * n)
            for task, n in zip(tasks, size, strict=True)
        )
        self.task_index = torch.arange(len(tasks)).repeat_interleave(copies)
        signs = torch.tensor([-1.0 if task.control == "backwards" else 1.0 for task in tasks])
        self.signs = signs.repeat_interleave(copies)[:, None, None]

    def chunk_step(self, actions: torch.Tensor, then: torch.Tensor | None = None):  # type: ignore[no-untyped-def]
        return super().chunk_step(actions[..., :2] * self.signs)

    def check_actions(self, actions: torch.Tensor) -> None:
        assert actions.shape[2] in (2, self.action_size)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Shown]:
    """Straight ways home, and a plane to go them on."""
    monkeypatch.setattr(replays, "start", lambda tasks, config: Driven(config.copies, tasks))
    found = []
    for seed in range(5):
        at = torch.rand(2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        actions = (-at / at.norm())[None].expand(12, -1)
        states = torch.cat([at, torch.ones(1)])[None].expand(12, -1)
        found.append(Shown(states, actions, "go home", seed, {}))
    return found


def test_demonstrations_are_played_again(shown: list[Shown]) -> None:
    found = replays.replay(TASK, SimulationConfig(), shown)
    assert (found.succeeded, found.count, found.apart) == (5, 5, 0.0)
    said = line_of(TASK, SimulationConfig(), shown, found, 20)
    assert said == "5 of your demonstrations, actions straight into Plane-v1 (plane, 20 Hz): 5 succeed   OK"


def test_a_wrong_control_mode_is_found(shown: list[Shown]) -> None:
    wrong = replace(TASK, control="backwards")
    found = replays.replay(wrong, SimulationConfig(), shown)
    assert found.succeeded < 2
    said = line_of(wrong, SimulationConfig(), shown, found, 10)
    assert "your actions do not mean here what they meant in the data: control mode (`env.control`), frequency" in said
    assert "the data are at 10 Hz" in said
    assert said.endswith("tried plane: 4 of 4")
    wide = replace(TASK, control="wide")
    said = line_of(wide, SimulationConfig(), shown, replays.replay(wide, SimulationConfig(), shown), 20)
    assert ": 0 succeed   NOT WHAT THEY WERE" in said
    assert "they have 2 numbers and wide takes 3; tried plane: 4 of 4, backwards: 0 of 4" in said


def test_other_initial_states_are_said_first(shown: list[Shown]) -> None:
    moved = [replace(one, states=one.states + 0.5, actions=-one.actions) for one in shown]
    said = line_of(TASK, SimulationConfig(), moved, replays.replay(TASK, SimulationConfig(), moved), 20)
    assert "the initial states of their seeds are others here (by up to 0.5)" in said


def test_demonstrations_belong_to_the_task_that_has_their_sentence(shown: list[Shown]) -> None:
    other = replace(TASK, instruction="go away", name="away")
    mixed = [*shown, replace(shown[0], instruction="go away"), replace(shown[0], instruction="anything")]
    assert [(task.label, len(mine)) for task, mine in of_tasks(mixed, [TASK, other])] == [("Plane-v1", 6), ("away", 1)]


def test_advice_before_spending() -> None:
    none, some, most = wilson(0, 100), wilson(40, 100), wilson(99, 100)
    assert advice(none, none, dense=False) == (
        "DO NOT START: the policy never succeeds, so sparse reward teaches nothing: more demonstrations, easier "
        "starts, or reward.relative with env.reward normalized_dense"
    )
    assert advice(none, none, dense=True).startswith("CAREFUL: the policy never succeeds, so only the dense part")
    assert advice(some, wilson(2, 40), dense=False).startswith("CAREFUL: exploring costs most of the successes")
    assert advice(wilson(20, 100), wilson(6, 40), dense=False).startswith("CAREFUL: success below 20%")
    assert advice(most, most, dense=False).startswith("CAREFUL: success above 95%")
    assert advice(some, wilson(15, 40), dense=False) == "OK to start"


def test_states_are_compared_with_what_the_policy_knows(policy: RobotPolicy) -> None:
    near = torch.tensor([[0.5, -0.5, 1.0]])
    assert "observation.state 3 of 3, at the start all within" in state_line(policy, near)
    assert "LOOK" not in state_line(policy, near)
    assert "number 1 is the farthest, and 1 are beyond 10 sd: LOOK" in state_line(
        policy, near + torch.tensor([0, 90, 0])
    )
    assert (
        state_line(policy, torch.zeros(2, 7)) == "the policy reads 3 numbers of observation.state and the task tells 7"
    )


def test_cameras_stand_side_by_side(tmp_path: Path) -> None:
    one, other = torch.full((3, 8, 8), 51, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.uint8)
    pair = Compared("PushCube-v1, seed 3", {"top": one, "wrist": one[:, :4]}, {"top": other, "hand_camera": other})
    said = camera_line([pair], tmp_path / "check.html")
    assert "top: mean difference 20.0%" in said
    assert "wrist | hand_camera: 8 x 4 in the data, 8 x 8 here" in said
    page = (tmp_path / "check.html").read_text()
    assert page.count("data:image/png") == 4
    assert "simulator: hand_camera" in page
    assert camera_line([Compared("x", {}, {"top": one})]) == "the data set has no pictures: nothing to compare"


# ---- over physics, from an empty folder -------------------------------------------------------------------

QUICKLY = [
    "logging.progress=false", "rollout.episodes=4", "held_out={episodes: 4, between: 2, rebuild: false}", "simulation.workers=1",
    "env.max_steps=16", "demonstrations.episodes=2", "train.steps=2", "evaluate={every: null, samples: 2}", "stop=[]",
    "train.update={epochs: 1, minibatches: 1}", "save.every=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "mine"
    assert mmrl(["init", "vla", str(folder)]) == 0
    return folder


@pytest.mark.timeout(900)
def test_init_and_check(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(project)
    assert sorted(path.name for path in project.iterdir()) == ["config.yaml", "data", "my_task.py"]
    assert len((project / "config.yaml").read_text().splitlines()) <= 40
    assert mmrl(["check", "config.yaml", *QUICKLY]) == 0
    said = capsys.readouterr().out
    for words in (
        "data      1 task, 4 episodes a step from 4 starts; 4 held out of each task", "sampled   success_rate 0.",
        "4 episodes of 4 chunks", "-> 2 steps and 2 evaluations", "MB a checkpoint",
        "replay    2 of your demonstrations, actions straight into PushWide-v1 (pd_ee_delta_pos, 20 Hz): 2 succeed   OK",
        "camera    the policy observes states", "state     observation.state 35 of 35, at the start all within",
        "on 2 starts (ODE), ", "on 4 with training noise", "GB in the simulator's processes", "best ",
    ):  # fmt: skip
        assert words in said, words
    for words in ("nan", "zero-spread", "within a prompt", "the prompt's form"):
        assert words not in said, words
    assert not (project / "runs").exists()
    assert mmrl(["check", "config.yaml", *QUICKLY, "env.control=pd_joint_pos"]) == 2
    refused = capsys.readouterr().err
    assert "the policy gives 4 actions and the controller of PushWide-v1 takes 8" in refused
    assert "they have 4 numbers and pd_joint_pos takes 8" in refused  # what demonstrations say of it
    assert "pd_ee_delta_pos: 2 of 2" in refused


@pytest.mark.timeout(900)
def test_train_and_rollout(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two steps in a task of one's own; what a rollout of it kept is played again."""
    monkeypatch.chdir(project)
    assert mmrl(["train", "config.yaml", *QUICKLY, "videos=null", "--run", "run"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["eval_after"]["success_rate"]["n"] == 4
    assert summary["parity"]["logprob_diff_max"] <= 1e-5
    more = ["record={dataset: true, explore: false}", "videos=null"]
    assert mmrl(["rollout", "config.yaml", *QUICKLY, *more, "--output", "out"]) == 0
    told = json.loads(Path("out/rollout.json").read_text())
    assert told["explore"] is False
    assert told["dataset_episodes"] == told["success_rate"]["n"] == 4
    kept = LeRobotDataset("dataset", root=Path("out/dataset"))
    assert len(kept) == told["env_steps"]
    assert kept[0]["task"] == "push the cube to the goal"
    assert mmrl(["rollout", "config.yaml", *QUICKLY, *more, "--output", "out"]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.timeout(900)
def test_a_video_over_physics(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        rendering.active()
    except SimulationError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(project)
    film = "videos={episodes: 1, failures: 0, size: 64}"
    words = ["rollout", "config.yaml", *QUICKLY, "env.max_steps=6", "record.dataset=false", film, "--output", "filmed"]
    assert mmrl(words) == 0
    (told,) = json.loads(Path("filmed/rollout.json").read_text())["videos"]
    shown = frames_of(Path("filmed") / told["file"])
    assert len(shown) == 7
    assert min(shown) > 5  # something is to be seen
