"""RLCM, DDPO and Flow-GRPO by config alone, on tiny real pipelines: training, resuming, stopping, handing over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from diffusion.collector import PictureCollector, RolloutConfig
from diffusion.policy import DiffusionPolicy, PolicyConfig
from diffusion.prompts import DataConfig, read_prompts
from diffusion.sampling import SamplingConfig
from mmrl.cli import main
from mmrl.config import load
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.testing import check_collector
from mmrl.types import Samples
from rewards.compose import Part, WeightedSum
from rewards.functions import Function
from rewards.pictures import Compressibility
from tests.tiny_pipelines import make

CONFIG = """\
experiment: diffusion
policy: {policy}
data: {{train: train.txt, eval: held_out.txt}}
rewards:
  small: {{use: rewards.pictures.Compressibility}}
  bright: {{use: own_picture_reward.bright, weight: 0.5}}
algorithm:
  advantage: mmrl.advantages.GroupRelative
  surrogate: {{class_path: mmrl.surrogates.PPOClip, init_args: {{clip_low: 1.0e-4, clip_high: 1.0e-4}}}}
  aggregate: mmrl.aggregates.TokenMean
  regularisers: [{{class_path: mmrl.regularisers.K3, init_args: {{coef: 0.01}}}}]
sampling: {sampling}
rollout: {{prompts: 2, group: 3}}
train: {{steps: 3, lr: 1.0e-3, update: {{micro_rows: 4}}}}
evaluate: {{every: 2, samples: 2, metrics: {{dark: own_picture_reward.dark}}}}
save: {{every: 1, keep: 3, best: dark}}
logging: {{progress: false}}
"""
REWARD = """\
import numpy as np
def bright(images, prompts, **row):
    return [float(np.asarray(image).mean()) / 255 for image in images]
def dark(images, prompts, metadata):
    return [float((np.asarray(image) < 64).mean()) for image in images], {}
