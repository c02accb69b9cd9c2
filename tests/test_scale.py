"""Two gloo processes do what one does, by DDP and by FSDP2, for embedded and tiny real policies of all three domains:
gradients, advantages, metrics, weights after three steps of AdamW, their moving average, and checkpoints either way."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from torch import nn

from benchmarks.sizing import Memory, Weights, measured, memory, on_meta
from mmrl import sharding
from mmrl.checkpoint import latest
from mmrl.config import load
from mmrl.runtime import Runtime, RuntimeConfig
from tests.launching import on_two_processes
from tests.scale_cases import CASES, ENGINES, REDUCED, apart, differences, named, one_process, reduced

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {
    "gradients": 5e-6, "gradients_empty_rank": 5e-6, "advantages": 1e-6, "metrics": 1e-4, "weights": 1e-5,
    "average": 1e-5, "resume_2_1": 1e-5, "resume_1_2": 1e-5, "resume_average": 1e-5,
}  # fmt: skip
"""Relative to the largest number of each; the steps themselves move weights by 2e-4 and more."""


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    one_process(folder)
    command = on_two_processes("tests/scale_cases.py", str(folder), sharded=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stderr[:3000]
    return folder


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("key", CASES, ids=named)
def test_two_processes_do_what_one_does(launched: Path, engine: str, key: tuple[str, str]) -> None:
    found = differences(launched, engine, key)
    assert found.pop("moved") > 1e-4
    assert found.pop("share") == pytest.approx({"ddp": 1.0, "fsdp2": 0.5}[engine], abs=0.05)
    assert found.keys() == LIMITS.keys()
    assert {name: value for name, value in found.items() if value > LIMITS[name]} == {}


@pytest.mark.parametrize("key", CASES, ids=named)
def test_a_sharded_checkpoint_has_the_files_and_tensors_of_one_process(launched: Path, key: tuple[str, str]) -> None:
    one, two = (latest(launched / engine / named(key)) for engine in ("alone", "fsdp2"))
    assert one is not None
    assert two is not None
    assert shape_of(one) == shape_of(two)


def shape_of(folder: Path) -> dict[str, object]:
    """Names and sizes of its files, and of the tensors of its optimiser; generators are of each rank."""
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".safetensors", ".bin")
    }
    state = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    moments = {n: {name: tuple(value.shape) for name, value in entry.items()} for n, entry in state.items()}
    return {"files": files, "moments": moments}


def test_gathered_in_bf16_the_gradient_is_about_that_of_one_process_in_bf16(launched: Path) -> None:
    try:
        alone = reduced(REDUCED, launched)
    finally:
        AcceleratorState._reset_state()
    exact = torch.load(launched / f"alone_{named(REDUCED)}.pt", weights_only=False)["gradients"][0]
    rounding = apart(alone, exact)
    assert rounding > 1e-4
    for rank in (0, 1):
        assert (
            apart(torch.load(launched / f"reduced_{rank}.pt", weights_only=True), alone) < 4 * rounding
        )  # its gradients are of bf16 weights


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fsdp_version": 1}, "--fsdp_version is 1"),
        ({"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}, "--fsdp_auto_wrap_policy is set"),
        ({"activation_checkpointing": True}, "--fsdp_activation_checkpointing is true"),
        ({"cpu_offload": True}, "--fsdp_offload_params is true"),
    ],
)
def test_what_cannot_be_had_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sharding.refuse(FullyShardedDataParallelPlugin(**{"fsdp_version": 2, **options}))


def test_prefills_are_not_kept_for_weights_that_are_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load("vision/cls_rl", []).experiment
    runtime = Runtime(RuntimeConfig(device="cpu"), 0)
    monkeypatch.setattr(runtime, "sharded", True)
    with pytest.raises(ValueError, match="policy.reuse_prefill is true, and FSDP2"):
        experiment.build(runtime)


def test_a_policy_that_is_not_sharded_is_left_alone() -> None:
    policy = nn.Linear(2, 2)
    before = dict(policy.named_parameters())
    with sharding.to_load(policy), sharding.to_save(policy, keep=False), sharding.whole(policy):
        assert dict(policy.named_parameters()) == before
        policy.weight.data.fill_(3.0)
    assert float(policy.weight.detach().sum()) == 12.0


# ---- sizing ---------------------------------------------------------------------------------------------------------


def test_operations_and_kept_bytes_are_counted_on_the_meta_device() -> None:
    model = on_meta(lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)))
    given = torch.zeros(5, 8, dtype=torch.bfloat16, device="meta")
    found = measured(model, lambda: model(given))
    assert found.parameters == 8 * 16 + 16 + 16 * 4 + 4
    assert found.flops == 2 * 5 * (8 * 16 + 16 * 4)
    assert found.kept == 2 * (5 * 8 + 5 * 16)  # the input, and what tanh gave, once for both who read it


def test_memory_of_a_run_by_hand() -> None:
    full = Weights(trained=8.0, frozen=4.0, beside=2.0)
    assert memory(full, 1, False, 100.0) == Memory(between=152.0, peak=152.0 + 24 + 100, acting=152.0 + 24)
    assert memory(full, 8, False, 100.0).peak == 152.0 + 24 + 32 + 100
    cut = memory(full, 8, True, 100.0)
    assert cut == Memory(between=18.0 + 8, peak=26.0 + 24 + 32 + 100, acting=26.0 + 24)
    assert memory(full, 8, True, 1.0).peak == 26.0 + 24 + 32 + 32
