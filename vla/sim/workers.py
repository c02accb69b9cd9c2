"""Environments in worker processes, on the CPU: what starts them, talks to them and notices when one is gone."""

from __future__ import annotations

import multiprocessing
import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import wait

import numpy as np
import psutil
import torch
from torch import Tensor

from vla.sim import rendering
from vla.sim.base import Chunk, Observations, SimulationConfig, SimulationError, Simulator, TaskConfig, TaskSpec
from vla.sim.episodes import Episodes
from vla.sim.tasks import module_of
from vla.sim.worker import Act, Acted, Draw, Job, Reset, Views, serve

STARTS_S, BUILDS_S = 300.0, 5.0
"""Seconds that a worker may take to start, and to build one environment more (0.2 for a task with two objects)."""


class Worker:
    """One process and the rows it simulates."""

    def __init__(self, rows: Tensor, job: Job, settings: Mapping[str, str]) -> None:
        self.rows, self.job, self.settings = rows, job, settings
        self.start()

    def start(self) -> None:
        """Start a process; it answers with its specs when it is ready."""
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, self.job), daemon=True)
        with _environment({"OMP_NUM_THREADS": "1", **self.settings}):
            self.process.start()
        theirs.close()

    def send(self, message: object) -> None:
        """Send, or let the next `receive` notice that nobody is there."""
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return

    def receive(self, deadline: float) -> object:
        """The answer, or None if the process is dead or silent until `deadline`, in which case it is ended."""
        ready = wait([self.connection, self.process.sentinel], max(0.0, deadline - time.monotonic()))
        try:
            if self.connection in ready or self.connection.poll():
                return self.connection.recv()
        except (EOFError, ConnectionResetError):
            pass
        self.kill()
        return None

    def kill(self) -> None:
        """End the process now."""
        self.process.kill()
        self.process.join()
        self.connection.close()


