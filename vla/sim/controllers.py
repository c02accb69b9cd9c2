"""ManiSkill's position controllers in numpy: from an action to the drive targets of the joints.

The same float32 arithmetic in the same order as `mani_skill.agents.controllers`, on arrays instead of tensors of one
row. Inverse kinematics is ManiSkill's own solver, and where it fails the joints hold still, as there.
"""

from __future__ import annotations

import numpy as np
import sapien
import torch
from mani_skill.agents.controllers import pd_ee_pose, pd_joint_pos
from mani_skill.agents.controllers.base_controller import BaseController, CombinedController
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]


class CannotSpeedUp(ValueError):
    """Something that only the task's own step does."""


class Drives:
    """Sets the drive targets of a robot from one action (A,)."""

    def __init__(self, controller: BaseController) -> None:
        if type(controller) is not CombinedController:
            raise CannotSpeedUp(f"a {type(controller).__name__}")
        self.parts = [
            (slice(*controller.action_mapping[name]), _part(part)) for name, part in controller.controllers.items()
        ]

    def __call__(self, action: Array, qpos: Array) -> None:
        """`qpos` (J,) of all joints of the robot."""
        for columns, part in self.parts:
            targets = part.targets(action[columns], qpos)
            for number, joint in enumerate(part.joints):
                joint.drive_target = targets[number : number + 1]


class _Joints:
    """Joint positions or steps of them; with `mimic`, one action for all joints of a gripper."""

    def __init__(self, controller: pd_joint_pos.PDJointPosController) -> None:
        config = controller.config
        if config.use_target or config.interpolate:
            raise CannotSpeedUp("a controller with a memory")
        self.joints = [joint._objs[0] for joint in controller.joints]
        self.index = controller.active_joint_indices.numpy()
        self.delta, self.normalised = config.use_delta, controller._normalize_action
        if self.normalised:
            self.scale = _Scale(controller)

    def targets(self, action: Array, qpos: Array) -> Array:
        if self.normalised:
            action = self.scale(action)
        return qpos[self.index] + action if self.delta else action


class _Mimic(_Joints):
    def __init__(self, controller: pd_joint_pos.PDJointPosMimicController) -> None:
        super().__init__(controller)
        self.control = controller.control_joint_indices.numpy()
        self.followers = controller.mimic_joint_indices.numpy()
        self.leaders = controller.mimic_control_joint_indices.numpy()
        self.multiplier, self.offset = controller._multiplier.numpy(), controller._offset.numpy()
        if self.delta or len(self.control) + len(self.followers) != len(self.joints):
            raise CannotSpeedUp("a gripper that moves by steps")

    def targets(self, action: Array, qpos: Array) -> Array:
        targets = np.empty(len(self.joints), np.float32)
        targets[self.control] = self.scale(action) if self.normalised else action
        targets[self.followers] = targets[self.leaders] * self.multiplier + self.offset
        return targets


class _EndEffector:
    """A step of the end effector, in the frame of a base that stays where it is, by inverse kinematics. The solver
    stops within 1e-4, so the last bit of its target counts: hence the same float32 arithmetic."""

    def __init__(self, controller: pd_ee_pose.PDEEPosController) -> None:
        config = controller.config
        frames = ("root_translation", "root_translation:root_aligned_body_rotation")
        if config.use_target or config.interpolate or not config.use_delta or config.frame not in frames:
            raise CannotSpeedUp(f"end-effector control in the frame {config.frame}, or with a memory")
        if not controller._normalize_action:
            raise CannotSpeedUp("end-effector control in its own units")
        self.scale = _Scale(controller)
        root = controller.root_link.pose.inv().raw_pose[0].numpy()
        self.base_p, self.base_q = root[:3], root[3:]
        self.joints = [joint._objs[0] for joint in controller.joints]
        self.index = controller.active_joint_indices.numpy()
        self.link = controller.ee_link._objs[0]
        kinematics = controller.kinematics
        self.solver, self.link_number = kinematics.pmodel, kinematics.end_link_idx
        self.active, self.mask = kinematics.pmodel_active_joint_indices.numpy(), kinematics.qmask
        self.controlled = kinematics.pmodel_controlled_joint_indices.numpy()

    def targets(self, action: Array, qpos: Array) -> Array:
        solved, success, _ = self.solver.compute_inverse_kinematics(
            self.link_number,
            self.target(action),
            initial_qpos=qpos[self.active],
            active_qmask=self.mask,
            max_iterations=100,
        )
        return solved[self.controlled].astype(np.float32) if success else qpos[self.index]

    def now(self) -> tuple[Array, Array]:
        """Position and rotation of the end effector, at the base."""
        pose, turn = self.link.entity_pose, self.base_q
        point = _multiply(_multiply(turn, np.concatenate([ZERO, pose.p])), turn * INVERSE)[1:]
        rotation = _multiply(turn, pose.q)
        return self.base_p + point, -rotation if rotation[0] < 0 else rotation

    def target(self, action: Array) -> sapien.Pose:
        """Where the end effector is to go, at the base."""
        position, rotation = self.now()
        return sapien.Pose(self.scale(action) + position, rotation)


