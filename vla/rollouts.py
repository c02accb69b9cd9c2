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
    simulation as its slowest process measures it; transfer, which is what a call takes beyond that; the policy, and
    what is simulated meanwhile."""

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

    def filled(self, count: int) -> Played:
        """The same with `count` chunks, of which the last ones are nothing."""
        more = count - len(self.chunks)

        def longer(found: list[Tensor]) -> list[Tensor]:
            return [*found, *[torch.zeros_like(found[-1])] * more]

        return Played(
            {name: longer(found) for name, found in self.inputs.items()}, longer(self.chains), longer(self.logprobs),
            longer(self.values), longer(self.began), [*self.chunks, *[self.chunks[-1].nothing()] * more], self.final,
        )  # fmt: skip

    def of(self, name: str) -> Tensor:
        """A field of the chunks (B, E, ...)."""
        return torch.stack([vars(chunk)[name] for chunk in self.chunks], 1)


def chunks_of(simulator: Simulator, execute: int) -> int:
    """E: chunks of the longest episode."""
    return -(-max(task.max_steps for task in simulator.tasks) // execute)


@dataclass
class Stage:
    """Some of the environments, which step together, and how far their episodes are."""

    rows: Tensor  # (n,) long
    running: Tensor  # (n,) bool
    seen: Observations  # n
    played: Played = field(default_factory=Played)
    acted: Acted | None = None  # of those that are running, while they step

    def goes_on(self, most: int) -> bool:
        """Whether an episode runs and has had fewer than `most` chunks."""
        return bool(self.running.any()) and len(self.played.chunks) < most

    def take(self, chunk: Chunk) -> None:
        """What became of what was done."""
        assert self.acted is not None
        self.played.add(self.running, self.acted, chunk)
        self.running = self.running & ~(chunk.terminated | chunk.truncated | chunk.broken)
        self.seen, self.acted = chunk.observations, None


def play(policy: RobotPolicy, simulator: Simulator, begun: Begun, watcher: Watcher | None = None) -> Played:
    """One episode in each of the B environments. Where these step in several parts, the policy acts for the parts that
    came to rest while it was busy, all at once; noise and seeds are those of the environment, so that this changes
    nothing of an episode but what a batch of another size rounds otherwise."""
    count, began, seconds = len(simulator), time.perf_counter(), Seconds()
    seen = simulator.reset(torch.arange(count), torch.tensor(begun.seeds))
    seconds.reset = time.perf_counter() - began
    if watcher is not None:
        watcher.began(simulator)
    parts = simulator.parts if watcher is None else (torch.arange(count),)
    stages = [Stage(rows, torch.ones(len(rows), dtype=torch.bool), seen.of(rows)) for rows in parts]
    resting, stepping = set(range(len(stages))), 0
    while True:
        asked, most = time.perf_counter(), begun.noise.shape[1]
        ready = [number for number in sorted(resting) if stages[number].goes_on(most)]
        if not ready and not stepping:
            break
        given = act(policy, simulator, [stages[number] for number in ready], begun) if ready else []
        called, arrived = time.perf_counter(), list[tuple[int, Chunk]]()
        for number, actions in zip(ready, given, strict=True):
            if watcher is None:
                simulator.begin_chunk(number, actions)
            else:
                arrived.append((number, one_by_one(simulator, stages[number].seen, actions, watcher)))
        arrived = arrived or simulator.arrived()
        for number, chunk in arrived:
            stages[number].take(chunk)
        stepping += len(ready) - len(arrived)
        resting = {number for number, _ in arrived}
        slowest = sum(chunk.simulation_s for _, chunk in arrived)
        seconds.add(called - asked, time.perf_counter() - called, slowest)
    seconds.wall = time.perf_counter() - began
    return replace(joined(stages), seconds=seconds)


def act(policy: RobotPolicy, simulator: Simulator, stages: Sequence[Stage], begun: Begun) -> list[Tensor]:
    """What the policy does in all stages at once: actions (n, h, a) of each."""
    rows = torch.cat([stage.rows[stage.running] for stage in stages]).to(policy.device)
    counts = [int(stage.running.sum()) for stage in stages]
    chunks = torch.tensor([len(stage.played.chunks) for stage in stages]).repeat_interleave(torch.tensor(counts))
    at = (rows, chunks.to(policy.device))
    seen = Observations.joined([stage.seen.rows(stage.running, policy.device) for stage in stages])
    acted, actions, first = policy.act(seen, begun.noise[at], begun.stochastic[at]), [], 0
    for stage, size in zip(stages, counts, strict=True):
        stage.acted = acted.rows(slice(first, first + size))
        actions.append(padded(stage.acted.actions, stage.running, simulator))
        first += size
    return actions


def joined(stages: Sequence[Stage]) -> Played:
    """The episodes of all stages in order of rows. Where others had more chunks, there is nothing in them."""
    if len(stages) == 1:
        return stages[0].played
    order = torch.cat([stage.rows for stage in stages]).argsort()
    longest = max(len(stage.played.chunks) for stage in stages)
    parts = [stage.played.filled(longest) for stage in stages]

    def together(found: Sequence[list[Tensor]]) -> list[Tensor]:
        return [torch.cat(tensors)[order.to(tensors[0].device)] for tensors in zip(*found, strict=True)]

    finals = [part.final for part in parts if part.final is not None]
    return Played(
        {name: together([part.inputs[name] for part in parts]) for name in parts[0].inputs},
        together([part.chains for part in parts]), together([part.logprobs for part in parts]),
        together([part.values for part in parts]), together([part.began for part in parts]),
        [Chunk.joined(chunks).of(order) for chunks in zip(*(part.chunks for part in parts), strict=True)],
        Observations.joined(finals).of(order),
    )  # fmt: skip


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
