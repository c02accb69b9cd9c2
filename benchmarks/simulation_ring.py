"""Environment steps per second of the environment ring: 1 (all step, then all are looked at), 2, and 4 parts.

One worker process, 16 environments of PushCube by the fast path, whole episodes of the small policy of
assets/vla/pushcube, one thread. A sleep in each call of the policy stands for a GPU that takes so long whatever its
batch is; there is no GPU in it. A repeat runs every ring and sleep once, in turn, so that ratios are within one run.
Resets are left out. Then: by how much the episodes of a ring differ, in new scenes, where they depend on seeds and
actions alone; once with a policy that looks at one row at a time, whose rounding does not depend on the batch, and once
with the policy as it is.

    python -m benchmarks.simulation_ring
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack

import torch

from benchmarks.common import spread, write
from mmrl.recipes import find_asset
from vla.chains import Chain
from vla.policy import Acted, PolicyConfig, RobotPolicy
from vla.rollouts import Begun, Played, chunks_of, play
from vla.sim.base import Observations, SimulationConfig, Simulator, TaskConfig
from vla.sim.start import start

RINGS, SLEEPS_MS, REPEATS, COPIES, SAME = (1, 2, 4), (0, 5, 20), 5, 16, 6
TASK = TaskConfig("PushCube-v1")


class Slow:
    """A policy that takes longer, and counts its calls."""

    def __init__(self, policy: RobotPolicy, sleep_ms: float) -> None:
        self.policy, self.device, self.sleep_s = policy, policy.device, sleep_ms / 1000
        self.calls, self.own_s = 0, 0.0

    def act(self, seen: Observations, noise: torch.Tensor, stochastic: torch.Tensor) -> Acted:
        began = time.perf_counter()
        found = self.policy.act(seen, noise, stochastic)
        self.calls, self.own_s = self.calls + 1, self.own_s + time.perf_counter() - began
        time.sleep(self.sleep_s)
        return found


class Alone:
    """A policy that looks at one row at a time."""

    def __init__(self, policy: RobotPolicy) -> None:
        self.policy, self.device = policy, policy.device

    def act(self, seen: Observations, noise: torch.Tensor, stochastic: torch.Tensor) -> Acted:
        rows = [torch.tensor([row]) for row in range(len(seen))]
        found = [self.policy.act(seen.of(row), noise[row], stochastic[row]) for row in rows]

        def joined(parts: Sequence[object]) -> dict[str, torch.Tensor]:
            return {name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])}

        inputs = {name: torch.cat([acted.inputs[name] for acted in found]) for name in found[0].inputs}
        chain = Chain(**joined([acted.chain for acted in found]))
        rest = {name: torch.cat([vars(acted)[name] for acted in found]) for name in ("logprobs", "values", "actions")}
        return Acted(inputs, chain, **rest)


def begun(policy: RobotPolicy, simulator: Simulator, seed: int) -> Begun:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(simulator), chunks_of(simulator, policy.adapter.execute))
    steps = policy.adapter.denoise_steps
    noise = torch.randn(*shape, steps + 1, *policy.adapter.chunk, generator=generator)
    seeds = torch.randint(2**20, 2**31, (len(simulator),), generator=generator).tolist()
    return Begun(seeds, noise, policy.config.exploration.stochastic(shape, steps, generator))


def episodes(policy: RobotPolicy, simulator: Simulator, sleep_ms: float, seed: int) -> tuple[float, Slow, Played]:
    """Environment steps a second, and of what."""
    slow = Slow(policy, sleep_ms)
    played = play(slow, simulator, begun(policy, simulator, seed))  # type: ignore[arg-type]
    return int(played.of("alive").sum()) / (played.seconds.wall - played.seconds.reset), slow, played


def rates(policy: RobotPolicy, repeats: int) -> dict[str, object]:
    found: dict[int, dict[int, list[float]]] = {sleep: {ring: [] for ring in RINGS} for sleep in SLEEPS_MS}
    calls: dict[int, dict[int, int]] = {sleep: {} for sleep in SLEEPS_MS}
    own: list[float] = []
    with ExitStack() as opened:
        simulators = {
            ring: opened.enter_context(start([TASK], SimulationConfig(COPIES, workers=1, ring=ring, terminate=False)))
            for ring in RINGS
        }
        for repeat in range(-1, repeats):  # the first warms up
            for sleep in SLEEPS_MS:
                for ring, simulator in simulators.items():
                    rate, slow, _ = episodes(policy, simulator, sleep, repeat + 1)
                    if repeat >= 0:
                        found[sleep][ring].append(rate)
                        calls[sleep][ring] = slow.calls
                        own += [1000 * slow.own_s / slow.calls] if ring == 1 else []
    figures: dict[str, object] = {"own_ms_a_call": round(statistics.median(own), 2)}
    for sleep, by_ring in found.items():
        figures[f"sleep_{sleep}_ms"] = {
            f"ring_{ring}": {
                "steps_per_s": spread(values), "calls": calls[sleep][ring],
                "ratio": spread([a / b for a, b in zip(values, by_ring[1], strict=True)]),
            }
            for ring, values in by_ring.items()
        }  # fmt: skip
        told = {
            ring: round(statistics.median(a / b for a, b in zip(v, by_ring[1], strict=True)), 3)
            for ring, v in by_ring.items()
        }
        print(f"sleep {sleep} ms: times ring 1 {told}, calls {calls[sleep]}")
    return figures


def differences(policy: RobotPolicy) -> dict[str, object]:
    """Of whole episodes in new scenes, from those of ring 1."""
    played: dict[str, dict[int, Played]] = {"row_by_row": {}, "in_batches": {}}
    for ring in RINGS:
        with start([TASK], SimulationConfig(SAME, workers=1, ring=ring, rebuild=True, terminate=False)) as simulator:
            start_ = begun(policy, simulator, 0)
            for kind, acts in (("row_by_row", Alone(policy)), ("in_batches", policy)):
                played[kind][ring] = play(acts, simulator, start_)  # type: ignore[arg-type]
    found: dict[str, object] = {"episodes": SAME}
    for kind, by_ring in played.items():
        for ring in RINGS[1:]:
            found[f"{kind}_ring_{ring}"] = apart(by_ring[1], by_ring[ring])
    return found


def apart(one: Played, other: Played) -> dict[str, object]:
    pairs = zip(one.inputs["observation.state"], other.inputs["observation.state"], strict=True)
    states = [float((a - b).abs().max()) for a, b in pairs]
    return {
        "same_chunks": next((number for number, state in enumerate(states) if state), len(states)),
        "chunks": len(states),
        "final_state_max": float((other.final.state - one.final.state).abs().max()),  # type: ignore[union-attr]
        "first_actions_max": float((one.chains[0][:, -1] - other.chains[0][:, -1]).abs().max()),
        "logprob_max": float((torch.stack(other.logprobs) - torch.stack(one.logprobs)).abs().max()),
        "successes": [int(played.of("success").flatten(1).any(1).sum()) for played in (one, other)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    path = str(find_asset("assets/vla/pushcube"))
    policy = RobotPolicy.load(PolicyConfig(path), torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        figures = {"rates": rates(policy, repeats), "differences": differences(policy)}
    execute = policy.adapter.execute
    write("simulation_ring", {"environments": COPIES, "horizon": execute, "repeats": repeats, **figures})


if __name__ == "__main__":
    main()
