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
from vla.rollouts import Begun, Played, chunks_of, padded
from vla.sim.base import SimulationConfig, Simulator, TaskConfig
from vla.sim.start import start
from vla.videos import VideosConfig, film


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
    noise: Tensor  # (n, E, H, A) that their chunks came from

    @staticmethod
    def of(played: Played, begun: Begun, task: Tensor) -> Outcomes:
        """How played episodes of the tasks (n,) went."""
        success, alive = (played.of(name).flatten(1) for name in ("success", "alive"))
        broken = played.of("broken").any(1)
        reached = success.cumsum(1) > 0
        before = torch.cat([torch.zeros_like(reached[:, :1]), reached[:, :-1]], 1)
        last = (alive * torch.arange(alive.shape[1])).argmax(1)
        at_end = success.gather(1, last[:, None])[:, 0]
        steps = (alive & ~before).sum(1)
        return Outcomes(
            begun.seeds, task, success.any(1) & ~broken, at_end & ~broken, steps, broken, begun.noise[:, :, 0]
        )

    def with_rows(self, rows: Sequence[int], other: Outcomes) -> Outcomes:
        """How they went, with the `rows` as in `other`."""
        changed = {}
        for name in ("once", "at_end", "steps", "broken"):
            changed[name] = vars(self)[name].clone()
            changed[name][list(rows)] = vars(other)[name]
        return replace(self, **changed)

    def told(self, row: int) -> str:
        """In words."""
        ended = "lost" if bool(self.broken[row]) else "success" if bool(self.once[row]) else "failure"
        later = ", no longer so at the end" if ended == "success" and not bool(self.at_end[row]) else ""
        return f"{ended} after {int(self.steps[row])} steps{later}"

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
        self,
        tasks: Sequence[TaskConfig],
        simulation: SimulationConfig,
        config: HeldOutConfig,
        training: Simulator,
        videos: VideosConfig | None = None,
    ) -> None:
        self.tasks, self.simulation, self.config, self.training = tasks, simulation, config, training
        self.videos = videos
        self._found: Outcomes | None = None
        self._official_found = False

    def evaluate(self, policy: Policy, generator: torch.Generator) -> dict[str, Estimate]:
        assert isinstance(policy, RobotPolicy)
        tasks = [*self.tasks, *self.config.tasks]
        with self.simulator(tasks, len(self.config.seeds)) as simulator:
            found = outcomes(policy, simulator, self.config.seeds, generator)
        self._found, self._official_found = found, True
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
        self._found, self._official_found = found, False
        return found.success_rates([task.label for task in self.tasks], len(self.tasks))

    def simulator(self, tasks: Sequence[TaskConfig], episodes: int) -> Simulator:
        """A new one for so many episodes of each task, to the last step of each, by the tasks' own step."""
        simulation = replace(
            self.simulation, copies=min(self.simulation.copies, episodes), step=self.config.step, terminate=False,
            rebuild=self.config.rebuild,
        )  # fmt: skip
        return start(tasks, simulation)

    def samples(self, policy: Policy, generator: torch.Generator, folder: Path, count: int) -> None:
        """How the first `count` episodes of each trained task went in the evaluation before this call. Before and after
        a run also their videos: of the first `videos.episodes`, of failures, and of those that were filmed before."""
        assert isinstance(policy, RobotPolicy)
        found, official = self._found, self._official_found
        self._found = None
        if found is None or len(found.seeds) < count * len(self.tasks):
            found, official = outcomes(policy, self.training, self.config.seeds[:count], generator), False
        each = [(found.task == task).nonzero()[:, 0].tolist() for task in range(len(self.tasks))]
        shown = [row for rows in each for row in rows[:count]]
        filmed, again = list[int](), filmed_at_first(folder)
        if self.videos is not None and official:
            for rows in each:
                before = [row for row in rows if (self.tasks[int(found.task[row])].label, found.seeds[row]) in again]
                failed = [row for row in (*before, *rows) if not bool(found.once[row])]
                picked = [row for row in dict.fromkeys(failed) if row not in rows[: self.videos.episodes]]
                filmed += {*rows[: self.videos.episodes], *picked[: self.videos.failures], *before}
        folder.mkdir(parents=True, exist_ok=True)
        videos, found = self._film(policy, found, sorted(filmed), folder)
        rows = [self._row(found, row, row in shown, videos.get(row)) for row in sorted({*shown, *filmed})]
        (folder / "samples.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))

    def _film(
        self, policy: RobotPolicy, found: Outcomes, rows: Sequence[int], folder: Path
    ) -> tuple[dict[int, str], Outcomes]:
        """File names of the videos of `rows`, and how the episodes went: as the videos show it, where there is one."""
        if self.videos is None or not rows:
            return {}, found
        names = {row: f"{int(found.task[row])}_{found.seeds[row]}.mp4" for row in rows}
        tasks = [self.tasks[int(found.task[row])] for row in rows]
        begun = without_exploring(policy, [found.seeds[row] for row in rows], found.noise[list(rows)])
        paths = [folder / name for name in names.values()]
        played = film(policy, tasks, begun, paths, self.videos, self.simulation)
        if played is None:
            return {}, found
        seen = Outcomes.of(played, begun, found.task[list(rows)])
        return names, found.with_rows(rows, seen)

    def _row(self, found: Outcomes, row: int, first: bool, video: str | None) -> dict[str, object]:
        """One sample; `first`: not picked."""
        task, seed, once = self.tasks[int(found.task[row])], found.seeds[row], bool(found.once[row])
        return {
            "id": f"{task.label}, seed {seed}" if len(self.tasks) > 1 else f"seed {seed}", "images": [],
            "prompt": task.sentence(), "output": found.told(row), "reward": float(once), "parts": {},
            "task": task.label, "seed": seed, "picked": not first, "videos": [] if video is None else [video],
        }  # fmt: skip


def filmed_at_first(folder: Path) -> set[tuple[str, int]]:
    """Label of the task and seed of each episode that was filmed at the first step of the run whose samples of one step
    go to `folder`."""
    first = min(folder.parent.glob("step_*/samples.json"), default=None)
    rows = [] if first is None else json.loads(first.read_text())
    return {(row["task"], row["seed"]) for row in rows if row.get("videos")}


def without_exploring(policy: RobotPolicy, seeds: Sequence[int], noise: Tensor) -> Begun:
    """Episodes by the ODE from noise (n, E, H, A)."""
    steps = policy.adapter.denoise_steps
    later = noise.new_zeros(*noise.shape[:2], steps, *noise.shape[2:])
    stochastic = torch.zeros(*noise.shape[:2], steps, dtype=torch.bool, device=noise.device)
    return Begun(seeds, torch.cat([noise[:, :, None], later], 2), stochastic)


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
    return Outcomes(
        [*seeds] * tasks, torch.arange(tasks).repeat_interleave(len(seeds)), **found, noise=noise.flatten(0, 1)
    )


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
