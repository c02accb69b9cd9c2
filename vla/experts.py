"""Scripted experts for ManiSkill tasks under end-effector control, from the state that the task tells.

ManiSkill's own motion planner needs mplib, which ends the process under numpy 2. A state-based script in 20 lines a
task is enough for demonstrations, and runs over many environments at once.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

STEP = 0.1
"""Metres that an action of 1 moves the hand, under `pd_ee_delta_pos`."""
OPEN, CLOSED = 1.0, -1.0


@dataclass(frozen=True)
class Expert(abc.ABC):
    """What to do in a state. `speed` bounds an action, `gain` is its share of the way that is left."""

    gain: float = 0.6
    speed: float = 1.0

    @abc.abstractmethod
    def __call__(self, state: Tensor) -> Tensor:
        """Actions (n, A) in states (n, S)."""

    def towards(self, target: Tensor, hand: Tensor, grip: Tensor) -> Tensor:
        """Move the hand (n, 3) to a target (n, 3) with the gripper at `grip` (n,)."""
        step = (self.gain * (target - hand) / STEP).clamp(-self.speed, self.speed)
        return torch.cat([step, grip[:, None]], -1)


@dataclass(frozen=True)
class PushCube(Expert):
    """`PushCube-v1`: down behind the cube with the fingers closed, then forward until it lies within the goal."""

    behind: float = 0.05

    def __call__(self, state: Tensor) -> Tensor:
        hand, goal, cube = state[:, 18:21], state[:, 25:28], state[:, 28:31]
        back = cube - torch.tensor([self.behind, 0.0, 0.0])
        back[:, 2] = 0.02
        offset = hand - back
        ready = (offset[:, 1].abs() < 0.015) & (offset[:, 2] < 0.02) & (offset[:, 0] > -0.015)
        above = back.clone()
        above[:, 2] = torch.where(offset[:, :2].norm(dim=-1) < 0.04, 0.02, 0.1)  # not through the cube
        push = torch.stack([goal[:, 0] - self.behind, cube[:, 1], back[:, 2]], -1)
        grip = torch.full_like(hand[:, 0], CLOSED)
        return self.towards(torch.where(ready[:, None], push, above), hand, grip)


@dataclass(frozen=True)
class PickCube(Expert):
    """`PickCube-v1`: above the cube, down, close, and to the goal."""

    def __call__(self, state: Tensor) -> Tensor:
        grasped, hand = state[:, 18] > 0.5, state[:, 19:22]
        goal, cube = state[:, 26:29], state[:, 29:32]
        offset = hand - cube
        over = offset[:, :2].norm(dim=-1) < 0.015
        down = over & (offset[:, 2].abs() < 0.012)
        above = cube.clone()
        above[:, 2] = torch.where(over, cube[:, 2], cube[:, 2] + 0.08)
        carry = hand + goal - cube
        grip = torch.where(down | grasped, CLOSED, OPEN)
        return self.towards(torch.where(grasped[:, None], carry, above), hand, grip)


@dataclass(frozen=True)
class PullCube(Expert):
    """`PullCube-v1`: down before the cube with the fingers closed, then back until it lies within the goal."""

    before: float = 0.05

    def __call__(self, state: Tensor) -> Tensor:
        hand, goal, cube = state[:, 18:21], state[:, 25:28], state[:, 28:31]
        front = cube + torch.tensor([self.before, 0.0, 0.0])
        front[:, 2] = 0.02
        offset = hand - front
        ready = (offset[:, 1].abs() < 0.015) & (offset[:, 2] < 0.02) & (offset[:, 0] < 0.015)
        above = front.clone()
        above[:, 2] = torch.where(offset[:, :2].norm(dim=-1) < 0.04, 0.02, 0.1)  # not through the cube
        pull = torch.stack([goal[:, 0] + self.before, cube[:, 1], front[:, 2]], -1)
        grip = torch.full_like(hand[:, 0], CLOSED)
        return self.towards(torch.where(ready[:, None], pull, above), hand, grip)


@dataclass(frozen=True)
class Place(Expert):
    """Take a thing, carry it over a place, put it down and let go. `over` and `height` say when it lies there."""

    over: float = 0.01
    height: float = 0.01

    def move(self, hand: Tensor, thing: Tensor, place: Tensor, held: Tensor) -> Tensor:
        """Actions (n, A) with the hand, the thing and where it is to lie (n, 3), and whether it is held (n,)."""
        offset, left = hand - thing, thing - place
        near = offset[:, :2].norm(dim=-1) < 0.015
        down = near & (offset[:, 2].abs() < 0.012)
        there = left[:, :2].norm(dim=-1) < self.over
        lies = there & (left[:, 2] < self.height)
        take = thing.clone()
        take[:, 2] += torch.where(near, 0.0, 0.08)
        goal = place.clone()
        goal[:, 2] += torch.where(there, 0.0, 0.08)
        low = ~there & (left[:, 2] < 0.05)
        goal[:, :2] = torch.where(low[:, None], thing[:, :2], goal[:, :2])  # up first, not through what stands there
        target = torch.where(held[:, None], hand + goal - thing, take)
        away = hand + torch.tensor([0.0, 0.0, 0.05])
        grip = torch.where((down | held) & ~lies, CLOSED, OPEN)
        return self.towards(torch.where(lies[:, None], away, target), hand, grip)


@dataclass(frozen=True)
class PlaceSphere(Place):
    """`PlaceSphere-v1`: the sphere into the bin."""

    def __call__(self, state: Tensor) -> Tensor:
        bottom, sphere = state[:, 26:29], state[:, 29:32]
        return self.move(state[:, 19:22], sphere, bottom + torch.tensor([0.0, 0.0, 0.0225]), state[:, 18] > 0.5)
