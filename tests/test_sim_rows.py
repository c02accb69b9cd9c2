"""What one worker does with its environments, in this process: where episodes end, what is recorded, what is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vla.sim.base import SimulationConfig, SimulationError, TaskConfig
from vla.sim.worker import Job, Rows, prepare

STATE = SimulationConfig(workers=1)
OWN = ("tests.own_tasks",)
DOWN = np.array([0, 0, -0.15, 0], np.float32)


@pytest.fixture(scope="module", autouse=True)
def _no_visuals() -> None:
    prepare(Job(STATE, (), OWN))


def rows(*tasks: TaskConfig, **changes) -> Rows:
    return Rows(Job(replace(STATE, **changes), tasks, OWN))


def actions(count: int, horizon: int, action=DOWN) -> np.ndarray:
    return np.broadcast_to(action, (count, horizon, len(action))).copy()


def test_an_episode_ends_at_a_success_and_waits() -> None:
    here = rows(TaskConfig("TouchGround-v1"), TaskConfig("TouchGround-v1", options={"height": -1.0}, max_steps=6))
    here.reset([0, 1], [0, 0])
    first = here.act(actions(2, 4), None)
    assert first.alive[1].tolist() == [True] * 4
    second = here.act(actions(2, 4), None)
    assert second.truncated.tolist() == [False, True]
    assert second.alive[1].tolist() == [True, True, False, False]
    over = [first, second]
    while not over[-1].terminated[0]:
        over.append(here.act(actions(2, 4), None))
        assert len(over) < 7
    last = over[-1]
    assert last.success[0].sum() == last.rewards[0].sum() == 1
    assert last.success[0][last.alive[0]].tolist()[-1] is True
    after = here.act(actions(2, 4), None)
    assert not after.alive.any()
    assert not (after.terminated | after.truncated | after.broken).any()
    assert np.array_equal(after.views.state, last.views.state)


def test_without_termination_it_goes_on_to_its_last_step() -> None:
    here = rows(TaskConfig("TouchGround-v1"), terminate=False)
    here.reset([0], [0])
    chunks = [here.act(actions(1, 5), None) for _ in range(4)]
    assert sum(int(c.alive.sum()) for c in chunks) == 20
    assert [bool(c.truncated[0]) for c in chunks] == [False, False, False, True]
    assert sum(int(c.success.sum()) for c in chunks) > 1


def test_the_next_episode_begins_in_the_same_message() -> None:
    here = rows(TaskConfig("TouchGround-v1", max_steps=3))
    begun = here.reset([0], [11]).state
    chunk = here.act(actions(1, 4), [11])
    assert bool(chunk.truncated[0])
    assert np.array_equal(chunk.views.state, begun)
    assert not np.array_equal(chunk.final.state, begun)
    assert here.act(actions(1, 2), None).alive.all()


def test_physics_that_is_lost_is_reported_and_begun_anew() -> None:
    here = rows(TaskConfig("LostPhysics-v1"), TaskConfig("PushCube-v1"))
    here.reset([0, 1], [0, 0])
    assert not here.act(actions(2, 2), None).broken.any()
    chunk = here.act(actions(2, 2), None)
    assert chunk.broken.tolist() == [True, False]
    assert not chunk.alive[0].any()
    assert chunk.alive[1].all()
    assert np.isfinite(chunk.views.state).all()
    assert not here.act(actions(2, 2), None).broken.any()
    here.reset([0], [1])
    assert here.act(actions(2, 2), None).alive.all()


def test_tasks_of_unlike_sizes_stand_side_by_side() -> None:
    here = rows(TaskConfig("PushCube-v1"), TaskConfig("PickCube-v1", control="pd_joint_delta_pos"))
    state = here.reset([0, 1], [0, 0]).state
    assert state.shape == (2, 42)
    assert not state[0, 35:].any()
    assert [spec.action_size for spec in here.specs] == [4, 8]
    assert here.act(np.zeros((2, 3, 8), np.float32), None).alive.all()


def test_two_robots_take_their_actions_side_by_side() -> None:
    here = rows(TaskConfig("TwoRobotPickCube-v1", control="pd_joint_delta_pos"))
    assert here.specs[0].action_size == 16
    here.reset([0], [0])
    assert here.act(np.zeros((1, 2, 16), np.float32), None).alive.all()


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (TaskConfig("PushCube-v1", control="pd_ee_delta_poss"), "pd_ee_delta_poss not in supported modes"),
        (TaskConfig("PushCube-v1", options={"colour": "red"}), "unexpected keyword argument 'colour'"),
        (TaskConfig("TouchGround-v1", reward="dense"), "has no reward 'dense', only sparse"),
        (TaskConfig("MS-AntWalk-v1", control=None), "has no reward 'sparse', only dense"),
        (TaskConfig("PickCubeWidowXAI-v1", control=None), "download_asset widowxai"),
        (TaskConfig("ReplicaCAD_SceneManipulation-v1", control=None), "download_asset ReplicaCAD"),
        (TaskConfig("PushT-v1", control=None), "needs simulation.video_size"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(task: TaskConfig, said: str) -> None:
    with pytest.raises(SimulationError, match=".") as raised:
        rows(task)
    assert said in str(raised.value)
    assert task.id in str(raised.value) or "needs assets" in str(raised.value)


def test_manyskills_own_vectorised_environment_speaks_the_same_protocol() -> None:
    """Over the CPU, with its one environment: what is run here of the GPU back-end."""
    from vla.sim.vectorised import Vectorised

    task = TaskConfig("PushCube-v1", reward="normalized_dense", max_steps=6)
    here = rows(task, step="official")
    with Vectorised([task], SimulationConfig(copies=1)) as batched:
        mine, theirs = here.reset([0], [3]), batched.reset(torch.tensor([0]), torch.tensor([3]))
        assert np.allclose(mine.state, theirs.state, atol=1e-6)
        for _ in range(3):
            moved = np.random.default_rng(0).uniform(-1, 1, (1, 4, 4)).astype(np.float32)
            one, two = here.act(moved, [5]), batched.chunk_step(torch.from_numpy(moved), torch.tensor([5]))
            for name in ("rewards", "success", "alive", "terminated", "truncated", "broken"):
                assert np.allclose(vars(one)[name], vars(two)[name].numpy(), atol=1e-5), name
            assert np.allclose(one.views.state, two.observations.state, atol=1e-5)
            assert np.allclose(one.final.state, two.final.state, atol=1e-5)
