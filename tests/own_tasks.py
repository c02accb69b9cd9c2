"""Tasks of a user's own: one that says nothing but when it is done, one whose physics is lost, one that ends its process."""

from __future__ import annotations

import os

import sapien
import torch
from mani_skill.agents.robots import Panda
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.envs.tasks.tabletop.push_cube import PushCubeEnv
from mani_skill.utils.registration import register_env


@register_env("TouchGround-v1", max_episode_steps=20)
class TouchGround(BaseEnv):
    """Lower the hand. No object, no dense reward, no observation of its own."""

    SUPPORTED_ROBOTS = ("panda",)
    agent: Panda

    def __init__(self, *args, robot_uids="panda", height=0.1, **kwargs):
        self.height = height
        super().__init__(*args, robot_uids=robot_uids, **kwargs)

    def _load_agent(self, options):
        super()._load_agent(options, sapien.Pose(p=[-0.615, 0, 0]))

    def _initialize_episode(self, env_idx, options):
        noise = torch.rand(len(env_idx), 9) * 0.02
        self.agent.robot.set_qpos(torch.from_numpy(self.agent.keyframes["rest"].qpos).float() + noise)

    def evaluate(self):
        return {"success": self.agent.tcp.pose.p[:, 2] < self.height}


@register_env("LostPhysics-v1", max_episode_steps=20)
class LostPhysics(PushCubeEnv):
    """After three steps its observation is not finite."""

    def _get_obs_extra(self, info):
        lost = self.elapsed_steps[0] >= 3
        return super()._get_obs_extra(info) | {"lost": torch.full((1, 1), float("nan") if lost else 0.0)}


@register_env("Crash-v1", max_episode_steps=20)
class Crash(PushCubeEnv):
    """Ends its process at the second step, as a segmentation fault does."""

    def evaluate(self):
        if self.elapsed_steps[0] >= 2:
            os._exit(139)
        return super().evaluate()
