"""Which feed a run has."""

from __future__ import annotations

from collections.abc import Sequence

from mmrl.ahead.feed import Feed, OnDemand
from mmrl.ahead.running import Running
from mmrl.ahead.source import Here, Source, twin
from mmrl.ahead.weights import Files, InMemory, Network, WeightStore
from mmrl.ahead.worker import Elsewhere, Recipe
from mmrl.parts import Parts
from mmrl.run import RunFolder
from mmrl.runtime import Runtime
from mmrl.settings import TrainConfig

FOLDER = ".ahead"
"""Of a run, where weights lie for the processes that collect."""


def feed_of(
    parts: Parts, train: TrainConfig, runtime: Runtime, folder: RunFolder | None, overrides: Sequence[str] = ()
) -> Feed:
    """The feed of `train.ahead`. To be made before the policy is wrapped. `overrides` were given to a resumed run.

    Raises:
        ValueError: it does not go together with the rest of the run.
    """
    ahead, rows = train.ahead, train.update.micro_rows
    if ahead is None:
        return OnDemand(parts, train.resample, rows, runtime)
    again = "train.update.rescore is true" if train.update.rescore else "compute is bf16"
    read = any(part.reads_sampler for part in parts.algorithm.parts)
    if ahead.staleness and (train.update.rescore or runtime.reduced_precision) and not read:
        raise ValueError(
            f"train.ahead.staleness is {ahead.staleness} and {again}, so that old log-probs are computed again, and no "
            "part reads those of the policy that drew: add mmrl.selectors.TruncatedImportance or IcePop, or take "
            "mmrl.surrogates.AIPO"
        )
    if parts.lagged is not None:
        raise ValueError(
            "train.ahead is set, and rollouts are drawn with the help of an older policy (as by NLPO), which would "
            "have to follow into every source: set train.ahead to null, or rollout.plan"
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
    store = Files(folder.path / FOLDER) if ahead.weights == "files" else Network()
    recipe = Recipe(folder.path / "config.yaml", tuple(overrides), folder.start())
    count = ahead.processes
    sources = [Elsewhere(recipe, store, number, count, ahead.tries) for number in range(count)]
    return Running(parts, sources, store, ahead, train.steps, rows, runtime)
