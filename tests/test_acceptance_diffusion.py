"""From an installed wheel, in an empty folder: a tiny SDXL that starts from a LoRA of one's own, prompts in a text file,
a reward function and a judge; check, train, interrupt, resume until a rule stops it, report, export, and plain diffusers
draws with the result."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion.adapters import LoRA
from diffusion.policy import DiffusionPolicy, PolicyConfig
from tests.fake_judge import FakeJudge, serving
from tests.installed import ENVIRONMENT, ROOT, call
from tests.tiny_pipelines import make

CONFIG = """\
experiment: diffusion
policy: {{model: {model}, adapter: {lora}, reference: start}}
sampling: {{steps: 4, guidance: 3.0, size: [16, 16]}}
data: {{train: prompts.txt, eval: held_out.txt}}
rewards:
  bright: {{use: reward.bright}}
  style:
    use:
      class_path: rewards.pictures.Judge
      init_args: {{url_env: JUDGE_URL, rubric: style.md, model: m, budget_calls: 2000, concurrency: 4}}
    weight: 0.5
algorithm:
  advantage: mmrl.advantages.GroupRelative
  surrogate: {{class_path: mmrl.surrogates.PPOClip, init_args: {{clip_low: 1.0e-4, clip_high: 1.0e-4}}}}
  aggregate: mmrl.aggregates.TokenMean
  regularisers: [{{class_path: mmrl.regularisers.ExactKL, init_args: {{coef: 0.01}}}}]
rollout: {{prompts: 2, group: 3}}
train: {{steps: 100, lr: 1.0e-2}}
evaluate: {{every: 2, samples: 2}}
sheet: {{scheduler: DPMSolverMultistepScheduler, steps: 3}}
save: {{every: 1, keep: 2, best: reward}}
stop: [{{metric: kl, above: 1.0e-9, evaluations: 4}}]
"""
REWARD = """\
def bright(images, prompts, **row):
    return [sum(image.convert("L").tobytes()) / 255 / image.width / image.height for image in images]
"""
PLAIN = """\
import sys, torch
from diffusers import StableDiffusionXLPipeline
def drawn(lora):
    pipeline = StableDiffusionXLPipeline.from_pretrained({model!r})
    pipeline.set_progress_bar_config(disable=True)
    if lora:
        pipeline.load_lora_weights(lora)
    noise = torch.Generator().manual_seed(0)
    return pipeline("a cat", num_inference_steps=3, height=16, width=16, generator=noise, output_type="pt").images
base, start, trained = drawn(None), drawn({lora!r}), drawn("result")
for other in (base, start):
    assert (trained - other).abs().max() > 1e-3, (trained - other).abs().max()
assert "mmrl" not in sys.modules
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> tuple[str, str]:
    """A tiny SDXL and a LoRA for it that is not zero."""
    folder = tmp_path_factory.mktemp("start")
    make("sdxl", folder / "sdxl")
    policy = DiffusionPolicy.load(PolicyConfig(str(folder / "sdxl"), adapter=LoRA(rank=4, alpha=8)))
    torch.manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    policy.save_pretrained(folder / "lora")
    return str(folder / "sdxl"), str(folder / "lora" / "pytorch_lora_weights.safetensors")


def test_an_installed_wheel_in_an_empty_folder(mmrl, start, tmp_path):
    model, lora = start
    code = f"import mmrl, diffusion; assert {str(ROOT)!r} not in mmrl.__file__ + diffusion.__file__"
    subprocess.run([str(mmrl.parent / "python"), "-c", code], cwd=tmp_path, check=True, env=ENVIRONMENT)
    (tmp_path / "config.yaml").write_text(CONFIG.format(model=model, lora=lora))
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "style.md").write_text("Bright pictures are good.")
    (tmp_path / "prompts.txt").write_text("a red cat\na blue dog\na red dog\n")
    (tmp_path / "held_out.txt").write_text("a blue cat\na cat\n")
    with serving(FakeJudge(takes_s=0.1)) as judge:
        trained = _trained(mmrl, tmp_path, {"JUDGE_URL": judge.url, "NO_PROXY": "127.0.0.1"})
        assert call(mmrl, tmp_path, "report", str(trained)).strip().endswith("report.html")
        export = ["export", str(trained), "--to", "result"]
        assert "loads in diffusers" in call(mmrl, tmp_path, *export, JUDGE_URL=judge.url)
    code = PLAIN.format(model=model, lora=lora)
    subprocess.run([str(mmrl.parent / "python"), "-c", code], cwd=tmp_path, check=True, env=ENVIRONMENT, timeout=200)
    assert "load_lora_weights" in (tmp_path / "result" / "README.md").read_text()


def _trained(mmrl: Path, project: Path, judge: dict[str, str]) -> Path:
    """Checked, trained, interrupted, resumed until it stopped itself."""
    said = call(mmrl, project, "check", "config.yaml", **judge)
    for words in ("3 prompts to train on, 2 held out", "zero-spread groups", "best first: check.png",
                  "style: 6 calls a step, 6 an evaluation -> 100 steps and 51 evaluations: 906 calls, of budget_calls"):  # fmt: skip
        assert words in said, words
    Image.open(project / "check.png").verify()

    words = [str(mmrl), "train", "config.yaml", "--run", "run"]
    child = subprocess.Popen(
        words, cwd=project, env=ENVIRONMENT | judge, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 100
    while not list(project.glob("run/checkpoints/step_000001/state.json")):
        assert child.poll() is None, child.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    told, _ = child.communicate(timeout=100)
    assert child.returncode == 130
    assert "continue with: mmrl train --run run --resume" in told

    assert "stopped at step 8, since eval/kl is" in call(mmrl, project, "train", "--run", "run", "--resume", **judge)
    summary = json.loads((project / "run" / "summary.json").read_text())
    assert {"reward_bright", "reward_style", "kl", "dark_share"} <= set(summary["eval_after"])
    assert summary["parity"]["logprob_diff_max"] < 1e-5
    lines = [json.loads(line) for line in (project / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "update/kl" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert abs(steps[0]["update/kl"]) < 1e-9  # to the LoRA it started from
    assert steps[-1]["update/kl"] > 1e-9
    return project / "run"
