"""Which feed a run has."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from mmrl.ahead.feed import Feed, OnDemand
from mmrl.ahead.running import Running
from mmrl.ahead.source import Here, Source, twin
from mmrl.ahead.weights import Files, InMemory, WeightStore
from mmrl.ahead.worker import Elsewhere, Recipe
from mmrl.parts import Parts
from mmrl.run import RunFolder
from mmrl.runtime import Runtime
from mmrl.settings import TrainConfig

FOLDER = ".ahead"
"""Of a run, where weights lie for the processes that collect."""


def feed_of(parts: Parts, train: TrainConfig, runtime: Runtime, folder: RunFolder | None) -> Feed:
    """The feed of `train.ahead`. To be made before the policy is wrapped.

    Raises:
        ValueError: it does not go together with the rest of the run.
        WorkerError: a process that is to collect cannot be started.
    """
    ahead, rows = train.ahead, train.update.micro_rows
    if ahead is None:
        return OnDemand(parts, train.resample, rows, runtime)
    if parts.lagged is not None:
        raise ValueError(
            "train.ahead is set, and rollouts are drawn with the help of an older policy (rollout.plan NLPO), which "
            "would have to follow into every source: set train.ahead to null, or rollout.plan"
        )
    if train.resample and runtime.world > 1:
        raise ValueError(
            f"train.resample is {train.resample} and train.ahead is set on {runtime.world} ranks, whose threads would "
            "have to agree on each round while the trainer talks to the other ranks: set one of them to 0 or null"
        )
    if runtime.world > 1 and ahead.processes:
        raise ValueError(
            f"train.ahead.processes is {ahead.processes} and there are {runtime.world} ranks, each of which collects "
            "in a thread of its own: set it to 0"
        )
    sources: Sequence[Source]
    store: WeightStore
    if ahead.processes == 0:
        store = InMemory()
        sources = [Here(parts, twin(parts.policy), store, train.resample, rows, runtime)]
        return Running(parts, sources, store, ahead, train.steps, rows, runtime)
    if folder is None:
        raise ValueError(f"train.ahead.processes is {ahead.processes}, which needs a run with a folder: set it to 0")
    shutil.rmtree(folder.path / FOLDER, ignore_errors=True)  # of a run that was killed
    store = Files(folder.path / FOLDER)
    recipe = Recipe(folder.path / "config.yaml", folder.start())
    count = ahead.processes
    sources = [Elsewhere(recipe, store, number, count, ahead.tries) for number in range(count)]
    for source in sources:
        source.place()  # once it has built everything
    return Running(parts, sources, store, ahead, train.steps, rows, runtime)
