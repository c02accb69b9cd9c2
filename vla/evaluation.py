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
from typing import Literal

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
    """`episodes` of each task before and after a run, from the initial states of `first_seed` and on, and `between` of
    them in its course. `rebuild` is `simulation.rebuild` for the former. 200 are the fewest for a claim: then the
    interval of a share of 0.9 is about 8 points wide. `tasks` are not trained on: they are evaluated before and after
    only, each under its name, and do not count in `success_rate`. With `step: auto` they take the fast path too, where
    there is one: ten times as many episodes in the same time."""

    episodes: int = 200
    between: int = 100
    first_seed: int = 10_000
    rebuild: bool = True
    step: Literal["auto", "official"] = "official"
    tasks: tuple[TaskConfig, ...] = ()

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
    task: Tensor  # (n,) long, into the simulator's tasks
    once: Tensor  # (n,) bool: success at some step
    at_end: Tensor  # (n,) bool: success at the last step that was taken
    steps: Tensor  # (n,) up to the first success, or in all
    broken: Tensor  # (n,) bool: lost, and counted as failed

    def success_rates(self, labels: Sequence[str], trained: int) -> dict[str, Estimate]:
        """Of the first `trained` tasks together and, if there are several in all, of each under its label."""
        rates = {"success_rate": share(self.once[self.task < trained])}
        if len(labels) > 1:
            rates |= {f"success_rate/{label}": share(self.once[self.task == i]) for i, label in enumerate(labels)}
        return rates


def share(flags: Tensor) -> Estimate:
    """How many of flags (n,) are set."""
    return wilson(int(flags.sum()), len(flags))


class EpisodeEvaluator(Evaluator):
    """`training` is the simulator that the collector uses too; its tasks are `tasks`."""

    def __init__(
        self, tasks: Sequence[TaskConfig], simulation: SimulationConfig, config: HeldOutConfig, training: Simulator
    ) -> None:
        self.tasks, self.simulation, self.config, self.training = tasks, simulation, config, training

    def evaluate(self, policy: Policy, generator: torch.Generator) -> dict[str, Estimate]:
        assert isinstance(policy, RobotPolicy)
        tasks = [*self.tasks, *self.config.tasks]
        found = self._official(policy, tasks, self.config.seeds, generator)
        trained = found.task < len(self.tasks)
        return {
            **found.success_rates([task.label for task in tasks], len(self.tasks)),
            "success_at_end": share(found.at_end[trained]),
            "steps": mean_of(found.steps.float(), ~found.broken & trained),
            "broken": share(found.broken),
        }

    def between(self, policy: Policy, generator: torch.Generator) -> dict[str, Estimate]:
        assert isinstance(policy, RobotPolicy)
        found = outcomes(policy, self.training, self.config.seeds[: self.config.between], generator)
        return found.success_rates([task.label for task in self.tasks], len(self.tasks))

    def _official(
        self, policy: RobotPolicy, tasks: Sequence[TaskConfig], seeds: Sequence[int], generator: torch.Generator
    ) -> Outcomes:
        simulation = replace(
            self.simulation, copies=min(self.simulation.copies, len(seeds)), step=self.config.step, terminate=False,
            rebuild=self.config.rebuild,
        )  # fmt: skip
        with start(tasks, simulation) as simulator:
            return outcomes(policy, simulator, seeds, generator)

    def samples(self, policy: Policy, generator: torch.Generator, folder: Path, count: int) -> None:
        """The first `count` held-out episodes of each task, by the simulator of the training."""
        assert isinstance(policy, RobotPolicy)
        if count == 0:
            return
        found = outcomes(policy, self.training, self.config.seeds[:count], generator)
        folder.mkdir(parents=True, exist_ok=True)
        several = len(self.training.tasks) > 1
        rows = []
        for row, seed in enumerate(found.seeds):
            task, once = self.training.tasks[int(found.task[row])], bool(found.once[row])
            ended = "success" if once else "lost" if found.broken[row] else "failure"
            rows.append({
                "id": f"{task.label}, seed {seed}" if several else f"seed {seed}", "images": [],
                "prompt": task.instruction, "output": f"{ended} after {int(found.steps[row])} steps",
                "reward": float(once), "parts": {},
            })  # fmt: skip
        (folder / "samples.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))


def outcomes(policy: RobotPolicy, simulator: Simulator, seeds: Sequence[int], generator: torch.Generator) -> Outcomes:
    """An episode of each task from each of `seeds`, in order of seed within a task. An episode's noise is its own,
    whatever the others do."""
    adapter, tasks = policy.adapter, len(simulator.tasks)
    shape = (tasks, len(seeds), chunks_of(simulator, adapter.execute), *adapter.chunk)
    noise = torch.randn(shape, generator=generator, device=generator.device)
    copies = len(simulator) // tasks
    waves = [
        _wave(policy, simulator, seeds[first : first + copies], noise[:, first : first + copies])
        for first in range(0, len(seeds), copies)
    ]
    found = {name: torch.cat([wave[name] for wave in waves], 1).flatten() for name in waves[0]}
    return Outcomes([*seeds] * tasks, torch.arange(tasks).repeat_interleave(len(seeds)), **found)


def _wave(policy: RobotPolicy, simulator: Simulator, seeds: Sequence[int], noise: Tensor) -> dict[str, Tensor]:
    """As many episodes of each task as there are seeds, in its first environments: fields of `Outcomes`, each
    (tasks, seeds). Noise (tasks, seeds, E, H, A)."""
    tasks, every = noise.shape[0], len(simulator)
    running = (torch.arange(every // tasks) < len(seeds)).repeat(tasks)
    used = running.nonzero()[:, 0]
    seen = simulator.reset(used, torch.tensor(seeds).repeat(tasks))
    drawn = noise.new_zeros(every, *noise.shape[2:])
    drawn[used.to(noise.device)] = noise.flatten(0, 1)
    once, at_end, broken = (torch.zeros(every, dtype=torch.bool) for _ in range(3))
    steps = torch.zeros(every, dtype=torch.long)
    for number in range(noise.shape[2]):
        if not bool(running.any()):
            break
        actions = policy.best(seen.rows(running, policy.device), drawn[running.to(drawn.device), number])
        chunk = simulator.chunk_step(padded(actions, running, simulator))
        reached = (once[:, None] | (chunk.success.cumsum(1) > 0)) & chunk.alive
        steps += (chunk.alive & ~torch.cat([once[:, None], reached[:, :-1]], 1)).sum(1)
        last = (chunk.alive.sum(1) - 1).clamp(min=0)
        now = chunk.success.gather(1, last[:, None])[:, 0]
        at_end = torch.where(chunk.alive.any(1), now, at_end)
        once, broken = once | reached.any(1), broken | chunk.broken
        running = running & ~(chunk.terminated | chunk.truncated | chunk.broken)
        seen = chunk.observations
    ended = {"once": once & ~broken, "at_end": at_end & ~broken, "steps": steps, "broken": broken}
    return {name: found[used].view(tasks, -1) for name, found in ended.items()}
