"""Two gloo processes give the gradients, advantages and metrics of one (invariant I4), uneven ranks included.

`accelerate launch --cpu --num_processes 2` starts a single process unless there is an MPI (accelerate 1.15, by
its source and by trial); `--multi_gpu --num_processes 2` starts two wherever it runs, so this is what is tested.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmrl import commands
from mmrl.advantages import GroupRelative
from mmrl.aggregates import SequenceMean, TokenMean
from mmrl.algorithm import Algorithm
from mmrl.batching import UpdateConfig
from mmrl.parts import Parts
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.surrogates import PPOClip
from mmrl.types import Rollout
from mmrl.update import make_plan, update
from tests.launching import on_two_processes
from tests.test_update import ALGORITHMS, Recorder, prepared, rows_of, toy
from tests.toy import ToyExperiment, ToyPolicyConfig, ToyTransitions, toy_config

ROOT = Path(__file__).resolve().parent.parent
SHORT = 3
"""T on the second rank; the first has 5."""


@dataclass(frozen=True)
class Scenario:
    algorithm: Algorithm
    config: UpdateConfig = UpdateConfig(max_grad_norm=1e9)
    second_rank: str = "some"  # what stands on it: "some", "masked", "failed", "no spread"
    reduced: bool = False
    kind: str = "categorical"
    critic: bool | None = None  # None: if there is a value loss


def splits(**fields: int) -> UpdateConfig:
    return UpdateConfig(**{"max_grad_norm": 1e9, **fields})  # type: ignore[arg-type]


DAPO = Algorithm(GroupRelative(), PPOClip(0.2, 0.28), TokenMean())
SCENARIOS = {
    "token mean": Scenario(ALGORITHMS["critic"]),
    "sequence mean": Scenario(replace(ALGORITHMS["everything"], aggregate=SequenceMean()), splits(micro_rows=3)),
    "windows": Scenario(ALGORITHMS["everything"], splits(micro_rows=3, micro_steps=2)),
    "gaussian": Scenario(ALGORITHMS["everything"], splits(micro_rows=4), kind="gaussian"),
    "minibatches": Scenario(ALGORITHMS["everything"], splits(micro_rows=3, minibatches=3, epochs=2)),
    "masked rank": Scenario(ALGORITHMS["everything"], splits(micro_rows=3), "masked"),
    "failed rank": Scenario(ALGORITHMS["everything"], splits(micro_rows=3), "failed"),
    "skipped groups": Scenario(DAPO, splits(micro_rows=2), "no spread"),
    "nothing on a rank": Scenario(DAPO, splits(micro_rows=2), "failed"),
    "scored again": Scenario(DAPO, splits(micro_rows=2), reduced=True),
    "idle critic": Scenario(DAPO, splits(micro_rows=2), critic=True),
}
each_scenario = pytest.mark.parametrize("name", list(SCENARIOS))


def both_ranks(policy, second: str) -> tuple[Rollout, Rollout]:
    """11 rows of T = 5 and 5 rows of T = 3, groups lying across."""
    whole = prepared(policy)
    whole = whole.with_(group_ids=torch.arange(16) * 7 % 4 * 100)
    lengths = whole.alive.sum(-1)
    order = lengths.argsort(stable=True)
    short, long = rows_of(whole, order[:5]), rows_of(whole, order[5:])
    return long, shaped(narrowed(short), second)


def narrowed(rollout: Rollout) -> Rollout:
    """The first 3 decisions of each row; longer ones are cut off."""
    two = {n: t[:, :SHORT] for n, t in vars(rollout).items() if isinstance(t, Tensor) and t.ndim == 2}
    given = rollout.transitions
    transitions = ToyTransitions(given.states[:, :SHORT], given.actions[:, :SHORT])
    return rollout.with_(transitions=transitions, stats={n: t[:, :SHORT] for n, t in rollout.stats.items()}, **two)


def shaped(rollout: Rollout, second: str) -> Rollout:
    nothing = torch.zeros_like(rollout.mask)
    if second == "masked":
        return rollout.with_(mask=nothing)
    if second == "failed":
        return rollout.with_(mask=nothing, alive=nothing)
    if second == "no spread":  # a group of its own, all rewards 0
        return rollout.with_(group_ids=torch.full((len(rollout),), 5), rewards=torch.zeros_like(rollout.rewards))
    return rollout


def joined(first: Rollout, second: Rollout) -> Rollout:
    """What one process would have collected."""

    def under(a: Tensor, b: Tensor) -> Tensor:
        padding = (0,) * (2 * (b.ndim - 2)) + (0, a.shape[1] - b.shape[1]) if b.ndim > 1 else ()
        return torch.cat([a, torch.nn.functional.pad(b, padding)])

    tensors = {n: under(t, vars(second)[n]) for n, t in vars(first).items() if isinstance(t, Tensor)}
    states = under(first.transitions.states, second.transitions.states)
    actions = under(first.transitions.actions, second.transitions.actions)
    stats = {n: under(t, second.stats[n]) for n, t in first.stats.items()}
    return first.with_(transitions=ToyTransitions(states, actions), stats=stats, **tensors)


def outcome(scenario: Scenario, rank: int | None) -> dict[str, object]:
    """Gradients, metrics, advantages and weights of this rank, or (None) of one process with all rows."""
    runtime = Runtime(RuntimeConfig(device="cpu"), 0)
    runtime.reduced_precision = scenario.reduced
    critic = scenario.algorithm.value_loss is not None if scenario.critic is None else scenario.critic
    policy = ToyPolicyConfig(kind=scenario.kind, critic=critic).make().eval()
    first, second = both_ranks(policy, scenario.second_rank)
    rollout = joined(first, second) if rank is None else (first, second)[rank]
    recorder = Recorder(policy)
    wrapped, optimizer = runtime.prepare(policy, recorder)
    metrics = update(wrapped, rollout, scenario.algorithm, optimizer, runtime, scenario.config)
    plan = make_plan(runtime.gather(rollout), scenario.algorithm)
    return {"gradients": recorder.seen, "metrics": metrics, "advantages": plan.credit.advantages}


@dataclass(frozen=True)
class TwoExperiment(ToyExperiment):
    """Trains as the toy does, and before that runs every scenario on both ranks."""

    results: str = ""

    def build(self, runtime: Runtime, start: Path | None = None) -> Parts:
        found: dict[str, object] = {name: outcome(scenario, runtime.rank) for name, scenario in SCENARIOS.items()}
        found["world"] = {"world": runtime.world, "kind": str(runtime.accelerator.distributed_type)}
        torch.save(found, Path(self.results) / f"rank{runtime.rank}.pt")
        return super().build(runtime, start)


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def launched(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(engine)
    config = toy_config(folder, 4, ("runtime: {device: cpu}", f"results: {folder}"))
    config.write_text(config.read_text().replace("tests.toy.ToyExperiment", "tests.test_two_processes.TwoExperiment"))
    arguments = ("-m", "mmrl", "train", config.name, "train.ema=0.9", "--run", "run")
    command = on_two_processes(*arguments, sharded=engine == "fsdp2")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr[:3000]
    return folder


@pytest.fixture(scope="module")
def ranks(launched: Path) -> list[dict[str, dict[str, object]]]:
    return [torch.load(launched / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, object]]:
    return {name: outcome(scenario, None) for name, scenario in SCENARIOS.items()}


def test_the_runtime_sees_two_processes(engine, ranks) -> None:
    kind = {"ddp": "DistributedType.MULTI_CPU", "fsdp2": "DistributedType.FSDP"}[engine]
    assert [rank["world"] for rank in ranks] == [{"world": 2, "kind": kind}] * 2


def test_ranks_are_as_uneven_as_meant() -> None:
    first, second = both_ranks(toy(), "some")
    assert first.logprobs.shape == (11, 5)
    assert second.logprobs.shape == (5, SHORT)
    assert set(first.group_ids.tolist()) & set(second.group_ids.tolist())


@each_scenario
def test_gradients_equal_one_process(ranks, alone, name: str) -> None:
    wanted = alone[name]["gradients"]
    for rank in ranks:
        found = rank[name]["gradients"]
        assert len(found) == len(wanted) == SCENARIOS[name].config.epochs * SCENARIOS[name].config.minibatches
        for one, other in zip(found, wanted, strict=True):
            assert float(other.norm()) > 1e-4
            assert float((one - other).norm() / other.norm()) < 1e-6


@pytest.mark.parametrize("name", SCENARIOS)
def test_advantages_equal_one_process(ranks, alone, name: str) -> None:
    wanted = alone[name]["advantages"]
    assert float(wanted.abs().max()) > 0.1
    for rank in ranks:
        torch.testing.assert_close(rank[name]["advantages"], wanted, rtol=1e-6, atol=1e-6)


@each_scenario
def test_metrics_equal_one_process(ranks, alone, name: str) -> None:
    wanted = alone[name]["metrics"]
    for rank in ranks:
        found = rank[name]["metrics"]
        assert found.keys() == wanted.keys()
        wrong = [n for n in wanted if found[n] != pytest.approx(wanted[n], rel=1e-4, abs=1e-6)]
        assert wrong == []


def test_a_run_of_two_processes(launched: Path) -> None:
    lines = [json.loads(line) for line in (launched / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "update/loss" in line] == [1, 2, 3, 4]
    summary = json.loads((launched / "run" / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["parity"]["logprob_diff_max"] <= 1e-5
    generators = torch.load(launched / "run" / "checkpoints" / "step_000004" / "generators.pt", weights_only=True)
    assert {"0/collect", "1/collect", "0/torch", "1/torch"} <= generators.keys()
    assert not torch.equal(generators["0/collect"], generators["1/collect"])
    assert torch.equal(generators["0/shared_minibatches"], generators["1/shared_minibatches"])


def test_one_process_goes_on_where_two_stopped(launched: Path, tmp_path: Path) -> None:
    run = shutil.copytree(launched / "run", tmp_path / "run")
    more = ["train.ema=0.9", "train.steps=5"]
    assert commands.train(str(launched / "toy.yaml"), more, run, resume=True) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "update/loss" in line][-1]
    assert last["step"] == 5
    assert last["parity/logprob_diff_max"] <= 1e-5
    before, after = (
        torch.load(run / "checkpoints" / f"step_00000{step}" / "optimizer.pt", weights_only=True)["state"]
        for step in (4, 5)
    )
    assert {n: float(entry["step"]) for n, entry in before.items()} == dict.fromkeys(range(3), 16.0)
    assert all(float(entry["step"]) == 20.0 for entry in after.values())


def test_a_process_without_a_trajectory_is_refused_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(RuntimeConfig(device="cpu"), 0)
    rollout = prepared(toy())
    nothing = rows_of(rollout, torch.arange(0))
    monkeypatch.setattr(runtime, "world", 2)
    monkeypatch.setattr("mmrl.runtime.gather_object", lambda own: [rollout, nothing])
    with pytest.raises(ValueError, match="process 1 of 2 collected no trajectory"):
        runtime.gather(rollout)


def test_a_later_rank_does_not_refuse_the_folder_that_the_first_has_just_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Second(Runtime):
        def __init__(self, config: RuntimeConfig, seed: int) -> None:
            super().__init__(config, seed)
            self.rank = 1

    monkeypatch.setattr(commands, "Runtime", Second)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("recipe: toy\n")
    assert commands.train(str(toy_config(tmp_path, 1)), [], tmp_path / "run", resume=False) == 0
