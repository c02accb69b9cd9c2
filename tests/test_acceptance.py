"""From an installed wheel, in an empty folder, as a new user would: init, check, train, interrupt, resume, report,
export, load elsewhere; on a tiny Qwen2.5-VL that starts from a LoRA that is not zero."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.installed import ENVIRONMENT, ROOT, call
from tests.tiny_vlms import make
from vision.adapters import LoRA
from vision.policy import PolicyConfig, VisionPolicy


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny model and a LoRA for it."""
    folder = tmp_path_factory.mktemp("start")
    make("qwen2_5_vl", folder / "model")
    policy = VisionPolicy.load(PolicyConfig(str(folder / "model"), adapter=LoRA(rank=4, alpha=8)))
    torch.manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    policy.save_pretrained(folder / "lora")
    return folder / "model", folder / "lora"


def test_an_installed_wheel_in_an_empty_folder(mmrl, start, tmp_path):
    model, lora = start
    where = call(mmrl, tmp_path, "init", "vision", "project")
    assert "mmrl check config.yaml" in where
    project = tmp_path / "project"
    code = f"import mmrl, vision; print(mmrl.__file__, vision.__file__); assert {str(ROOT)!r} not in mmrl.__file__"
    subprocess.run([str(mmrl.parent / "python"), "-c", code], cwd=project, check=True, capture_output=True)

    own = [f"policy.model={model}", f"policy.adapter={lora}", "rollout={prompts: 2, group: 3, max_new_tokens: 4}",
           "rewards.correct.weight=0.0", "stop=[]", "evaluate.every=null", "evaluate.samples=2",
           "algorithm.regularisers=[{class_path: mmrl.regularisers.K3, init_args: {coef: 0.01}}]"]  # fmt: skip
    checked = call(mmrl, project, "check", "config.yaml", *own)
    assert "400 to train on, 200 held out" in checked

    words = [str(mmrl), "train", "config.yaml", *own, "train.steps=400", "save={every: 1, keep: 2}"]
    child = subprocess.Popen(
        words, cwd=project, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while not list(project.glob("runs/project/*/checkpoints/step_*/state.json")):
        assert child.poll() is None, child.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=100)
    assert child.returncode == 130
    assert "continue with: mmrl train --run" in said
    (run,) = project.glob("runs/project/*")
    reached = int((run / "checkpoints" / "latest").read_text().removeprefix("step_"))
    assert reached < 400

    call(mmrl, project, "train", "--resume", f"train.steps={reached + 2}")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == reached + 2
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "update/kl" in line]
    assert [line["step"] for line in trained] == list(range(1, reached + 3))
    assert abs(trained[0]["update/kl"]) < 1e-9  # to the LoRA it started from
    assert call(mmrl, project, "report", "runs/project/latest").strip().endswith("report.html")
    assert "<html" in (run / "report.html").read_text()

    call(mmrl, project, "export", "runs/project/latest", "--to", "adapter")
    call(mmrl, project, "export", "runs/project/latest", "--to", "merged", "--merge")
    code = (
        "import sys, torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForImageTextToText as M, AutoProcessor\n"
        "merged = M.from_pretrained('merged', dtype=torch.float32).eval()\n"
        f"lora = PeftModel.from_pretrained(M.from_pretrained({str(model)!r}, dtype=torch.float32), 'adapter').eval()\n"
        "ids = torch.arange(5)[None]\n"
        "with torch.no_grad(): a, b = merged(input_ids=ids).logits, lora(input_ids=ids).logits\n"
        "assert torch.allclose(a, b, atol=1e-4), (a - b).abs().max()\n"
        "assert AutoProcessor.from_pretrained('merged') and 'mmrl' not in sys.modules\n"
    )
    subprocess.run([str(mmrl.parent / "python"), "-c", code], cwd=project, check=True, env=ENVIRONMENT, timeout=200)
