"""Environment steps per CPU second: the fast path beside ManiSkill's own step, and the worker processes' overhead.

Whole episodes of 50 steps with their resets, random actions, states and the normalised dense reward, one thread. A
repeat runs the official environment (`env.reset`, `env.step`), the fast path, and the physics alone (`px.step` on the
same episodes' drive targets: what no path can go below), in turn, on the same seeds. CPU time is of the process.

    python -m benchmarks.simulation
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import spread, write
from vla.sim.base import SimulationConfig, TaskConfig
from vla.sim.start import start
from vla.sim.worker import Job, prepare

TASKS = ("PushCube-v1", "PickCube-v1")
CONTROLS = ("pd_joint_delta_pos", "pd_joint_pos", "pd_ee_delta_pos", "pd_ee_delta_pose")
EPISODES, STEPS, REPEATS = 6, 50, 5
COPIES, HORIZON, CHUNKS = 32, 4, 60


def episodes(env, seeds: range, spec) -> tuple[int, list]:
    """Steps taken, and the actions."""
    taken = []
    for seed in seeds:
        draw, seen = np.random.default_rng(seed), env.reset(seed)
        for _ in range(STEPS):
            if spec.action_high[0] > 1.001:  # absolute joint positions
                action = np.append(seen.state[:7] + draw.uniform(-0.1, 0.1, 7), draw.uniform(-1, 1))
            else:
                action = draw.uniform(-1, 1, spec.action_size)
            taken.append(action.astype(np.float32))
            seen = env.step(taken[-1]).seen
    return len(taken), taken


def cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def compare(task: str, control: str) -> dict[str, object]:
    from vla.sim.fast import make

    config = TaskConfig(task, control=control, reward="normalized_dense")
    fast, official = make(config, SimulationConfig()), make(config, SimulationConfig(step="official"))
    env, physics = official.env, fast._env.scene.px

    def plain(actions: list[np.ndarray], seeds: range) -> None:
        """ManiSkill's own calls and nothing else."""
        tensors = torch.from_numpy(np.stack(actions))
        for number, seed in enumerate(seeds):
            env.reset(seed=seed)
            for action in tensors[number * STEPS : (number + 1) * STEPS]:
                env.step(action)

    def alone(seeds: range) -> None:
        """The fast path's own episodes, of which only the physics is timed."""
        spent[0] = 0.0
        step = physics.step

        class Timed:
            def step(self) -> None:
                began = time.process_time()
                step()
                spent[0] += time.process_time() - began

        fast._physics = Timed()
        episodes(fast, seeds, fast.spec)
        fast._physics = physics

    spent = [0.0]
    rates: dict[str, list[float]] = {"official": [], "fast": [], "physics": []}
    for repeat in range(-1, REPEATS):  # the first warms up
        seeds = range((repeat + 1) * EPISODES, (repeat + 2) * EPISODES)
        count, actions = episodes(fast, seeds, fast.spec)
        slow = count / cpu_s(lambda: plain(actions, seeds))  # noqa: B023  called at once
        quick = count / cpu_s(lambda: episodes(fast, seeds, fast.spec))  # noqa: B023
        alone(seeds)
        if repeat >= 0:
            for name, rate in (("official", slow), ("fast", quick), ("physics", count / spent[0])):
                rates[name].append(rate)
    ratios = [quick / slow for quick, slow in zip(rates["fast"], rates["official"], strict=True)]
    bounds = [most / slow for most, slow in zip(rates["physics"], rates["official"], strict=True)]
    told = f"{statistics.median(ratios):.2f} times official, physics alone {statistics.median(bounds):.2f}"
    print(f"{task} {control}: {told}")
    figures = {f"{name}_steps_per_cpu_s": spread(values) for name, values in rates.items()}
    return {**figures, "ratio": spread(ratios), "bound_of_physics": spread(bounds)}


def children_cpu_s(processes: list[int]) -> float:
    """CPU seconds that processes have used."""
    ticks = [Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[11:13] for p in processes]
    return sum(int(t) for pair in ticks for t in pair) / 100


def workers(task: str, control: str) -> dict[str, object]:
    """Two processes of 16 environments, chunks of four steps, episodes begun again at once."""
    generator = torch.Generator().manual_seed(0)
    config = SimulationConfig(copies=COPIES, workers=2, terminate=False)
    with start([TaskConfig(task, control=control, reward="normalized_dense")], config) as simulator:
        processes, every = [worker.process.pid for worker in simulator._workers], torch.arange(COPIES)
        simulator.reset(every, every)
        steps, wall, inside = 0, time.perf_counter(), 0.0
        mine, theirs = time.process_time(), children_cpu_s(processes)
        for chunk in range(CHUNKS):
            actions = torch.rand(COPIES, HORIZON, simulator.action_size, generator=generator) * 2 - 1
            found = simulator.chunk_step(actions, every + COPIES * chunk)
            steps, inside = steps + int(found.alive.sum()), inside + found.simulation_s
        wall = time.perf_counter() - wall
        mine, theirs = time.process_time() - mine, children_cpu_s(processes) - theirs
    return {
        "environments": COPIES, "processes": 2, "horizon": HORIZON, "steps": steps,
        "steps_per_s": round(steps / wall, 1), "steps_per_cpu_s": round(steps / (mine + theirs), 1),
        "transfer_share_of_wall": round(1 - inside / wall, 4), "own_share_of_cpu": round(mine / (mine + theirs), 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    processes = {f"{task} pd_ee_delta_pos": workers(task, "pd_ee_delta_pos") for task in TASKS}
    prepare(Job(SimulationConfig(), (), ()))
    paths = {f"{task} {control}": compare(task, control) for task in TASKS for control in CONTROLS}
    for name, figures in processes.items():
        official = paths[name]["official_steps_per_cpu_s"]["mean"]
        figures["ratio_to_official_per_cpu_s"] = round(figures["steps_per_cpu_s"] / official, 2)
    write(
        "simulation", {"episodes": EPISODES, "steps": STEPS, "repeats": REPEATS, "paths": paths, "workers": processes}
    )


if __name__ == "__main__":
    main()