class _EndEffectorPose(_EndEffector):
    """A turn with it, of Euler angles XYZ in the frame of the base, clipped by its norm."""

    def __init__(self, controller: pd_ee_pose.PDEEPoseController) -> None:
        super().__init__(controller)
        self.angle = float(controller.config.rot_lower)
        if abs(self.angle) > 1:
            raise CannotSpeedUp("end-effector control with steps of more than a radian")

    def target(self, action: Array) -> sapien.Pose:
        angles = torch.from_numpy(action[None, 3:])
        norm = torch.linalg.norm(angles, axis=1)
        if norm > 1:
            angles = angles * (1 / norm[:, None])
        position, rotation = self.now()
        turned = _multiply(_turn((angles * self.angle)[0]), rotation)
        return sapien.Pose(self.scale(action)[:3] + position, -turned if turned[0] < 0 else turned)


class _Scale:
    """From [-1, 1] to a controller's own units."""

    def __init__(self, controller: BaseController) -> None:
        low, high = controller.action_space_low.numpy(), controller.action_space_high.numpy()
        self.middle, self.half = np.float32(0.5) * (high + low), np.float32(0.5) * (high - low)

    def __call__(self, action: Array) -> Array:
        return self.middle + self.half * np.clip(action, -1, 1)


def _part(controller: BaseController) -> _Joints | _EndEffector:
    kinds = {
        pd_joint_pos.PDJointPosController: _Joints,
        pd_joint_pos.PDJointPosMimicController: _Mimic,
        pd_ee_pose.PDEEPosController: _EndEffector,
        pd_ee_pose.PDEEPoseController: _EndEffectorPose,
    }
    if type(controller) not in kinds:
        raise CannotSpeedUp(f"a {type(controller).__name__}")
    return kinds[type(controller)](controller)


ZERO = np.zeros(1, np.float32)
INVERSE = np.array([1, -1, -1, -1], np.float32)
ORDER = np.array([[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]])
SIGN = np.array([[1, 1, 1, 1], [-1, 1, -1, 1], [-1, 1, 1, -1], [-1, -1, 1, 1]], np.float32)


def _multiply(a: Array, b: Array) -> Array:
    """Product of two quaternions (4,), real part first, summed in ManiSkill's order."""
    terms = a[:, None] * (b[ORDER] * SIGN)
    return terms[0] + terms[1] + terms[2] + terms[3]


def _turn(angles: Tensor) -> Array:
    """Quaternion of Euler angles XYZ (3,) of less than a right angle. Sines, products and the root are torch's,
    whose last bit is not numpy's."""
    (cx, cy, cz), (sx, sy, sz) = torch.cos(angles).tolist(), torch.sin(angles).tolist()
    x, y, z = torch.tensor([
        [1, 0, 0, 0, cx, -sx, 0, sx, cx], [cy, 0, sy, 0, 1, 0, -sy, 0, cy], [cz, -sz, 0, sz, cz, 0, 0, 0, 1]
    ]).view(3, 1, 3, 3)  # fmt: skip
    m = torch.matmul(torch.matmul(x, y), z)[0].numpy()
    twice = torch.sqrt(torch.tensor([1 + m[0, 0] + m[1, 1] + m[2, 2]])).numpy()[0]
    parts = np.array([twice * twice, m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    return parts / (np.float32(2) * twice)
