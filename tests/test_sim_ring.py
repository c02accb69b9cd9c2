"""The environment ring: parts of all environments step while the policy looks at others, and nothing else changes."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from tests.test_sim_workers import gone
from tests.toy_robot import load, make_policy
from tests.toy_workers import STEPS, Elementwise, Point, begun, forked
from vla.rollouts import Begun, Played, Watcher, play
from vla.sim.base import Chunk, SimulationConfig, SimulationError, Simulator, TaskConfig
from vla.sim.ring import divide
from vla.sim.start import start
from vla.sim.workers import STOPS_S

COUNT = 9


def same(one: Played, other: Played) -> None:
    for name in ("chains", "logprobs", "values", "began"):
        found, expected = vars(one)[name], vars(other)[name]
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b), name
    for name in ("rewards", "success", "alive", "terminated", "truncated", "broken"):
        assert torch.equal(one.of(name), other.of(name)), name
    assert all(torch.equal(a, b) for a, b in zip(one.inputs["state"], other.inputs["state"], strict=True))
    assert torch.equal(one.final.state, other.final.state)


def test_parts_hold_every_environment_once_and_every_worker_in_each():
    workers = [torch.arange(0, 9, 2), torch.arange(1, 9, 2)]  # 5 and 4
    for ring in (1, 2, 3, 4):
        parts = divide(workers, ring)
        assert len(parts) == ring
        assert torch.cat([part.rows for part in parts]).sort().values.tolist() == list(range(9))
        for part in parts:
            assert [share.worker for share in part.shares] == [0, 1]
            for share in part.shares:
                assert torch.equal(part.rows[share.places], workers[share.worker][share.rows])
    assert len(divide(workers, 8)) == 5  # no part without an environment
    assert [share.worker for share in divide(workers, 8)[4].shares] == [0]


@pytest.mark.parametrize("workers", [1, 2])
def test_any_ring_plays_the_same_episodes_to_the_last_bit(monkeypatch, workers):
    """Uneven shares; episodes of different lengths; parts that come back in any order."""
    whole = None
    for ring in (1, 2, 4):
        policy, start_ = Elementwise(), begun(COUNT)
        with forked(monkeypatch, SimulationConfig(copies=COUNT, workers=workers, ring=ring)) as simulator:
            assert len(simulator.parts) == ring
            played = play(policy, simulator, start_)
            again = play(Elementwise(), simulator, start_)
        asked = [name for batch in policy.batches for name in batch]
        acted = torch.stack(played.began, 1)
        expected = start_.noise[:, : acted.shape[1], 0, 0, 0][acted].tolist()
        assert sorted(asked) == sorted(expected)  # each chunk once, none lost
        assert len(set(asked)) == len(asked)
        whole = whole or played
        same(whole, played)
        same(whole, again)
        lengths = played.of("alive").flatten(1).sum(1)
        assert lengths.min() < lengths.max() == STEPS
    assert len(policy.batches[0]) == COUNT


def test_what_came_while_the_policy_was_busy_is_its_next_batch(monkeypatch):
    config = SimulationConfig(copies=8, workers=1, ring=4, terminate=False)
    with forked(monkeypatch, config, step_s=0.002) as simulator:
        quick, slow = Elementwise(), Elementwise(takes_s=0.04)
        same(play(quick, simulator, begun(8)), play(slow, simulator, begun(8)))
    sizes = [len(batch) for batch in slow.batches]
    assert sum(sizes) == sum(len(batch) for batch in quick.batches) == 8 * 5
    assert len(sizes) < len(quick.batches)  # several parts at once, for a policy that takes its time
    assert max(sizes[1:]) > 2


def test_a_policy_of_matrices_differs_by_the_rounding_of_its_batches(monkeypatch, tmp_path):
    policy, found = load(make_policy(tmp_path, steps=10)), {}
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(COUNT, 5, policy.adapter.denoise_steps + 1, *policy.adapter.chunk, generator=generator)
    stochastic = torch.ones(COUNT, 5, policy.adapter.denoise_steps, dtype=torch.bool)
    for ring in (1, 4):
        with forked(monkeypatch, SimulationConfig(copies=COUNT, workers=2, ring=ring)) as simulator, torch.no_grad():
            found[ring] = play(policy, simulator, Begun(list(range(COUNT)), noise, stochastic))
    assert torch.equal(found[1].of("alive"), found[4].of("alive"))
    apart = [(a - b).abs().max() for a, b in zip(found[1].logprobs, found[4].logprobs, strict=True)]
    assert max(apart) < 1e-4
    assert (found[1].final.state - found[4].final.state).abs().max() < 1e-5


def test_a_worker_that_dies_or_hangs_loses_its_episodes_in_all_parts(monkeypatch):
    config = SimulationConfig(copies=8, workers=2, ring=2, restarts=2, patience_s=1.0, terminate=False)
    every, still = torch.arange(8), torch.zeros(4, 2, 2)
    with forked(monkeypatch, config) as simulator:
        for how in (signal.SIGKILL, signal.SIGSTOP):
            simulator.reset(every, every)
            os.kill(simulator._workers[1].process.pid, how)
            broken = torch.zeros(8, dtype=torch.bool)
            for part in range(2):
                simulator.begin_chunk(part, still)
            waiting = 2
            while waiting:
                for part, chunk in simulator.arrived():
                    broken[simulator.parts[part]] = chunk.broken
                    assert torch.equal(chunk.alive.all(-1), ~chunk.broken)
                    waiting -= 1
            assert broken.tolist() == [False, True] * 4
        assert simulator.restarted == 2
        simulator.reset(every, every)
        simulator.begin_chunk(1, still)
        (part, chunk), = simulator.arrived()  # fmt: skip
        assert part == 1
        assert not chunk.broken.any()  # told once


def all_arrived(simulator: Simulator, waiting: int) -> dict[int, Chunk]:
    found: dict[int, Chunk] = {}
    while len(found) < waiting:
        found |= dict(simulator.arrived())
    return found


def test_episodes_in_new_scenes_are_played_again_in_every_part(monkeypatch):
    """The worker dies while the policy acts: at rest, or with parts under way and others at different chunks."""

    class Kills(Elementwise):
        def __init__(self, call: int) -> None:
            super().__init__()
            self.call = call

        def act(self, seen, noise, stochastic):
            if len(self.batches) == self.call:
                simulator._workers[1].process.kill()
            return super().act(seen, noise, stochastic)

    with forked(monkeypatch, SimulationConfig(copies=COUNT, workers=2)) as simulator:
        whole = play(Elementwise(), simulator, begun(COUNT))
    config = SimulationConfig(copies=COUNT, workers=2, ring=3, restarts=4, rebuild=True)
    with forked(monkeypatch, config, step_s=0.002) as simulator:
        for number, call in enumerate((0, 1, 3, 5)):
            same(whole, play(Kills(call), simulator, begun(COUNT)))
            assert simulator.restarted == number + 1
    assert not whole.of("broken").any()


def test_what_a_worker_answered_before_it_died_is_not_asked_again(monkeypatch):
    """It has answered for one part, which waits for another worker, when it dies with the other part under way."""
    moves, every = torch.rand(2, 2, 6, 2, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    found: list[dict[int, Chunk]] = []
    config = SimulationConfig(copies=4, workers=2, ring=2, rebuild=True, terminate=False)
    with forked(monkeypatch, config) as simulator:
        for dies in (False, True):
            simulator.reset(every, every)
            first, second = (worker.process.pid for worker in simulator._workers)
            if dies:
                os.kill(first, signal.SIGSTOP)
            simulator.begin_chunk(0, moves[0][:, :2])
            if dies:
                simulator._hear(5.0)  # of part 0 by the second worker
                os.kill(second, signal.SIGSTOP)
            simulator.begin_chunk(1, moves[1][:, :3])
            if dies:
                os.kill(second, signal.SIGKILL)
                os.kill(first, signal.SIGCONT)
            chunks = all_arrived(simulator, 2)
            simulator.begin_chunk(0, moves[0][:, 2:])
            found += [chunks, all_arrived(simulator, 1)]
        assert simulator.restarted == 1
    for undisturbed, disturbed in zip(found[:2], found[2:], strict=True):
        for part, chunk in undisturbed.items():
            assert chunk.alive.all()
            assert torch.equal(chunk.final.state, disturbed[part].final.state)
            assert torch.equal(chunk.rewards, disturbed[part].rewards)
            assert not disturbed[part].broken.any()


def test_actions_that_end_every_process_lose_the_episodes_of_the_worker_for_good(monkeypatch):
    step = Point.step

    def dies(point: Point, action):
        if action[0] == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(point, action)

    monkeypatch.setattr(Point, "step", dies)
    config = SimulationConfig(copies=4, workers=2, ring=2, rebuild=True, restarts=3, terminate=False)
    every, still, deadly = torch.arange(4), torch.zeros(2, 2, 2), torch.zeros(2, 2, 2)
    deadly[1] = 9  # row 1, of the second worker
    with forked(monkeypatch, config) as simulator:
        simulator.reset(every, every)
        simulator.begin_chunk(0, deadly)
        simulator.begin_chunk(1, still)
        for chunk in all_arrived(simulator, 2).values():
            assert chunk.broken.tolist() == [False, True]
        assert simulator.restarted == 2  # its successor died of them too
        simulator._workers[1].process.kill()
        for part in range(2):
            simulator.begin_chunk(part, still)
        for chunk in all_arrived(simulator, 2).values():
            assert chunk.alive.any(-1).tolist() == [True, False]  # nobody plays again what was lost
            assert not chunk.broken.any()
        simulator.begin_chunk(0, still.index_fill(0, torch.tensor(1), 9))  # of an episode that is over: not read
        assert not all_arrived(simulator, 1)[0].broken.any()
        assert simulator.reset(every, every).state.shape == (4, 3)
        simulator.begin_chunk(0, deadly)
        with pytest.raises(SimulationError, match="after 3 restarts: is there enough memory"):
            simulator.arrived()


def test_a_part_is_asked_for_once_and_what_is_left_under_way_disturbs_nobody(monkeypatch):
    with forked(monkeypatch, SimulationConfig(copies=4, workers=1, ring=2)) as simulator:
        every, still = torch.arange(4), torch.zeros(2, 2, 2)
        begun_ = simulator.reset(every, every)
        with pytest.raises(ValueError, match="no part of the ring is stepping"):
            simulator.arrived()
        simulator.begin_chunk(0, still)
        with pytest.raises(ValueError, match="part 0 of the ring is stepping already"):
            simulator.begin_chunk(0, still)
        with pytest.raises(ValueError, match=r"2 environments with up to 2 action dimensions take \(2, H, 2\)"):
            simulator.begin_chunk(1, torch.zeros(4, 2, 2))
        assert torch.equal(simulator.reset(every, every).state, begun_.state)  # not the answer of part 0
        assert simulator.chunk_step(torch.zeros(4, 2, 2)).alive.sum() == 8


def test_messages_larger_than_a_pipe_do_not_wait_for_each_other(monkeypatch):
    with forked(monkeypatch, SimulationConfig(copies=4, workers=1, ring=4, patience_s=20)) as simulator:
        simulator.reset(torch.arange(4), torch.arange(4))
        began = time.monotonic()
        for part in range(4):
            simulator.begin_chunk(part, torch.zeros(1, 300_000, 2))
        arrived = 0
        while arrived < 4:
            arrived += len(simulator.arrived())
        assert time.monotonic() - began < 15
        assert simulator.restarted == 0


def test_all_stop_within_two_seconds_in_the_middle_of_their_chunks(monkeypatch):
    simulator = forked(monkeypatch, SimulationConfig(copies=6, workers=3, ring=2), step_s=1.0)
    simulator.reset(torch.arange(6), torch.arange(6))
    for part in range(2):
        simulator.begin_chunk(part, torch.zeros(3, 9, 2))
    processes, began = [worker.process.pid for worker in simulator._workers], time.monotonic()
    simulator.close()
    assert time.monotonic() - began < 2 > STOPS_S
    assert all(gone(process, 0.5) for process in processes)


def test_a_ring_is_of_worker_processes():
    with pytest.raises(ValueError, match="simulation.ring is 0: give 1"):
        SimulationConfig(ring=0)
    with pytest.raises(ValueError, match="simulation.ring is 2 with backend physx_cuda"):
        SimulationConfig(ring=2, backend="physx_cuda")


def test_the_episodes_of_maniskill_are_the_same_too():
    """By parts, and all at a time under a watcher; in new scenes, so that they depend on seeds and actions alone."""

    class Nobody(Watcher):
        def began(self, simulator) -> None:
            pass

        def stepped(self, simulator, seen, actions, chunk) -> None:
            pass

    class Four(Elementwise):
        def act(self, seen, noise, stochastic):
            acted = super().act(seen, noise, stochastic)
            return type(acted)(acted.inputs, acted.chain, acted.logprobs, acted.values, acted.actions.repeat(1, 1, 2))

    config = SimulationConfig(copies=3, workers=1, ring=2, rebuild=True)
    with start([TaskConfig("PushCube-v1", max_steps=6)], config) as simulator:
        by_parts = play(Four(), simulator, begun(3, chunks=3))
        whole = play(Four(), simulator, begun(3, chunks=3), Nobody())
    same(whole, by_parts)
