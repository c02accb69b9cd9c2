"""Episodes of a policy that explores, recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vla.mapping import check_actions
from vla.policy import Acted, RobotPolicy
from vla.sim.base import Chunk, Observations, Simulator


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


def play(policy: RobotPolicy, simulator: Simulator, seeds: Sequence[int], noise: Tensor, stochastic: Tensor) -> Played:
    """One episode in each of the B environments, from the initial states of `seeds` and noise (B, E, K+1, H, A), with
    the denoise steps `stochastic` (B, E, K)."""
    count, played = len(simulator), Played()
    seen = simulator.reset(torch.arange(count), torch.tensor(seeds))
    running = torch.ones(count, dtype=torch.bool)
    for number in range(noise.shape[1]):
        if not bool(running.any()):
            break
        at = running.to(policy.device)
        acted = policy.act(seen.rows(running, policy.device), noise[at, number], stochastic[at, number])
        chunk = simulator.chunk_step(padded(acted.actions, running, simulator))
        played.add(running, acted, chunk)
        running = running & ~(chunk.terminated | chunk.truncated | chunk.broken)
        seen = chunk.observations
    return played


def padded(actions: Tensor, rows: Tensor, simulator: Simulator) -> Tensor:
    """Actions (B, h, a) of all rows, zeros where a row has none.

    Raises:
        ValueError: the policy and the controller have not the same number of actions.
    """
    check_actions(actions.shape[2], simulator)
    whole = torch.zeros(len(rows), *actions.shape[1:])
    whole[rows] = actions.float().cpu()
    return whole