"""
METHODS = {
    "rlcm": ("sd", "scheduler: LCMScheduler", "{steps: 4, guidance: 1.0, size: [16, 16]}"),
    "ddpo": ("sd", "adapter: {rank: 4, alpha: 8}", "{steps: 4, guidance: 3.0, size: [16, 16]}"),
    "flow_grpo": ("sd3", "adapter: {rank: 4, alpha: 8}", "{steps: 4, train_steps: 2, size: [16, 16], extra: {max_sequence_length: 8}}"),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    for kind in ("sd", "sd3"):
        make(kind, folder / kind)
    return folder


@pytest.fixture
def project(tmp_path, models, monkeypatch):
    (tmp_path / "train.txt").write_text("a red cat\na blue dog\n\na red dog\n")
    (tmp_path / "held_out.txt").write_text("a blue cat\na cat\n")
    (tmp_path / "own_picture_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)

    def write(method: str) -> Path:
        kind, more, sampling = METHODS[method]
        text = CONFIG.format(policy=f"{{model: {models / kind}, {more}}}", sampling=sampling)
        (tmp_path / f"{method}.yaml").write_text(text)
        return tmp_path / f"{method}.yaml"

    return write


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_a_config_and_resumes_to_the_same_numbers(project, method, tmp_path):
    config = str(project(method))
    assert main(["train", config, "--run", "whole"]) == 0
    summary = json.loads(Path("whole/summary.json").read_text())
    assert summary["parity"]["logprob_diff_max"] < 1e-5
    assert summary["parity"]["first_pass_ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert {"reward", "reward_small", "reward_bright", "dark"} <= set(summary["eval_after"])
    lines = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "update/kl" in line]
    assert abs(trained[0]["update/kl"]) < 1e-6
    assert trained[-1]["update/grad_norm"] > 0
    assert main(["train", config, "--run", "halves", "train.steps=1"]) == 0
    assert main(["train", "--run", "halves", "--resume", "train.steps=3"]) == 0
    again = json.loads(Path("halves/summary.json").read_text())
    assert again["eval_after"] == summary["eval_after"]
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "from the same noise each time" in page
    assert "✗ wrong" not in page


@pytest.mark.parametrize("words", [["--merge"], []])
def test_the_result_draws_the_same_in_a_plain_pipeline(project, words):
    config = project("ddpo")
    assert main(["train", str(config), "--run", "run", "train.lr=0.05"]) == 0
    assert main(["export", "run", "--to", "out", "--checkpoint", "latest", *words]) == 0
    base = load("run/config.yaml").experiment.policy
    plain = DiffusionPipeline.from_pretrained("out" if words else base.model)
    if not words:
        plain.load_lora_weights("out")
    trained, start = DiffusionPolicy.load(base), DiffusionPolicy.load(base)
    trained.load_weights(Path("run/checkpoints/step_000003/policy"))

    def drawn(pipeline) -> torch.Tensor:
        options = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "latent"}
        with torch.no_grad():
            return pipeline("a red cat", generator=torch.Generator().manual_seed(0), **options).images

    ours = drawn(trained.pipeline)
    assert torch.allclose(drawn(plain), ours, atol=1e-4)
    assert float((drawn(start.pipeline) - ours).abs().max()) > 1e-3
    assert "load_lora_weights" in Path("out/README.md").read_text() or words


def test_a_watched_metric_stops_the_run(project):
    config = project("rlcm")
    rule = "stop=[{metric: dark, above: -1.0, then: keep_best}]"
    assert main(["train", str(config), "--run", "run", rule]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["steps"] == 2  # the first evaluation after the start
    assert "eval/dark is" in summary["stopped_by"]
    assert summary["kept_step"] in (0, 2)


def test_the_collector_keeps_its_contract(models):
    policy = DiffusionPolicy.load(PolicyConfig(str(models / "sd"), scheduler="LCMScheduler")).eval()
    runtime = Runtime(RuntimeConfig(device="cpu"), 0)
    reward = WeightedSum({"small": Part(Compressibility())})
    asked = read_prompts_of("a", "b", "c")
    config, sampling = RolloutConfig(2, 2), SamplingConfig(3, 1.0, (16, 16))
    collector = PictureCollector(asked, reward, config, sampling, runtime)
    check_collector(collector, policy, lambda: torch.Generator().manual_seed(0))
    rollout = collector.collect(policy, torch.Generator().manual_seed(0))
    assert rollout.mask.sum(-1).tolist() == [2] * 4
    assert bool((rollout.rewards[:, -1] < 0).all())


def read_prompts_of(*texts: str):
    from diffusion.prompts import Asked

    return [Asked(text, text) for text in texts]


def test_prompts_are_refused_by_line(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text('{"prompt": "a cat", "style": "ink"}\n{"text": "b"}\n{broken\n')
    with pytest.raises(ValueError, match=r"2 lines are refused: line 2 \(no 'prompt' in it\), line 3 \(not JSON"):
        read_prompts(str(file), "data.train")
    file.write_text('{"prompt": "a cat", "style": "ink"}\n')
    assert read_prompts(str(file), "data.train")[0].columns == {"style": "ink"}
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="is empty"):
        read_prompts(str(tmp_path / "empty.txt"), "data.eval")
    with pytest.raises(FileNotFoundError, match="data.eval"):
        read_prompts(str(tmp_path / "none.txt"), "data.eval")
    (tmp_path / "same.txt").write_text("a cat\n")
    with pytest.raises(ValueError, match="1 prompts stand both"):
        DataConfig(str(file), str(tmp_path / "same.txt")).read()


def test_plain_functions_get_pictures_and_prompts(tmp_path, monkeypatch):
    (tmp_path / "picture_functions.py").write_text(REWARD)
    monkeypatch.syspath_prepend(str(tmp_path))
    samples = Samples([Image.new("RGB", (4, 4), (255, 255, 255)), Image.new("RGB", (4, 4))], {"prompt": ["a", "b"]})
    assert Function("picture_functions.bright")(samples).values.tolist() == [1.0, 0.0]
    assert Function("picture_functions.dark")(samples).values.tolist() == [0.0, 1.0]
