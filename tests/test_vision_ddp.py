"""Two processes give the gradients of one, through the shared prefix, with uneven rows and a group cut in two."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.launching import on_two_processes
from tests.test_vision_policy import drawn_from, load
from tests.tiny_vlms import make

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    make("qwen2_5_vl", folder)
    policy = load(folder)
    drawn = drawn_from(policy, group=3)
    rewards = torch.zeros_like(drawn.logprobs)
    rewards[torch.arange(12), drawn.alive.sum(-1) - 1] = torch.arange(12.0) % 5
    file = folder / "rollout.pt"
    torch.save({
        "transitions": drawn.transitions, "logprobs": drawn.logprobs, "mask": drawn.alive, "alive": drawn.alive,
        "rewards": rewards, "discounts": torch.ones_like(rewards), "group_ids": torch.arange(4).repeat_interleave(3),
    }, file)  # fmt: skip
    return folder, file


def launch(processes: int, folder: Path, file: Path, kind: str) -> dict:
    output = folder / f"{kind}_{processes}.pt"
    worker = [str(ROOT / "tests" / "vision_ddp_worker.py"), str(folder), str(file), str(output), kind]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = on_two_processes(*worker) if processes > 1 else [sys.executable, *worker]
    errors = folder / f"{kind}_{processes}.log"
    with errors.open("w") as log:  # gloo's threads may abort or hang while a process ends: what counts is the file
        ran = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        until = time.monotonic() + 200
        while not output.exists() and ran.poll() is None and time.monotonic() < until:
            time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ran.pid, signal.SIGKILL)
        ran.wait()
    assert output.exists(), errors.read_text()[-3000:]
    return torch.load(output, weights_only=True)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_processes_give_the_gradients_of_one(setting, kind):
    one, two = (launch(n, *setting, kind) for n in (1, 2))
    assert (one["world"], two["world"]) == (1, 2)
    largest = max(g.abs().max() for g in one["gradients"].values())
    assert largest > 0
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-5, atol=float(1e-6 * largest), msg=name)
