"""Environments in worker processes, on the CPU: what starts them, talks to them and notices when one is gone."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import wait

import numpy as np
import psutil
import torch
from torch import Tensor

from vla.sim import rendering
from vla.sim.base import Chunk, Observations, SimulationConfig, SimulationError, Simulator, TaskConfig, TaskSpec
from vla.sim.episodes import Episodes
from vla.sim.process import Worker
from vla.sim.ring import Stepping, divide
from vla.sim.tasks import module_of
from vla.sim.worker import Act, Acted, Draw, Job, Reset, Views

STOPS_S = 1.5
"""Seconds that all workers together have to stop, in the middle of a chunk too."""
STARTS_S, BUILDS_S = 300.0, 5.0
"""Seconds that a worker may take to start, and to build one environment more (0.2 for a task with two objects)."""


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
        self._ring = divide([worker.rows for worker in self._workers], config.ring)
        self._stepping: dict[int, Stepping] = {}
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
        views = [(worker.rows, _views(answer)) for worker, answer in self._pairs(answers)]
        return self._joined(torch.arange(len(self)), views)

    def chunk_step(self, actions: Tensor, then: Tensor | None = None) -> Chunk:
        self.check_actions(actions)
        numbers, seeds = actions.float().cpu(), None if then is None else then.tolist()
        messages = [
            Act(numbers[worker.rows].numpy(), None if seeds is None else [seeds[row] for row in worker.rows.tolist()])
            for worker in self._workers
        ]
        answers = self._exchange(messages)
        if self._episodes is not None:
            taking = (self._running & ~self._lost).nonzero()[:, 0]
            self._episodes.act(taking.tolist(), numbers[taking].numpy())
        pairs = [(worker.rows, _acted(answer)) for worker, answer in self._pairs(answers)]
        chunk = self._chunk(torch.arange(len(self)), pairs, actions.shape[1])
        if then is not None:
            over = (~self._running).nonzero()[:, 0]
            if self._episodes is not None:
                self._episodes.begin(over.tolist(), then[over].tolist())
            self._running[:] = True
            gone = [worker.rows for worker, answer in zip(self._workers, answers, strict=True) if answer is None]
            if gone:
                begun = self.reset(torch.cat(gone), then[torch.cat(gone)])
                chunk = replace(chunk, observations=begun)
        return chunk

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return tuple(part.rows for part in self._ring)

    def begin_chunk(self, part: int, actions: Tensor) -> None:
        shares = self._ring[part].shares
        self.check_actions(actions, len(self._ring[part].rows))
        if part in self._stepping:
            raise ValueError(f"part {part} of the ring is stepping already: ask `arrived` for it first")
        self._stepping[part] = Stepping(actions.shape[1])
        numbers = actions.float().cpu()
        for share in shares:
            worker, message = self._workers[share.worker], Act(numbers[share.places].numpy(), None, share.rows)
            worker.owes.append((part, message))
            worker.send(message)

    def arrived(self) -> list[tuple[int, Chunk]]:
        if not self._stepping:
            raise ValueError("no part of the ring is stepping: `begin_chunk` first")
        while self._hear(0):  # all that came while nobody listened
            pass
        while not (done := [part for part in self._stepping if self._is_complete(part)]):
            self._hear(self.config.patience_s)
        return [(part, self._landed(part)) for part in done]

    def _is_complete(self, part: int) -> bool:
        return len(self._stepping[part].answers) == len(self._ring[part].shares)

    def _hear(self, patience_s: float) -> bool:
        """Take in an answer of each worker that has one, waiting so long for the first; whether there was any. Those
        that are dead are started again, and those silent until then, if there was patience at all: their successors
        answer for all parts that are under way."""
        owing = {worker.connection: worker for worker in self._workers if worker.owes}
        sentinels = {worker.process.sentinel: worker for worker in owing.values()}
        ready = wait([*owing, *sentinels], patience_s)
        said = {id(worker): worker for found in ready if (worker := owing.get(found) or sentinels.get(found))}
        silent = owing.values() if not ready and patience_s > 0 else ()
        for worker in [*said.values(), *silent]:
            answer = self._answer(worker, 0.0, restart=True)
            for found in [answer] if answer is not None else self._late(worker, [owed for _, owed in worker.owes]):
                self._take(worker, *worker.owes.popleft(), found)
        return bool(said)

    def _take(self, worker: Worker, part: int, message: Act, answer: object) -> None:
        """What a worker answers for its share of a part; None if it was lost."""
        self._stepping[part].answers[self._workers.index(worker)] = None if answer is None else _acted(answer)
        if answer is not None and self._episodes is not None:
            rows = worker.rows[message.rows]
            taking = self._running[rows]
            self._episodes.act(rows[taking].tolist(), message.actions[taking.numpy()])

    def _landed(self, part: int) -> Chunk:
        stepping, rows = self._stepping.pop(part), self._ring[part].rows
        places = {share.worker: share.places for share in self._ring[part].shares}
        pairs = [(places[number], acted) for number, acted in stepping.answers.items() if acted is not None]
        return self._chunk(rows, pairs, stepping.horizon)

    def _settle(self) -> None:
        """Whoever left parts of the ring under way does not ask for them any more."""
        while self._stepping:
            self.arrived()

    def render(self, env_index: Tensor) -> Tensor:
        self.check_render()
        self._settle()
        side, chosen, drawn = self.config.video_size, set(env_index.tolist()), {}
        for worker in self._workers:
            rows = [number for number, row in enumerate(worker.rows.tolist()) if row in chosen]
            worker.send(Draw(rows))
            pictures = self._settled(worker, Draw(rows))
            if pictures is None:  # lost: nothing to see
                pictures = np.zeros((len(rows), 3, side, side), np.uint8)
            drawn |= dict(zip(worker.rows[rows].tolist(), torch.as_tensor(pictures), strict=True))
        return torch.stack([drawn[row] for row in env_index.tolist()])

    def _chunk(self, asked: Tensor, pairs: Sequence[tuple[Tensor, Acted]], horizon: int) -> Chunk:
        """The rows `asked` (n,) together, each worker's at their places; those of a worker that was lost are broken."""
        count = len(asked)
        rewards = torch.zeros(count, horizon)
        success, alive = (torch.zeros(count, horizon, dtype=torch.bool) for _ in range(2))
        ended = {name: torch.zeros(count, dtype=torch.bool) for name in ("terminated", "truncated", "broken")}
        seconds, views, finals = 0.0, [], []
        for places, answer in pairs:
            rewards[places] = torch.from_numpy(answer.rewards)
            success[places], alive[places] = map(torch.from_numpy, (answer.success, answer.alive))
            for name, flags in ended.items():
                flags[places] = torch.from_numpy(vars(answer)[name])
            seconds = max(seconds, answer.seconds)
            views.append((places, answer.views))
            finals.append((places, answer.final))
        ended["broken"] |= self._lost[asked]
        self._lost[asked] = False
        self._running[asked] &= ~(ended["terminated"] | ended["truncated"] | ended["broken"])
        return Chunk(
            self._joined(asked, views), self._joined(asked, finals), rewards, success, alive, **ended,
            simulation_s=seconds,
        )  # fmt: skip

    def _joined(self, asked: Tensor, parts: Sequence[tuple[Tensor, Views]]) -> Observations:
        """Views of all workers for the rows `asked` (n,), each worker's at their places; zeros where there is none."""
        state, images = self._blank.state[asked], {name: image[asked] for name, image in self._blank.images.items()}
        for rows, views in parts:
            state[rows, : views.state.shape[1]] = torch.from_numpy(views.state)
            for name, image in views.images.items():
                images[name][rows] = torch.from_numpy(image)
        return Observations(state, images, tuple(self._blank.instructions[row] for row in asked.tolist()))

    def _pairs(self, answers: Sequence[object]) -> list[tuple[Worker, object]]:
        pairs = zip(self._workers, answers, strict=True)
        return [(worker, answer) for worker, answer in pairs if answer is not None]

    def _exchange(self, messages: Sequence[object]) -> list[object]:
        """One answer a worker; None for one that died, which has been started again."""
        self._settle()
        pairs = list(zip(self._workers, messages, strict=True))
        for worker, message in pairs:
            worker.send(message)
        return [self._settled(worker, message) for worker, message in pairs]

    def _settled(self, worker: Worker, message: object) -> object:
        """The answer to `message`, which was sent; should the worker die, that of its successor."""
        answer = self._answer(worker, self.config.patience_s, restart=True)
        return self._late(worker, [message])[0] if answer is None else answer

    def _late(self, worker: Worker, messages: Sequence[object]) -> list[object]:
        """What the successor of a worker that died answers to the `messages` that one left unanswered, once it has
        played the episodes again up to there. None for each where that cannot be, or where it dies too: they are lost
        then."""
        rows = worker.rows.tolist()
        if self._episodes is not None:
            answers = []
            for message in (*self._episodes.again(rows), *messages):
                worker.send(message)
                answers.append(self._answer(worker, self.config.patience_s, restart=True))
                if answers[-1] is None:
                    break
            else:
                return answers[-len(messages) :]
            self._episodes.lose(rows)
        print(f"the episodes of {len(rows)} environments are lost")
        self._lost[rows] |= self._running[rows]
        self._running[rows] = False
        return [None] * len(messages)

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


def _acted(answer: object) -> Acted:
    assert isinstance(answer, Acted)
    return answer


def _stop(workers: Sequence[Worker]) -> None:
    """Ask all to stop, then see to it."""
    for worker in workers:
        if not worker.connection.closed:
            worker.send(None)
            worker.connection.close()
    until = time.monotonic() + STOPS_S
    for worker in workers:
        worker.process.join(max(0.0, until - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
