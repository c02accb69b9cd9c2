"""Held-out episodes: the flow's ODE, fixed seeds, fixed noise.

Before and after a run the task's own step of ManiSkill is used, and episodes go on after a success, so that success
once and success at the last step are told apart; each begins in a new scene (`rebuild`), so that the figures depend on
the policy and the seeds alone, not on workers or order. Between, episodes are fewer, take the fast path where there is
one, and end at the success; figures carry the same name, since the paths agree (tests/test_sim_fast.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mmrl.metrics import mean_of, wilson
from mmrl.types import Estimate, Evaluator, Policy
from vla.collector import FIRST_TRAINING_SEED
from vla.policy import RobotPolicy
from vla.rollouts import chunks_of, padded
from vla.sim.base import SimulationConfig, Simulator, TaskConfig
from vla.sim.start import start


@dataclass(frozen=True)
class HeldOutConfig:
    """`episodes` before and after a run, from the initial states of `first_seed` and on, and `between` of them in its
    course. `rebuild` is `simulation.rebuild` for the former. 200 are the fewest for a claim: then the interval of a
    share of 0.9 is about 8 points wide."""

    episodes: int = 200
    between: int = 100
    first_seed: int = 10_000
    rebuild: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.between <= self.episodes:
            raise ValueError(
                f"held_out.between is {self.between}: give 1 to held_out.episodes, which is {self.episodes}"
            )
        if self.first_seed + self.episodes > FIRST_TRAINING_SEED:
            raise ValueError(
                f"held_out.first_seed is {self.first_seed}: seeds from {FIRST_TRAINING_SEED} are trained on"
            )

    @property
    def seeds(self) -> list[int]:
        """All of them."""
        return list(range(self.first_seed, self.first_seed + self.episodes))


@dataclass(frozen=True)
class Outcomes:
    """How n episodes went."""

    seeds: Sequence[int]
    once: Tensor  # (n,) bool: success at some step
    at_end: Tensor  # (n,) bool: success at the last step that was taken
    steps: Tensor  # (n,) up to the first success, or in all
    broken: Tensor  # (n,) bool: lost, and counted as failed


class EpisodeEvaluator(Evaluator):
    """`training` is the simulator that the collector uses too."""

    def __init__(
        self, task: TaskConfig, simulation: SimulationConfig, config: HeldOutConfig, training: Simulator
    ) -> None:
        self.task, self.simulation, self.config, self.training = task, simulation, config, training

    def evaluate(self, policy: Policy, generator: torch.Generator) -> dict[str, Estimate]:
        assert isinstance(policy, RobotPolicy)
        found = self._official(policy, self.config.seeds, generator)
        return {
            "success_rate": wilson(int(found.once.sum()), len(found.once)),
            "success_at_end": wilson(int(found.at_end.sum()), len(found.at_end)),
            "steps": mean_of(found.steps.float(), ~found.broken),
            "broken": wilson(int(found.broken.sum()), len(found.broken)),
        }

    def between(self, policy: Policy, generator: torch.Generator) -> dict[str, Estimate]:
        assert isinstance(policy, RobotPolicy)
        found = outcomes(policy, self.training, self.config.seeds[: self.config.between], generator)
        return {"success_rate": wilson(int(found.once.sum()), len(found.once))}

    def _official(self, policy: RobotPolicy, seeds: Sequence[int], generator: torch.Generator) -> Outcomes:
        simulation = replace(
            self.simulation, copies=min(self.simulation.copies, len(seeds)), step="official", terminate=False,
            rebuild=self.config.rebuild,
        )  # fmt: skip
        with start([self.task], simulation) as simulator:
            return outcomes(policy, simulator, seeds, generator)

    def samples(self, policy: Policy, generator: torch.Generator, folder: Path, count: int) -> None:
        """The first `count` held-out episodes, by the simulator of the training."""
        assert isinstance(policy, RobotPolicy)
        if count == 0:
            return
        found = outcomes(policy, self.training, self.config.seeds[:count], generator)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "id": f"seed {seed}", "images": [], "prompt": self.training.tasks[0].instruction,
                "output": f"{'success' if once else 'lost' if lost else 'failure'} after {steps} steps",
                "reward": float(once), "parts": {},
            }
            for seed, once, lost, steps in zip(
                found.seeds, found.once.tolist(), found.broken.tolist(), found.steps.tolist(), strict=True
            )
        ]  # fmt: skip
        (folder / "samples.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))


def outcomes(policy: RobotPolicy, simulator: Simulator, seeds: Sequence[int], generator: torch.Generator) -> Outcomes:
    """An episode from each of `seeds`. An episode's noise is its own, whatever the others do."""
    adapter, chunks = policy.adapter, chunks_of(simulator, policy.adapter.execute)
    noise = torch.randn(len(seeds), chunks, *adapter.chunk, generator=generator, device=generator.device)
    parts = [
        _wave(policy, simulator, seeds[first : first + len(simulator)], noise[first : first + len(simulator)])
        for first in range(0, len(seeds), len(simulator))
    ]
    return Outcomes(
        seeds, *(torch.cat([vars(part)[name] for part in parts]) for name in ("once", "at_end", "steps", "broken"))
    )


def _wave(policy: RobotPolicy, simulator: Simulator, seeds: Sequence[int], noise: Tensor) -> Outcomes:
    """As many episodes as there are seeds, in the first environments."""
    n, every = len(seeds), len(simulator)
    seen = simulator.reset(torch.arange(n), torch.tensor(seeds))
    running = torch.arange(every) < n
    once, at_end, broken = (torch.zeros(every, dtype=torch.bool) for _ in range(3))
    steps = torch.zeros(every, dtype=torch.long)
    for number in range(noise.shape[1]):
        if not bool(running.any()):
            break
        drawn = noise[running[:n].to(noise.device), number]
        actions = policy.best(seen.rows(running, policy.device), drawn)
        chunk = simulator.chunk_step(padded(actions, running, simulator))
        reached = (once[:, None] | (chunk.success.cumsum(1) > 0)) & chunk.alive
        steps += (chunk.alive & ~torch.cat([once[:, None], reached[:, :-1]], 1)).sum(1)
        last = (chunk.alive.sum(1) - 1).clamp(min=0)
        now = chunk.success.gather(1, last[:, None])[:, 0]
        at_end = torch.where(chunk.alive.any(1), now, at_end)
        once, broken = once | reached.any(1), broken | chunk.broken
        running = running & ~(chunk.terminated | chunk.truncated | chunk.broken)
        seen = chunk.observations
    kept = ~broken
    return Outcomes(seeds, (once & kept)[:n], (at_end & kept)[:n], steps[:n], broken[:n])