class Workers(Simulator):
    """`copies` environments of each task, dealt out to processes of one core each. A process that dies is started
    again. The episodes it was in are played again up to where they were if `simulation.rebuild` makes them the same,
    and reported as broken otherwise, or if that process dies too."""

    def __init__(self, tasks: Sequence[TaskConfig], config: SimulationConfig) -> None:
        modules = sorted({module_of(task) for task in tasks})
        settings = rendering.settings() if config.draws else {}
        self.config, self.restarted = config, 0
        self.task_index = torch.arange(len(tasks)).repeat_interleave(config.copies)
        count = min(len(self.task_index), config.workers or len(os.sched_getaffinity(0)))
        self._workers: list[Worker] = []
        self._stop = weakref.finalize(self, _stop, self._workers)
        try:
            for number in range(count):
                rows = torch.arange(number, len(self.task_index), count)
                mine = [tasks[int(self.task_index[row])] for row in rows]
                self._workers.append(Worker(rows, Job(config, mine, modules), settings))
            self.tasks = self._specs(len(tasks), [self._ready(worker) for worker in self._workers])
        except BaseException:
            self.close()
            raise
        size = max(task.state_size for task in self.tasks)
        cameras = self.tasks[0].cameras
        self._blank = Observations(
            torch.zeros(len(self), size),
            {name: torch.zeros(len(self), 3, y, x, dtype=torch.uint8) for name, (y, x) in cameras.items()},
            self.instructions,
        )
        self._running = torch.zeros(len(self), dtype=torch.bool)
        self._lost = torch.zeros(len(self), dtype=torch.bool)
        self._episodes = Episodes() if config.rebuild else None

    def cpu_s(self) -> float:
        """Of the workers that are alive."""
        found = 0.0
        for worker in self._workers:
            with suppress(psutil.Error):
                spent = psutil.Process(worker.process.pid).cpu_times()
                found += spent.user + spent.system
        return found

    def memory_mb(self) -> float:
        """Of the workers that are alive; libraries that they share are counted in each."""
        found = 0.0
        for worker in self._workers:
            with suppress(psutil.Error):
                found += psutil.Process(worker.process.pid).memory_info().rss / 2**20
        return found

    def close(self) -> None:
        """It also happens when the simulator is collected, and when the interpreter ends."""
        self._stop()

    def reset(self, env_index: Tensor, seeds: Tensor) -> Observations:
        if env_index.shape != seeds.shape:
            raise ValueError(f"{len(env_index)} environments are to begin from {len(seeds)} seeds: give one each")
        chosen = dict(zip(env_index.tolist(), seeds.tolist(), strict=True))
        messages = [self._reset_of(worker, chosen) for worker in self._workers]
        answers = self._exchange(messages)
        for number, worker in enumerate(self._workers):
            if answers[number] is None:  # it was lost meanwhile, and a new one begins the same episodes
                answers[number] = self._again(worker, messages[number])
        self._running[env_index] = True
        self._lost[env_index] = False
        if self._episodes is not None:
            self._episodes.begin(env_index.tolist(), seeds.tolist())
        return self._joined([(worker.rows, _views(answer)) for worker, answer in self._pairs(answers)])

    def chunk_step(self, actions: Tensor, then: Tensor | None = None) -> Chunk:
        self.check_actions(actions)
        numbers, seeds = actions.float().cpu(), None if then is None else then.tolist()
        messages = [
            Act(numbers[worker.rows].numpy(), None if seeds is None else [seeds[row] for row in worker.rows.tolist()])
            for worker in self._workers
        ]
        answers = self._exchange(messages)
        chunk = self._chunk(answers, actions.shape[1])
        chunk = replace(chunk, broken=chunk.broken | self._lost)
        if self._episodes is not None:
            self._episodes.act((self._running & ~self._lost).nonzero()[:, 0].tolist(), numbers.numpy())
        self._lost.zero_()
        self._running &= ~(chunk.terminated | chunk.truncated | chunk.broken)
        if then is not None and self._episodes is not None:
            over = (~self._running).nonzero()[:, 0]
            self._episodes.begin(over.tolist(), then[over].tolist())
        if then is not None:
            self._running[:] = True
            gone = [worker.rows for worker, answer in zip(self._workers, answers, strict=True) if answer is None]
            if gone:
                begun = self.reset(torch.cat(gone), then[torch.cat(gone)])
                chunk = replace(chunk, observations=begun)
        return chunk

    def render(self, env_index: Tensor) -> Tensor:
        self.check_render()
        side, chosen, drawn = self.config.video_size, set(env_index.tolist()), {}
        for worker in self._workers:
            rows = [number for number, row in enumerate(worker.rows.tolist()) if row in chosen]
            worker.send(Draw(rows))
            pictures = self._settled(worker, Draw(rows))
            if pictures is None:  # lost: nothing to see
                pictures = np.zeros((len(rows), 3, side, side), np.uint8)
            drawn |= dict(zip(worker.rows[rows].tolist(), torch.as_tensor(pictures), strict=True))
        return torch.stack([drawn[row] for row in env_index.tolist()])

    def _chunk(self, answers: Sequence[object], horizon: int) -> Chunk:
        """All rows together; those of a worker that was lost are broken."""
        count = len(self)
        rewards = torch.zeros(count, horizon)
        success, alive = (torch.zeros(count, horizon, dtype=torch.bool) for _ in range(2))
        ended = {name: torch.zeros(count, dtype=torch.bool) for name in ("terminated", "truncated", "broken")}
        seconds, views, finals = 0.0, [], []
        for worker, answer in self._pairs(answers):
            assert isinstance(answer, Acted)
            rewards[worker.rows] = torch.from_numpy(answer.rewards)
            success[worker.rows], alive[worker.rows] = map(torch.from_numpy, (answer.success, answer.alive))
            for name, flags in ended.items():
                flags[worker.rows] = torch.from_numpy(vars(answer)[name])
            seconds = max(seconds, answer.seconds)
            views.append((worker.rows, answer.views))
            finals.append((worker.rows, answer.final))
        return Chunk(self._joined(views), self._joined(finals), rewards, success, alive, **ended, simulation_s=seconds)

    def _joined(self, parts: Sequence[tuple[Tensor, Views]]) -> Observations:
        """Views of all workers, in order of rows; zeros where there is none."""
        state, images = self._blank.state.clone(), {name: image.clone() for name, image in self._blank.images.items()}
        for rows, views in parts:
            state[rows, : views.state.shape[1]] = torch.from_numpy(views.state)
            for name, image in views.images.items():
                images[name][rows] = torch.from_numpy(image)
        return Observations(state, images, self._blank.instructions)

    def _pairs(self, answers: Sequence[object]) -> list[tuple[Worker, object]]:
        pairs = zip(self._workers, answers, strict=True)
        return [(worker, answer) for worker, answer in pairs if answer is not None]

    def _exchange(self, messages: Sequence[object]) -> list[object]:
        """One answer a worker; None for one that died, which has been started again."""
        pairs = list(zip(self._workers, messages, strict=True))
        for worker, message in pairs:
            worker.send(message)
        return [self._settled(worker, message) for worker, message in pairs]

    def _settled(self, worker: Worker, message: object) -> object:
        """The answer to `message`, which was sent. Should the worker die, its episodes are played again up to here by
        the next; None where that cannot be, or where the next one dies too: they are lost then."""
        answer = self._answer(worker, self.config.patience_s, restart=True)
        if answer is None and self._episodes is not None:
            for again in (*self._episodes.again(worker.rows.tolist()), message):
                worker.send(again)
                answer = self._answer(worker, self.config.patience_s, restart=True)
                if answer is None:
                    break
        if answer is None:
            print(f"the episodes of {len(worker.rows)} environments are lost")
            self._lost[worker.rows] |= self._running[worker.rows]
            self._running[worker.rows] = False
        return answer

    def _again(self, worker: Worker, message: object) -> object:
        worker.send(message)
        return self._answer(worker, self.config.patience_s)

    def _answer(self, worker: Worker, patience_s: float, restart: bool = False) -> object:
        """Raises:
        SimulationError: the worker says what went wrong, or it died and is not to be started again.
        """
        answer = self._heard(worker, patience_s)
        if answer is None:
            self._gone(worker, restart)
        return answer

    def _heard(self, worker: Worker, patience_s: float) -> object:
        answer = worker.receive(time.monotonic() + patience_s)
        if isinstance(answer, SimulationError):
            self.close()
            raise answer
        return answer

    def _gone(self, worker: Worker, restart: bool) -> object:
        """Start it again; the specs of the process in its place."""
        what = f"worker process {worker.process.pid} ended with exit code {worker.process.exitcode}"
        if not restart or self.restarted >= self.config.restarts:
            self.close()
            raise SimulationError(
                f"{what}, after {self.restarted} restarts: is there enough memory for {len(worker.rows)} environments "
                "a process (simulation.copies, simulation.workers)?"
            )
        self.restarted += 1
        print(f"{what}: it is started again")
        worker.start()
        return self._ready(worker)

    def _ready(self, worker: Worker) -> object:
        """Its specs, once it has built its environments; should it die over that, those of the next."""
        specs = self._heard(worker, STARTS_S + BUILDS_S * len(worker.rows))
        return self._gone(worker, restart=True) if specs is None else specs

    @staticmethod
    def _reset_of(worker: Worker, chosen: Mapping[int, int]) -> Reset:
        rows = [number for number, row in enumerate(worker.rows.tolist()) if row in chosen]
        return Reset(rows, [chosen[int(worker.rows[number])] for number in rows])

    def _specs(self, count: int, answers: Sequence[object]) -> tuple[TaskSpec, ...]:
        found: dict[int, TaskSpec] = {}
        for worker, specs in zip(self._workers, answers, strict=True):
            assert isinstance(specs, list)
            found |= dict(zip(self.task_index[worker.rows].tolist(), specs, strict=True))
        specs_in_order = tuple(found[number] for number in range(count))
        if len({tuple(sorted(spec.cameras.items())) for spec in specs_in_order}) > 1:
            told = "; ".join(f"{spec.id}: {dict(spec.cameras)}" for spec in specs_in_order)
            raise SimulationError(f"tasks simulated together must have the same cameras and sizes, not {told}")
        return specs_in_order


def _views(answer: object) -> Views:
    assert isinstance(answer, Views)
    return answer


def _stop(workers: Sequence[Worker]) -> None:
    """Ask all to stop, then see to it."""
    for worker in workers:
        if not worker.connection.closed:
            worker.send(None)
            worker.connection.close()
    for worker in workers:
        worker.process.join(2)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """These variables for a process that is started inside."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
