"""From a config to a running simulator."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from vla.sim import rendering
from vla.sim.base import SimulationConfig, Simulator, TaskConfig


def start(tasks: Sequence[TaskConfig], config: SimulationConfig) -> Simulator:
    """A simulator of `copies` environments of each task; says what it is. Close it after use.

    Raises:
        ValueError: no task, or one that is not known here.
        SimulationError: one that cannot be simulated as the config says.
    """
    if not tasks:
        raise ValueError("there is no task to simulate: name one or more")
    simulator = _simulator(tasks, config)
    fast = sum(task.fast for task in simulator.tasks)
    driver = f"pictures by {rendering.active()}" if config.draws else "states, which need no Vulkan"
    count = f"{len(tasks)} task{'s' * (len(tasks) > 1)}"
    told = f"{len(simulator)} environments of {count} ({fast or 'none'} by the fast path) on {config.backend}"
    tqdm.write(f"simulation: {told}; {driver}")  # a bar may stand on this line
    return simulator


def _simulator(tasks: Sequence[TaskConfig], config: SimulationConfig) -> Simulator:
    if config.backend == "physx_cpu":
        from vla.sim.workers import Workers

        return Workers(tasks, config)
    from vla.sim.vectorised import Vectorised

    return Vectorised(tasks, config)
