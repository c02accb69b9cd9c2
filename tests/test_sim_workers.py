"""Worker processes: the tasks by name, a user's own task, dying workers, pictures, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import tests.own_tasks  # noqa: F401  registers, as `imports:` does
from vla.sim import rendering
from vla.sim.base import SimulationConfig, SimulationError, TaskConfig
from vla.sim.process import Worker
from vla.sim.start import start
from vla.sim.tasks import known, missing_assets, module_of
from vla.sim.worker import Job, Rows, prepare

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("PushCube-v1", "PickCube-v1", "PullCube-v1", "StackCube-v1", "LiftPegUpright-v1", "PokeCube-v1",
         "PlaceSphere-v1", "PegInsertionSide-v1")  # fmt: skip


def gone(process: int, within_s: float = 10.0) -> bool:
    """Whether a process ends."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_tasks_are_known_by_name() -> None:
    assert {*TASKS, "TouchGround-v1"} <= set(known())
    assert missing_assets("PickSingleYCB-v1") == ["ycb"]
    with pytest.raises(ValueError, match=r"no task 'PushCub-v1': did you mean PushCube-v1"):
        module_of(TaskConfig("PushCub-v1"))
    with pytest.raises(ValueError, match=r"\(ycb, from http.*download_asset PickSingleYCB-v1`"):
        module_of(TaskConfig("PickSingleYCB-v1"))
    assert module_of(TaskConfig("TouchGround-v1")) == "tests.own_tasks"
    assert TaskConfig("LiftPegUpright-v1").sentence() == "lift peg upright"
    with pytest.raises(ValueError, match="max_steps of task X-v1 is 0"):
        TaskConfig("X-v1", max_steps=0)


