"""`mmrl rollout` for robots: simulation without training, how it goes and where its time goes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmrl.metrics import mean_of, rollout_metrics
from mmrl.parts import Parts
from mmrl.runtime import Runtime, acting
from vla import recording
from vla.collector import EpisodeCollector
from vla.evaluation import Outcomes
from vla.policy import RobotPolicy
from vla.recording import RecordConfig, Trace
from vla.rollouts import Begun, Seconds, play
from vla.sim.base import Simulator, TaskConfig
from vla.videos import VideosConfig, film

if TYPE_CHECKING:
    from vla.experiments import Experiment

DATASET = "dataset"
"""Folder of it in the output."""


def refuse_existing(record: RecordConfig, output: Path) -> None:
    """Raises:
    ValueError: a data set is to be kept where there is one.
    """
    if record.dataset and (output / DATASET).exists():
        raise ValueError(f"{output / DATASET} is there already: name another folder with --output, or remove it")


def launch(experiment: Experiment, runtime: Runtime, parts: Parts, output: Path) -> dict[str, object]:
    """Play one rollout as training would, and write to `output` what the config asks for: rollout.json, videos and a
    LeRobotDataset."""
    collector, policy, record = parts.collector, parts.policy, experiment.record
    assert isinstance(collector, EpisodeCollector)
    assert isinstance(policy, RobotPolicy)
    simulator = collector.simulator
    folder, trace = output / DATASET, Trace() if record.dataset else None
    with acting(policy):
        begun = collector.begin(policy, runtime.generator("collect"))
        if not record.explore:
            begun = Begun(begun.seeds, begun.noise, torch.zeros_like(begun.stochastic))
        played = play(policy, simulator, begun, trace)
        found = Outcomes.of(played, begun, simulator.task_index)
        rewards = rollout_metrics(collector.decisions(policy, played, begun.stochastic)) if record.explore else {}
        tasks = experiment.tasks
        videos = [] if experiment.videos is None else filmed(experiment, policy, tasks, begun, found, output)
    if trace is not None:
        episodes = list(trace.episodes(begun, simulator.instructions))
        recording.write(folder, episodes, simulator.tasks[0].control_hz)
    figures: dict[str, object] = {
        "episodes": len(simulator), "explore": record.explore, **how_it_went(found, simulator),
        **speed(int(played.of("alive").sum()), played.seconds),
        "actions_a_message": policy.adapter.execute if trace is None else 1, **rewards,
        **({} if trace is None else {"dataset": str(folder), "dataset_episodes": len(episodes)}), "videos": videos,
    }  # fmt: skip
    (output / "rollout.json").write_text(json.dumps(figures, indent=1))
    return figures


def how_it_went(found: Outcomes, simulator: Simulator) -> dict[str, object]:
    """Success rates with their intervals, in all and of each task."""
    rates = found.success_rates([task.label for task in simulator.tasks], len(simulator.tasks))
    estimates = {**rates, "steps": mean_of(found.steps.float(), ~found.broken)}
    return {**{name: asdict(estimate) for name, estimate in estimates.items()}, "lost": int(found.broken.sum())}


def speed(taken: int, seconds: Seconds) -> dict[str, object]:
    """Environment steps a second, and the share of the wall time of each part; `env_steps_per_s_of`
    a part is what it would be if there were nothing else."""
    shares = seconds.shares()
    return {
        "env_steps": taken, "seconds": seconds.wall, "env_steps_per_s": taken / seconds.wall,
        "shares": {name: round(share, 4) for name, share in shares.items()},
        "env_steps_per_s_of": {
            name: round(taken / value, 1) for name, value in seconds.parts().items() if value > 0 and name != "other"
        },
    }  # fmt: skip


def filmed(
    experiment: Experiment,
    policy: RobotPolicy,
    tasks: Sequence[TaskConfig],
    begun: Begun,
    found: Outcomes,
    output: Path,
) -> list[dict[str, object]]:
    """Videos of episodes of the rollout, played once more; what each shows."""
    config = experiment.videos
    assert config is not None
    rows = chosen(found, len(tasks), config)
    if not rows:
        return []
    names = [f"videos/{int(found.task[row])}_{begun.seeds[row]}_{row}.mp4" for row in rows]
    each, again = [tasks[int(found.task[row])] for row in rows], begun.rows(rows)
    played = film(policy, each, again, [output / name for name in names], config, experiment.simulation)
    if played is None:
        return []
    seen = Outcomes.of(played, again, found.task[rows])
    return [
        {"file": name, "task": task.label, "seed": seed, "outcome": seen.told(number)}
        for number, (name, task, seed) in enumerate(zip(names, each, again.seeds, strict=True))
    ]


def chosen(found: Outcomes, tasks: int, config: VideosConfig) -> list[int]:
    """Rows to film: the first of each task, and failures after them."""
    rows = list[int]()
    for task in range(tasks):
        mine = (found.task == task).nonzero()[:, 0].tolist()
        failed = [row for row in mine[config.episodes :] if not bool(found.once[row])]
        rows += mine[: config.episodes] + failed[: config.failures]
    return rows
