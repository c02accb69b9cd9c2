"""The fast path: ManiSkill's own scene and physics, with the Python around one step taken out.

A step sets the drive targets, steps the physics and reads poses as arrays; the observation, the reward and the success
are written once more in numpy, task by task. `tests/test_sim_fast.py` holds them equal to the task's own step. Resets
are ManiSkill's own.
"""

from __future__ import annotations

from dataclasses import replace
from math import tanh

import numpy as np
from mani_skill.agents.robots import Panda
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.envs.tasks.tabletop.pick_cube import PickCubeEnv
from mani_skill.envs.tasks.tabletop.place_sphere import PlaceSphereEnv
from mani_skill.envs.tasks.tabletop.pull_cube import PullCubeEnv
from mani_skill.envs.tasks.tabletop.push_cube import PushCubeEnv
from mani_skill.utils.structs import Actor
from numpy.typing import NDArray
from sapien.physx import PhysxArticulationLinkComponent as Body
from sapien.physx import PhysxContact

from vla.sim.base import SimulationConfig, TaskConfig
from vla.sim.controllers import CannotSpeedUp, Drives
from vla.sim.single import Environment, Official, Pictures, Seen, Step

Array = NDArray[np.float32]
Judged = tuple[Array, float, bool]
"""The state (S,), the dense reward and the success."""


class Fast:
    """One environment of a task that is written down here. Where pictures are observed, the state ends before what the
    robot does not feel of itself, as the task's own does.

    Raises:
        CannotSpeedUp: another task, robot or controller.
    """

    def __init__(self, official: Official, reward: str) -> None:
        env = official.env
        if type(env) not in TASKS or type(env.agent) is not Panda:
            raise CannotSpeedUp(f"{type(env).__name__} with {type(env.agent).__name__}")
        self.spec, self._official = replace(official.spec, fast=True), official
        self._env, self._steps = env, env._sim_steps_per_control
        self._bind()
        self._scale = {"sparse": None, "dense": 1.0, "normalized_dense": 1 / self._judge.highest}[reward]
        # NOTE: ManiSkill's reset ends with an observation that would be thrown away.
        env.get_info, env.get_obs = dict, (lambda _: None)

    def _bind(self) -> None:
        """Take hold of the scene."""
        env = self._env
        self._drives, self._judge = Drives(env.agent.controller), TASKS[type(env)](env)
        self._robot, self._physics = env.agent.robot._objs[0], env.scene.px

    def reset(self, seed: int) -> Seen:
        self._env.reset(seed=seed, options=self._official.options)
        if self._official.options:
            self._bind()
        return Seen(self._judge(begins=True)[0][: self.spec.state_size], self.look())

    def step(self, action: Array) -> Step:
        self._drives(action, self._robot.qpos)
        for _ in range(self._steps):
            self._physics.step()
        state, reward, success = self._judge()
        return Step(
            Seen(state[: self.spec.state_size]),
            float(success) if self._scale is None else reward * self._scale,
            success,
            False,
        )

    def look(self) -> Pictures:
        return self._official.look()

    def render(self) -> NDArray[np.uint8]:
        return self._official.render()


class PushCube:
    """`PushCube-v1`. State: joint positions 9 and velocities 9, tool pose 7, goal 3, cube pose 7."""

    highest = 4.0

    def __init__(self, env: PushCubeEnv) -> None:
        self.robot, self.tool = env.agent.robot._objs[0], env.agent.tcp._objs[0]
        self.cube, self.goal = env.obj._objs[0], env.goal_region._objs[0]
        self.radius, self.half = env.goal_radius, env.cube_half_size

    def seen(self) -> tuple[NDArray[np.float32], list[float], list[float], float]:
        """The state, where the cube and the tool are (3,), and how far the cube is from the goal in the plane."""
        tool, cube, goal = self.tool.entity_pose, self.cube.pose, self.goal.pose.p
        at, place = tool.p, cube.p
        state = np.concatenate([self.robot.qpos, self.robot.qvel, at, tool.q, goal, place, cube.q])
        where: list[float] = place.tolist()
        return state, where, at.tolist(), _length(where[0] - float(goal[0]), where[1] - float(goal[1]))

    def __call__(self, begins: bool = False) -> Judged:
        state, (x, y, z), (tx, ty, tz), to_goal = self.seen()
        if to_goal < self.radius and z < self.half + 5e-3:
            return state, self.highest, True
        to_push = _length(x - self.half - 0.005 - tx, y - ty, z - tz)
        reward = 1 - tanh(5 * to_push)
        if to_push < 0.01:
            placed = 1 - tanh(5 * to_goal)
            reward += placed + placed * (1 - tanh(5 * abs(z - self.half)))
        return state, reward, False


class PullCube(PushCube):
    """`PullCube-v1`. State: as `PushCube-v1`."""

    highest = 3.0

    def __call__(self, begins: bool = False) -> Judged:
        state, (x, y, z), (tx, ty, tz), to_goal = self.seen()
        if to_goal < self.radius:
            return state, self.highest, True
        to_pull = _length(x + self.half + 2 * 0.005 - tx, y - ty, z - tz)
        reward = 1 - tanh(5 * to_pull)
        return state, reward + (1 - tanh(5 * to_goal) if to_pull < 0.01 else 0.0), False


