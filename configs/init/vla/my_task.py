"""A task of your own: what stands in the scene, where an episode begins, and what counts as success.

Sparse reward needs nothing more. ManiSkill's guide to custom tasks has the rest: other robots, cameras, dense rewards.
"""

import sapien
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils import sapien_utils
from mani_skill.utils.building import actors
from mani_skill.utils.registration import register_env
from mani_skill.utils.scene_builder.table import TableSceneBuilder
from mani_skill.utils.structs import Pose

RADIUS, HALF = 0.1, 0.02  # metres: of the goal, and half a side of the cube


@register_env("PushWide-v1", max_episode_steps=48)
class PushWide(BaseEnv):
    """Push the cube onto the disc in front of it. It begins anywhere in a wider field than in PushCube-v1."""

    SUPPORTED_ROBOTS = ("panda",)

    def __init__(self, *args, robot_uids="panda", width=0.3, **kwargs):  # `env.options: {width: 0.2}` is a variant
        self.width = width
        super().__init__(*args, robot_uids=robot_uids, **kwargs)

    def _load_agent(self, options):
        super()._load_agent(options, sapien.Pose(p=[-0.615, 0, 0]))

    def _load_scene(self, options):
        self.table = TableSceneBuilder(env=self)
        self.table.build()
        blue, start = [0.05, 0.16, 0.63, 1], sapien.Pose(p=[0, 0, HALF])
        self.cube = actors.build_cube(self.scene, HALF, blue, name="cube", initial_pose=start)
        self.goal = actors.build_red_white_target(
            self.scene,
            RADIUS,
            1e-5,
            name="goal",
            body_type="kinematic",
            add_collision=False,
            initial_pose=sapien.Pose(),
        )

    def _initialize_episode(self, env_idx, options):
        with torch.device(self.device):
            self.table.initialize(env_idx)
            place = torch.zeros(len(env_idx), 3)
            place[:, 0] = torch.rand(len(env_idx)) * 0.2 - 0.1
            place[:, 1] = (torch.rand(len(env_idx)) - 0.5) * self.width
            place[:, 2] = HALF
            self.cube.set_pose(Pose.create_from_pq(place))
            goal = place + torch.tensor([0.1 + RADIUS, 0, 1e-3 - HALF])
            self.goal.set_pose(Pose.create_from_pq(goal, [0.7071068, 0, 0.7071068, 0]))

    def evaluate(self):
        cube, goal = self.cube.pose.p, self.goal.pose.p
        near = torch.linalg.norm(cube[:, :2] - goal[:, :2], dim=-1) < RADIUS
        return {"success": near & (cube[:, 2] < HALF + 5e-3)}

    def _get_obs_extra(self, info):
        """Beside joint positions and velocities: what `observe: state` may know, and a camera does not tell."""
        told = {"tcp_pose": self.agent.tcp.pose.raw_pose}
        if self.obs_mode_struct.use_state:
            told |= {"goal_pos": self.goal.pose.p, "cube_pose": self.cube.pose.raw_pose}
        return told

    @property
    def _default_sensor_configs(self):
        """What the policy sees with `simulation.observe: images`."""
        pose = sapien_utils.look_at(eye=[0.3, 0, 0.6], target=[-0.1, 0, 0.1])
        return [CameraConfig("base_camera", pose=pose, width=128, height=128, fov=1.57, near=0.01, far=100)]

    @property
    def _default_human_render_camera_configs(self):
        """What videos show."""
        pose = sapien_utils.look_at(eye=[0.6, 0.7, 0.6], target=[0.0, 0.0, 0.35])
        return CameraConfig("render_camera", pose=pose, width=512, height=512, fov=1, near=0.01, far=100)
