"""What `mmrl check` is told of a vla run: demonstrations played again, states and pictures beside those that the policy
knows, and how often it succeeds with and without exploring."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from lerobot.processor import NormalizerProcessorStep
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from mmrl.experiment import Trial, Tried
from mmrl.parts import Parts
from mmrl.runtime import Runtime, acting
from mmrl.types import Estimate
from mmrl.verdicts import TOO_EASY, TOO_HARD
from vla import demonstrations
from vla.cameras import Compared, camera_line
from vla.collector import EpisodeCollector
from vla.evaluation import EpisodeEvaluator, Outcomes, outcomes, share
from vla.policy import RobotPolicy
from vla.replay import Shown, line_of, of_tasks, read, replay
from vla.rollouts import chunks_of, play

if TYPE_CHECKING:
    from vla.experiments import Experiment

REPLAYED, PAIRS, TIMED = 20, 2, 4
"""Demonstrations that are played again, those whose pictures are compared, and held-out episodes that the time of an
evaluation is measured on."""
NEVER, FAR = 0.02, 10.0
"""Success up to which a policy counts as never succeeding, and standard deviations from which on a state is another
one than the policy knows."""


def try_out(experiment: Experiment, runtime: Runtime, parts: Parts) -> Trial:
    """One rollout as training would collect it, and the same policy without exploring on held-out starts."""
    collector, evaluator, policy = parts.collector, parts.evaluator, parts.policy
    assert isinstance(collector, EpisodeCollector)
    assert isinstance(evaluator, EpisodeEvaluator)
    assert isinstance(policy, RobotPolicy)
    simulator, told = collector.simulator, again(experiment, runtime)
    with acting(policy):
        begun = collector.begin(policy, runtime.generator("collect"))
        first = simulator.reset(torch.arange(len(simulator)), torch.tensor(begun.seeds))
        try:
            played = play(policy, simulator, begun)
        except ValueError as error:  # it does not fit the task; demonstrations say which controller would
            raise ValueError(f"{error}; replay: {told['replay']}") from error
        rollout = collector.decisions(policy, played, begun.stochastic)
        noisy = Outcomes.of(played, begun, simulator.task_index)
        seeds = evaluator.config.seeds[: evaluator.config.between]
        best = outcomes(policy, simulator, seeds, runtime.fresh_generator("evaluate"))
        seconds = _evaluation_s(evaluator, policy, runtime)
    rates, (ode, noise) = simulator.tasks, (share(best.once), share(noisy.once))
    told["state"] = state_line(policy, policy.adapter.read(first).get(OBS_STATE, first.state))
    told["policy"] = f"success {shown(ode)} on {ode.n} starts (ODE), {shown(noise)} on {noise.n} with training noise"
    if simulator.memory_mb():
        told["workers"] = f"{simulator.memory_mb() / 1024:.1f} GB in the simulator's processes, beside the peak above"
    count = collector.config.episodes
    return Trial(
        rollout=rollout,
        tried=[
            Tried(
                f"{rates[int(noisy.task[row])].label}, seed {seed}", rates[int(noisy.task[row])].instruction,
                noisy.told(row), right=bool(noisy.once[row]),
            )
            for row, seed in enumerate(noisy.seeds)
        ],
        figures={"success_rate": noise.value},
        data=f"{len(rates)} task{'s' * (len(rates) > 1)}, {count} episodes a step from "
        f"{count // collector.config.group} starts; {len(evaluator.config.seeds)} held out of each task",
        largest=collector,
        largest_name=f"{count} episodes of {chunks_of(simulator, policy.adapter.execute)} chunks",
        evaluation_s=seconds,
        lines=lambda: told,
        advice=advice(ode, noise, dense=bool(experiment.reward.dense or experiment.reward.relative)),
    )  # fmt: skip


def shown(e: Estimate) -> str:
    """`0.34 [0.25, 0.44]`"""
    return f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"


def advice(ode: Estimate, noise: Estimate, dense: bool) -> str:
    """Whether to start with such success rates, without and with exploring; `dense`: there is reward beside success."""
    if max(ode.value, noise.value) < NEVER:
        if dense:
            return (
                "CAREFUL: the policy never succeeds, so only the dense part of the reward teaches: more demonstrations "
                "or easier starts"
            )
        return (
            "DO NOT START: the policy never succeeds, so sparse reward teaches nothing: more demonstrations, easier "
            "starts, or reward.relative with env.reward normalized_dense"
        )
    if noise.high < ode.low and noise.value < ode.value / 2:
        return "CAREFUL: exploring costs most of the successes (see below): less noise under policy.exploration"
    if noise.value < TOO_HARD and not dense:
        return f"CAREFUL: success below {TOO_HARD:.0%} learns slowly: more demonstrations, easier starts, more episodes"
    if noise.value > TOO_EASY:
        return f"CAREFUL: success above {TOO_EASY:.0%} leaves little to learn: harder starts"
    return "OK to start"


def again(experiment: Experiment, runtime: Runtime) -> dict[str, str]:
    """The lines of `replay` and `camera`."""
    config, tasks, pictures = experiment.demonstrations, experiment.tasks, experiment.simulation.observe == "images"
    none, known, rate = "not possible: the config names no data set under `demonstrations`", list[Shown](), 0
    if config is not None:
        drawn = runtime.fresh_generator("demonstrations")
        folder = demonstrations.ensure(config, tasks, drawn, experiment.simulation)
        asked = REPLAYED if config.episodes is None else sum(demonstrations.spread(config.episodes, len(tasks)))
        known, rate = read(folder, min(REPLAYED, asked))
        none = (
            f"not possible: {folder} does not say from which initial states its episodes began; sets that mmrl writes "
            "have an int64 feature `seed`"
        )
    camera = none if pictures else "the policy observes states: there is no picture to compare"
    if not known or any(one.seed is None for one in known):
        return {"replay": none, "camera": camera}
    said, compared = list[str](), list[Compared]()
    for task, mine in of_tasks(known, tasks):
        found = replay(task, experiment.simulation, mine)
        said.append(line_of(task, experiment.simulation, mine, found, rate))
        for row, one in enumerate(mine[:PAIRS]):
            simulated = {name: image[row] for name, image in found.seen.images.items()}
            compared.append(Compared(f"{task.label}, seed {one.seed}", one.images, simulated))
    return {"replay": " · ".join(said), "camera": camera_line(compared) if pictures else camera}


def state_line(policy: RobotPolicy, states: Tensor) -> str:
    """How far initial states (n, S) are from the policy's own statistics. (Later ones may be far whatever the units: a
    cube that fell over is nowhere in the demonstrations.)"""
    steps = policy.adapter.processors[0].steps
    known = next((found for step in steps if (found := statistics_of(step)) is not None), None)
    if known is None or "mean" not in known or "std" not in known:
        return f"the policy has no mean and deviation of {OBS_STATE}: not compared"
    mean, std = (torch.as_tensor(known[name]).float().flatten().to(states.device) for name in ("mean", "std"))
    if len(mean) != states.shape[1]:
        return f"the policy reads {len(mean)} numbers of {OBS_STATE} and the task tells {states.shape[1]}"
    far = ((states - mean) / std.clamp(min=1e-8)).abs().amax(0)
    worst, most = int(far.argmax()), float(far.max())
    of = f"{OBS_STATE} {len(mean)} of {states.shape[1]}"
    told = f"{of}, at the start all within {most:.1f} sd of the policy's statistics"
    if most <= FAR:
        return told
    return (
        f"{told}: number {worst} is the farthest, and {int((far > FAR).sum())} are beyond {FAR:.0f} sd: LOOK whether "
        "unit, order and robot are those of the data"
    )


def statistics_of(step: object) -> dict[str, object] | None:
    """Of the state, where a step of a processor normalises it."""
    if not isinstance(step, NormalizerProcessorStep) or step.stats is None:
        return None
    found: dict[str, object] | None = step.stats.get(OBS_STATE)
    return found


def _evaluation_s(evaluator: EpisodeEvaluator, policy: RobotPolicy, runtime: Runtime) -> float:
    """Seconds of one evaluation: those of starting its simulator, and of its episodes from a few of them."""
    tasks = [*evaluator.tasks, *evaluator.config.tasks]
    seeds, began = evaluator.config.seeds[:TIMED], time.perf_counter()
    with evaluator.simulator(tasks, len(seeds)) as simulator:
        started = time.perf_counter()
        outcomes(policy, simulator, seeds, runtime.fresh_generator("evaluate"))
        ended = time.perf_counter()
    return started - began + (ended - started) * len(evaluator.config.seeds) / len(seeds)