def test_eight_tasks_and_one_of_ones_own_in_two_processes() -> None:
    """Mixed tasks and variants, without Vulkan: each row does what its task does alone in one process."""
    tasks = [TaskConfig(name, control="pd_joint_delta_pos") for name in TASKS]
    tasks.append(
        TaskConfig("TouchGround-v1", "lower your hand", control="pd_joint_delta_pos", options={"height": 0.05})
    )
    moves = torch.rand(9, 3, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seeds = torch.arange(9) + 5
    with start(tasks, SimulationConfig(copies=1, workers=2)) as simulator:
        processes = [worker.process.pid for worker in simulator._workers]
        assert [task.id for task in simulator.tasks] == [task.id for task in tasks]
        fast = {"PushCube-v1", "PullCube-v1", "PickCube-v1", "PlaceSphere-v1"}
        assert {task.id for task in simulator.tasks if task.fast} == fast
        assert simulator.tasks[-1].instruction == "lower your hand"
        begun = simulator.reset(torch.arange(9), seeds)
        chunk = simulator.chunk_step(moves)
        again = simulator.reset(torch.arange(9), seeds)
        with pytest.raises(ValueError, match=r"take \(9, H, 8\)"):
            simulator.chunk_step(moves[:, :, :4])
        with pytest.raises(ValueError, match="actions of environment 2 are not finite"):
            simulator.chunk_step(moves.index_fill(0, torch.tensor(2), float("nan")))
        with pytest.raises(ValueError, match="simulation.video_size is null"):
            simulator.render(torch.tensor([0]))
    assert torch.equal(begun.state, again.state)
    assert chunk.alive.all()
    assert torch.isfinite(chunk.observations.state).all()
    config = SimulationConfig(step="official")
    prepare(Job(config, (), ()))
    for row, task in enumerate(tasks[1:5], start=1):
        alone = Rows(Job(config, [task], ()))
        size = alone.specs[0].state_size
        assert np.array_equal(alone.reset([0], [int(seeds[row])]).state[0], begun.state[row, :size].numpy())
        acted = alone.act(moves[row : row + 1].numpy(), None)
        assert np.allclose(acted.views.state[0], chunk.observations.state[row, :size].numpy(), atol=5e-5), task.id
        assert np.allclose(acted.rewards, chunk.rewards[row].numpy())
    assert all(gone(process) for process in processes)


def test_a_worker_that_dies_or_hangs_is_started_again_and_its_episodes_are_lost() -> None:
    still = torch.zeros(4, 2, 4)
    every = torch.arange(4)
    with start(
        [TaskConfig("PushCube-v1")], SimulationConfig(copies=4, workers=2, restarts=2, patience_s=10)
    ) as simulator:
        begun = simulator.reset(every, every)
        simulator._workers[1].process.kill()
        chunk = simulator.chunk_step(still, then=every)
        assert simulator.restarted == 1
        assert chunk.broken.tolist() == [False, True, False, True]
        assert chunk.alive.any(-1).tolist() == [True, False, True, False]
        assert torch.equal(chunk.observations.state[1::2], begun.state[1::2])
        after = simulator.chunk_step(still)
        assert after.alive.all()
        assert not after.broken.any()
        os.kill(simulator._workers[0].process.pid, signal.SIGSTOP)  # it hangs
        state = simulator.reset(torch.tensor([0]), torch.tensor([0])).state
        assert torch.equal(state[0], begun.state[0])
        last = simulator.chunk_step(still)
        assert last.broken.tolist() == [False, False, True, False]
        assert last.alive.all(-1).tolist() == [True, True, False, True]
        processes = [worker.process.pid for worker in simulator._workers]
        simulator._workers[0].process.kill()
        with pytest.raises(SimulationError, match=r"exit code -9, after 2 restarts: is there enough memory"):
            simulator.chunk_step(still)
        assert all(gone(process) for process in processes)


def test_episodes_in_new_scenes_are_played_again_by_the_next_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows stand at different steps when their worker dies, since one was begun later; the next one is killed while it
    starts."""
    chance = torch.Generator().manual_seed(0)
    moves = [torch.rand(2, 3, 4, generator=chance) * 2 - 1 for _ in range(3)]
    every, late = torch.arange(2), torch.tensor([1])

    def played(dies: bool) -> list[torch.Tensor]:
        simulator.reset(every, every + 5)
        simulator.chunk_step(moves[0])
        begun = simulator.reset(late, late + 50)
        if dies:
            simulator._workers[0].process.kill()
        second = simulator.chunk_step(moves[1])
        third = simulator.chunk_step(moves[2], then=every + 9)
        assert not (second.broken | third.broken).any()
        return [begun.state, second.rewards, second.observations.state, third.final.state, third.rewards, third.alive]

    config = SimulationConfig(copies=2, workers=1, restarts=2, rebuild=True)
    with start([TaskConfig("PushCube-v1", reward="dense")], config) as simulator:
        wanted = played(dies=False)
        begin, killed = Worker.start, []

        def once(worker: Worker) -> None:
            begin(worker)
            if not killed:
                killed.append(worker.process.pid)
                worker.process.kill()

        monkeypatch.setattr(Worker, "start", once)
        found = played(dies=True)
        assert simulator.restarted == 2
    assert [torch.equal(one, other) for one, other in zip(found, wanted, strict=True)] == [True] * len(wanted)
    assert wanted[1][0].ne(wanted[1][1]).all()  # dense rewards of different episodes


def test_a_task_that_ends_its_process_or_cannot_be_built_says_so() -> None:
    with start([TaskConfig("Crash-v1")], SimulationConfig(copies=1, workers=1, restarts=0)) as simulator:
        simulator.reset(torch.tensor([0]), torch.tensor([0]))
        with pytest.raises(SimulationError, match="ended with exit code 139, after 0 restarts"):
            simulator.chunk_step(torch.zeros(1, 4, 4))
    with pytest.raises(SimulationError, match="'pd_ee' not in supported modes|pd_ee not in supported modes"):
        start([TaskConfig("PushCube-v1", control="pd_ee")], SimulationConfig(copies=1, workers=1))


def test_workers_end_when_the_one_who_started_them_is_killed() -> None:
    code = (
        "import os, torch\nfrom vla.sim.base import SimulationConfig, TaskConfig\nfrom vla.sim.start import start\n"
        "if __name__ == '__main__':\n"
        "    simulator = start([TaskConfig('PushCube-v1')], SimulationConfig(copies=1, workers=1))\n"
        "    print(simulator._workers[0].process.pid, flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert gone(int(run.stdout.split()[-1]))


def test_pictures_are_observed_and_drawn() -> None:
    try:
        rendering.settings()
    except SimulationError as error:
        pytest.skip(str(error))
    config = SimulationConfig(copies=2, workers=1, observe="images", image_size=32, video_size=64)
    with start([TaskConfig("PushCube-v1")], config) as simulator:
        assert dict(simulator.tasks[0].cameras) == {"base_camera": (32, 32)}
        begun = simulator.reset(torch.arange(2), torch.arange(2))
        chunk = simulator.chunk_step(torch.ones(2, 2, 4))
        drawn = simulator.render(torch.tensor([1]))
    seen, later = begun.images["base_camera"], chunk.observations.images["base_camera"]
    assert seen.shape == (2, 3, 32, 32)
    assert seen.dtype == drawn.dtype == torch.uint8
    assert seen.float().std() > 10
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen, later)
    assert begun.state.shape == (2, 25)  # nothing of the cube
    assert drawn.shape == (1, 3, 64, 64)
    assert drawn.float().std() > 10
    config = SimulationConfig(step="official")  # what is seen changes nothing of what happens
    prepare(Job(config, (), ()))
    alone = Rows(Job(config, [TaskConfig("PushCube-v1")] * 2, ()))
    alone.reset([0, 1], [0, 1])
    unseen = alone.act(np.ones((2, 2, 4), np.float32), None).views.state
    assert np.allclose(unseen[:, :18], chunk.observations.state[:, :18], atol=1e-6)
