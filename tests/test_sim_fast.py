"""The fast path does what ManiSkill's own step does: random and scripted episodes, joint and end-effector control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from vla.experts import Expert, PlaceSphere, PullCube
from vla.sim.base import SimulationConfig, TaskConfig
from vla.sim.worker import Job, prepare

CONFIG = SimulationConfig()
BOUND = 5e-5
TASKS = ("PushCube-v1", "PickCube-v1", "PullCube-v1", "PlaceSphere-v1")
GRASPS = ("PickCube-v1", "PlaceSphere-v1")
CONTROLS = ("pd_joint_delta_pos", "pd_joint_pos", "pd_ee_delta_pos", "pd_ee_delta_pose")


@pytest.fixture(scope="module", autouse=True)
def _no_visuals() -> None:
    prepare(Job(CONFIG, (), ()))


def pair(task: str, control: str, reward: str = "normalized_dense"):
    from vla.sim.fast import make

    config = TaskConfig(task, control=control, reward=reward)
    fast, official = make(config, CONFIG), make(config, replace(CONFIG, step="official"))
    assert fast.spec.fast
    assert not official.spec.fast
    return fast, official


def follow(fast, official, seed: int, act: Callable, steps: int) -> dict[str, float]:
    """Largest differences over an episode of both, and what happened in it."""
    one, two = fast.reset(seed), official.reset(seed)
    found = {"state": float(np.abs(one.state - two.state).max()), "reward": 0.0, "success": 0, "grasped": 0}
    for number in range(steps):
        action = act(two.state, number).astype(np.float32)
        mine, theirs = fast.step(action), official.step(action)
        one, two = mine.seen, theirs.seen
        found["state"] = max(found["state"], float(np.abs(one.state - two.state).max()))
        found["reward"] = max(found["reward"], abs(mine.reward - theirs.reward))
        assert (mine.success, mine.failed) == (theirs.success, theirs.failed)
        found["success"] += theirs.success
        found["grasped"] += len(two.state) in (42, 39) and two.state[18] > 0
    return found


def random_actions(spec, seed: int) -> Callable:
    """Beyond the bounds too: both clip."""
    draw = np.random.default_rng(seed)
    if spec.action_high[0] > 1.001:  # absolute joint positions
        return lambda state, _: np.append(state[:7] + draw.uniform(-0.2, 0.2, 7), draw.uniform(-1, 1))
    return lambda _, __: draw.uniform(-1.3, 1.3, spec.action_size)


def push(state: np.ndarray, number: int) -> np.ndarray:
    """End-effector steps that push the cube to its goal, gripper closed."""
    tool, cube = state[18:21], state[28:31]
    behind = cube + np.array([-0.06 if number > 12 else -0.12, 0, 0])
    target = behind if number < 20 else cube + np.array([0.05, 0, 0])
    return np.append(np.clip((target - tool) * 8, -1, 1), -1.0)


def pick(state: np.ndarray, number: int) -> np.ndarray:
    """End-effector steps that take the cube to its goal."""
    tool, goal, cube, grasped = state[19:22], state[26:29], state[29:32], state[18] > 0
    above = np.abs(tool[:2] - cube[:2]).max() < 0.01
    hover = cube + np.array([0, 0, 0.0 if above else 0.08])
    target = goal - cube + tool if grasped else hover
    closes = grasped or (above and tool[2] - cube[2] < 0.01)
    return np.append(np.clip((target - tool) * 6, -1, 1), -1.0 if closes else 1.0)


def scripted(expert: Expert) -> Callable:
    """An expert of demonstrations."""
    return lambda state, _: expert(torch.from_numpy(state)[None])[0].numpy()


EXPERTS = {
    "PushCube-v1": push,
    "PickCube-v1": pick,
    "PullCube-v1": scripted(PullCube()),
    "PlaceSphere-v1": scripted(PlaceSphere()),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("control", CONTROLS)
def test_random_episodes_are_equal(task: str, control: str) -> None:
    fast, official = pair(task, control)
    for seed in (0, 1):
        found = follow(fast, official, seed, random_actions(fast.spec, seed), 40)
        assert found["state"] <= BOUND
        assert found["reward"] <= BOUND


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("control", ["pd_ee_delta_pos", "pd_ee_delta_pose"])
def test_episodes_that_succeed_are_equal(task: str, control: str) -> None:
    """Contacts, grasps, every branch of the reward."""
    fast, official = pair(task, control, "dense")

    def act(state: np.ndarray, number: int) -> np.ndarray:
        moved = EXPERTS[task](state, number)
        return moved if len(moved) == fast.spec.action_size else np.concatenate([moved[:3], np.zeros(3), moved[3:]])

    total = {"success": 0, "grasped": 0}
    for seed in (0, 3):
        found = follow(fast, official, seed, act, 60)
        assert found["state"] <= BOUND
        assert found["reward"] <= BOUND
        total = {name: total[name] + found[name] for name in total}
    assert total["success"] > 0
    assert task not in GRASPS or total["grasped"] > 10


def test_joints_that_grasp_are_equal() -> None:
    """The joint positions of an end-effector episode, followed by the joint controller."""
    _, guide = pair("PickCube-v1", "pd_ee_delta_pos")
    fast, official = pair("PickCube-v1", "pd_joint_pos", "sparse")
    seen, path = guide.reset(3), []
    for number in range(50):
        action = pick(seen.state, number).astype(np.float32)
        seen = guide.step(action).seen
        path.append(np.append(seen.state[:7], action[3]))
    found = follow(fast, official, 3, lambda _, number: path[number], 50)
    assert found["state"] <= BOUND
    assert found["grasped"] > 10


def test_inverse_kinematics_that_fails_is_met() -> None:
    """Random steps in these episodes lead out of reach, where both hold still."""
    fast, official = pair("PushCube-v1", "pd_ee_delta_pos")
    arm = official.env.agent.controller.controllers["arm"].kinematics
    failed, solve = [], arm.compute_ik
    arm.compute_ik = lambda *a, **k: failed.append(solve(*a, **k)) or failed[-1]
    up = np.array([1, 0, 1, 0.0])
    assert follow(fast, official, 0, lambda _, __: up, 20)["state"] <= BOUND
    assert any(found is None for found in failed)


@pytest.mark.parametrize("which", [0, 1])
def test_a_seed_is_an_episode_whatever_came_before(which: int) -> None:
    """To the last bit, and after a grasp too, whose contacts ManiSkill would still report in the first observation."""

    def episode(env, seed: int, act: Callable) -> np.ndarray:
        states = [env.reset(seed).state]
        for number in range(30):
            states.append(env.step(act(states[-1], number).astype(np.float32)).seen.state)
        return np.stack(states)

    fresh, used = pair("PickCube-v1", "pd_ee_delta_pos")[which], pair("PickCube-v1", "pd_ee_delta_pos")[which]
    before = [episode(used, seed, pick) for seed in (7, 3)]
    assert before[-1][-1, 18] == 1
    down = np.array([0.1, -0.1, -0.5, 1])
    one, two = (episode(env, 5, lambda *_: down) for env in (fresh, used))
    assert np.array_equal(one, two)


def test_what_is_not_written_down_takes_the_tasks_own_step() -> None:
    from vla.sim.fast import make

    for task in (
        TaskConfig("PokeCube-v1"),
        TaskConfig("PushCube-v1", control="pd_ee_target_delta_pos"),
        TaskConfig("PushCube-v1", control="pd_joint_vel"),
    ):
        assert not make(task, CONFIG).spec.fast


def test_in_a_new_scene_an_episode_depends_on_its_seed_alone() -> None:
    """Whatever the scene has seen before, and by either path; without a new scene contacts differ in their last digits,
    and then in more."""
    from vla.sim.fast import make

    rebuilt = replace(CONFIG, rebuild=True)
    task = TaskConfig("PushCube-v1", reward="normalized_dense")
    fast, official = make(task, rebuilt), make(task, replace(rebuilt, step="official"))

    def episode(env, seed: int) -> list[np.ndarray]:
        states = [env.reset(seed).state]
        for number in range(20):
            states.append(env.step(push(states[-1], number).astype(np.float32)).seen.state)
        return states

    first = [episode(fast, seed) for seed in (3, 1, 6)]
    again = [episode(env, seed) for env, seed in ((fast, 3), (official, 1), (official, 6))]
    assert np.array_equal(first, again)
