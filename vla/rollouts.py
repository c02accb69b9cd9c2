"""Episodes of a policy that explores, recorded."""

from __future__ import annotations

import abc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vla.mapping import check_actions
from vla.policy import Acted, RobotPolicy
from vla.sim.base import Chunk, Observations, Simulator


@dataclass(frozen=True)
class Begun:
    """What B episodes begin from, so that they can be played again."""

    seeds: Sequence[int]  # B
    noise: Tensor  # (B, E, K+1, H, A)
    stochastic: Tensor  # (B, E, K) bool: denoise steps that explore

    def rows(self, index: Sequence[int]) -> Begun:
        """Those of `index`."""
        chosen = list(index)
        return Begun([self.seeds[row] for row in chosen], self.noise[chosen], self.stochastic[chosen])


@dataclass
class Seconds:
    """Where the wall time of episodes went. Beginning them, in which both sides of the simulator have a part;
    simulation as its slowest process measures it; transfer, which is what a call takes beyond that; the policy."""

    reset: float = 0.0
    simulation: float = 0.0
    transfer: float = 0.0
    inference: float = 0.0
    wall: float = 0.0

    def add(self, inference: float, call: float, simulation: float) -> None:
        """One chunk: the policy, the simulator's call, and what that spent in its environments."""
        self.inference += inference
        self.simulation += min(simulation, call)
        self.transfer += max(0.0, call - simulation)

    def parts(self) -> dict[str, float]:
        """By name; together they are the wall time."""
        found = {name: value for name, value in vars(self).items() if name != "wall"}
        return {**found, "other": max(0.0, self.wall - sum(found.values()))}

    def shares(self) -> dict[str, float]:
        """Of the wall time, by name."""
        parts = self.parts()
        total = sum(parts.values())
        return {name: value / total if total else 0.0 for name, value in parts.items()}


class Watcher(abc.ABC):
    """Sees every environment step of B episodes. While somebody watches, steps are taken one by one instead of a chunk
    at a time: the same physics, a message each."""

    @abc.abstractmethod
    def began(self, simulator: Simulator) -> None:
        """The episodes are at their initial states."""

    @abc.abstractmethod
    def stepped(self, simulator: Simulator, seen: Observations, actions: Tensor, chunk: Chunk) -> None:
        """Where they observed `seen` (B) they were given actions (B, A), and `chunk` (B, 1) came of it."""


@dataclass
class Played:
    """B episodes of at most E chunks, as lists of what happened chunk by chunk; of all B rows, with zeros where an
    episode was over."""

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)  # (B, ...) each
    chains: list[Tensor] = field(default_factory=list)  # (B, K+1, H, A)
    logprobs: list[Tensor] = field(default_factory=list)  # (B, D)
    values: list[Tensor] = field(default_factory=list)  # (B,)
    began: list[Tensor] = field(default_factory=list)  # (B,) bool: the chunk was begun
    chunks: list[Chunk] = field(default_factory=list)
    final: Observations | None = None  # B, where each episode ended
    seconds: Seconds = field(default_factory=Seconds)

    def add(self, running: Tensor, acted: Acted, chunk: Chunk) -> None:
        """One chunk; `acted` is of the rows that are `running` (B,)."""

        def spread(found: Tensor) -> Tensor:
            whole = found.new_zeros(len(running), *found.shape[1:])
            whole[running] = found
            return whole

        for name, tensor in acted.inputs.items():
            self.inputs.setdefault(name, []).append(spread(tensor))
        self.chains.append(spread(acted.chain.states))
        self.logprobs.append(spread(acted.logprobs))
        self.values.append(spread(acted.values))
        self.began.append(running)
        self.chunks.append(chunk)
        self.final = chunk.final if self.final is None else chunk.final.where(running, self.final)

    def of(self, name: str) -> Tensor:
        """A field of the chunks (B, E, ...)."""
        return torch.stack([vars(chunk)[name] for chunk in self.chunks], 1)


def chunks_of(simulator: Simulator, execute: int) -> int:
    """E: chunks of the longest episode."""
    return -(-max(task.max_steps for task in simulator.tasks) // execute)


def play(policy: RobotPolicy, simulator: Simulator, begun: Begun, watcher: Watcher | None = None) -> Played:
    """One episode in each of the B environments."""
    count, played, began = len(simulator), Played(), time.perf_counter()
    seen = simulator.reset(torch.arange(count), torch.tensor(begun.seeds))
    played.seconds.reset = time.perf_counter() - began
    if watcher is not None:
        watcher.began(simulator)
    running = torch.ones(count, dtype=torch.bool)
    for number in range(begun.noise.shape[1]):
        if not bool(running.any()):
            break
        asked, at = time.perf_counter(), running.to(policy.device)
        acted = policy.act(seen.rows(running, policy.device), begun.noise[at, number], begun.stochastic[at, number])
        actions = padded(acted.actions, running, simulator)
        called = time.perf_counter()
        chunk = simulator.chunk_step(actions) if watcher is None else one_by_one(simulator, seen, actions, watcher)
        played.seconds.add(called - asked, time.perf_counter() - called, chunk.simulation_s)
        played.add(running, acted, chunk)
        running = running & ~(chunk.terminated | chunk.truncated | chunk.broken)
        seen = chunk.observations
    played.seconds.wall = time.perf_counter() - began
    return played


def one_by_one(simulator: Simulator, seen: Observations, actions: Tensor, watcher: Watcher) -> Chunk:
    """What `chunk_step` makes of actions (B, h, A) where `seen` (B) was observed, with every step watched."""
    taken = []
    for action in actions.unbind(1):
        chunk = simulator.chunk_step(action[:, None])
        watcher.stepped(simulator, seen, action, chunk)
        taken.append(chunk)
        seen = chunk.observations
    broken = torch.stack([chunk.broken for chunk in taken]).any(0)
    kept = ~broken[:, None]

    def side_by_side(name: str) -> Tensor:
        return torch.cat([vars(chunk)[name] for chunk in taken], 1) * kept

    return replace(
        taken[-1], rewards=side_by_side("rewards"), success=side_by_side("success"), alive=side_by_side("alive"),
        terminated=torch.stack([chunk.terminated for chunk in taken]).any(0),
        truncated=torch.stack([chunk.truncated for chunk in taken]).any(0), broken=broken,
        simulation_s=sum(chunk.simulation_s for chunk in taken),
    )  # fmt: skip


def padded(actions: Tensor, rows: Tensor, simulator: Simulator) -> Tensor:
    """Actions (B, h, a) of all rows, zeros where a row has none.

    Raises:
        ValueError: the policy and the controller have not the same number of actions.
    """
    check_actions(actions.shape[2], simulator)
    whole = torch.zeros(len(rows), *actions.shape[1:])
    whole[rows] = actions.float().cpu()
    return whole