class PickCube:
    """`PickCube-v1`. State: joint positions 9 and velocities 9, grasped 1, tool pose 7, goal 3, cube pose 7, tool to
    cube 3, cube to goal 3."""

    highest = 5.0

    def __init__(self, env: PickCubeEnv) -> None:
        self.robot, self.tool = env.agent.robot._objs[0], env.agent.tcp._objs[0]
        self.cube, self.goal = env.cube._objs[0], env.goal_site._objs[0]
        self.near = env.goal_thresh
        self.grasp = Grasp(env, env.cube)

    def __call__(self, begins: bool = False) -> Judged:
        tool, cube, goal = self.tool.entity_pose, self.cube.pose, self.goal.pose.p
        at, place, qvel = tool.p, cube.p, self.robot.qvel
        grasped = not begins and self.grasp()
        to_cube, to_goal = place - at, goal - place
        state = np.concatenate(
            [self.robot.qpos, qvel, (grasped,), at, tool.q, goal, place, cube.q, to_cube, to_goal], dtype=np.float32
        )
        speeds = qvel[:-2].tolist()
        left = _length(*to_goal.tolist())
        placed = left <= self.near
        if placed and max(map(abs, speeds)) <= np.float32(0.2):
            return state, self.highest, True
        reward = 1 - tanh(5 * _length(*to_cube.tolist()))
        if grasped:
            reward += 2 - tanh(5 * left)
        if placed:
            reward += 1 - tanh(5 * _length(*speeds))
        return state, reward, False


class PlaceSphere:
    """`PlaceSphere-v1`. State: joint positions 9 and velocities 9, grasped 1, tool pose 7, bin 3, sphere pose 7,
    tool to sphere 3."""

    highest = 13.0

    def __init__(self, env: PlaceSphereEnv) -> None:
        self.robot, self.tool = env.agent.robot._objs[0], env.agent.tcp._objs[0]
        self.sphere, self.bin = env.obj._objs[0], env.bin._objs[0]
        self.height = env.radius + env.block_half_size[0]
        self.width = float(env.agent.robot.get_qlimits()[0, -1, 1] * 2)
        self.grasp, self.body = Grasp(env, env.obj), env.obj._bodies[0]

    def __call__(self, begins: bool = False) -> Judged:
        tool, sphere, bottom = self.tool.entity_pose, self.sphere.pose, self.bin.pose.p
        at, place, qpos, qvel = tool.p, sphere.p, self.robot.qpos, self.robot.qvel
        grasped = not begins and self.grasp()
        to_sphere = place - at
        state = np.concatenate(
            [qpos, qvel, (grasped,), at, tool.q, bottom, place, sphere.q, to_sphere], dtype=np.float32
        )
        x, y, z = (place - bottom).tolist()
        there = _length(x, y) <= 0.005 and abs(z - self.height) <= 0.005
        speed = _length(*self.body.linear_velocity.tolist())
        turning = _length(*self.body.angular_velocity.tolist())
        if there and not grasped and speed <= 1e-2 and turning <= 0.5:
            return state, self.highest, True
        if there:
            let_go = float(qpos[-2:].sum()) / self.width if grasped else 16.0
            still = max(map(abs, qvel[:-2].tolist())) <= np.float32(0.2)
            return state, 6 + (let_go + 1 - tanh(speed * 10 + turning) + still) / 3, False
        if grasped:
            return state, 5 - tanh(5 * _length(x, y, z - self.height)), False
        return state, 2 * (1 - tanh(5 * _length(*to_sphere.tolist()))), False


class Grasp:
    """Whether both fingers press on an object along the way they close: `Panda.is_grasping`."""

    def __init__(self, env: BaseEnv, thing: Actor, force: float = 0.5, angle: float = 85) -> None:
        agent = env.agent
        self.physics, self.force = env.scene.px, force * env.scene.px.timestep
        self.cosine = float(np.cos(np.deg2rad(angle)))
        self.thing = thing._bodies[0]
        self.fingers = [(agent.finger1_link._bodies[0], 1.0), (agent.finger2_link._bodies[0], -1.0)]

    def __call__(self) -> bool:
        touching = [contact for contact in self.physics.get_contacts() if self.thing in contact.bodies]
        return bool(touching) and all(self.presses(finger, side, touching) for finger, side in self.fingers)

    def presses(self, finger: Body, side: float, touching: list[PhysxContact]) -> bool:
        """Whether the impulse of the finger on the object is large enough, and how it points."""
        impulse = np.zeros(3)
        for contact in touching:
            one, other = contact.bodies
            if finger in (one, other):
                total = np.sum([point.impulse for point in contact.points], axis=0)
                impulse += total if one == finger else -total
        size = float(np.linalg.norm(impulse))
        if size < self.force:
            return False
        opening = side * finger.entity_pose.to_transformation_matrix()[:3, 1]
        return float(opening @ impulse) >= self.cosine * size


TASKS: dict[type[BaseEnv], type[PushCube] | type[PickCube] | type[PlaceSphere]] = {
    PushCubeEnv: PushCube,
    PullCubeEnv: PullCube,
    PickCubeEnv: PickCube,
    PlaceSphereEnv: PlaceSphere,
}
"""What is written down here."""


def make(task: TaskConfig, config: SimulationConfig) -> Environment:
    """One environment, by the fast path where the config lets it and there is one."""
    official = Official(task, config)
    if config.step == "official":
        return official
    try:
        return Fast(official, task.reward)
    except CannotSpeedUp:
        return official


def _length(*parts: float) -> float:
    return sum(part * part for part in parts) ** 0.5
