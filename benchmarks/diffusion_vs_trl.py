"""CPU seconds per RL step of DDPO beside TRL's DDPOTrainer, on the same pipeline and rewards.

A step is 4 prompts x 8 pictures of 64 pixels in 10 DDIM steps, guidance 3 in sampling and in training, JPEG size as
reward, LoRA of rank 4 on the attention of the denoiser, and 2 optimiser steps of 16 pictures each with every denoise
step trained. No KL, no row skipped: what goes through the denoiser is counted, and has to be the same in every arm. One
thread, float32. Median CPU seconds of a step after an unmeasured one; repeats in turn, each a process of its own.

TRL is 0.23.1, the last that has a DDPOTrainer, at its default train_batch_size of 1 and at larger ones up to 16, the
most that 2 optimiser steps of 32 pictures allow. All 32 are sampled in one batch, which its default is not. Ours is
`mmrl` at the default micro_rows and micro_steps: one backward pass for the 16 x 10 denoise steps of an optimiser step,
so it saves calls and takes more memory. `mmrl_16` has 16 at a time, the same calls and memory as TRL's largest.

The ratios depend on the pipeline, whose weights are random. `--shape deep`, the default, is SD 1.5's topology made
narrow with 8 x 8 latents: a call costs much beside its arithmetic. `--shape wide` is shallow with 16 x 16 latents:
arithmetic dominates. `wide` was tried first, one run an arm: TRL 14.2 s at batch size 1, 9.2 at 8, 9.6 at 16, and 9.4
for `mmrl_16`, so 1.5 over TRL's default and nothing (0.97) over its best. `deep` was chosen after that was seen.

    python -m benchmarks.diffusion_vs_trl [--shape wide]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

TRL = "trl==0.23.1"
SIDE = Path(__file__).resolve().parents[1] / "build" / TRL.replace("==", "-")
PROMPTS = tuple(f"a picture of {thing}" for thing in ("a red cat", "a blue dog", "two green birds", "the sea"))
GROUP, DENOISE, GUIDANCE, UPDATES, RANK = 8, 10, 3.0, 2, 4
SAMPLES = len(PROMPTS) * GROUP
DEFAULT, BATCHES = 1, (1, 8, 16)  # of TRL
STEPS, UNMEASURED, REPEATS = 1, 1, 3
TRL_ARMS, OUR_ARMS = tuple(f"trl_{size}" for size in BATCHES), ("mmrl", "mmrl_16")
ARMS = TRL_ARMS + OUR_ARMS
PHASES = ("sampling", "training")
WORK = {"sampled": 2 * SAMPLES * DENOISE, "trained": 2 * SAMPLES * DENOISE, "updates": UPDATES}  # 2: guidance


@dataclass(frozen=True)
class Shape:
    """Of a denoiser and its autoencoder."""

    latent: int
    channels: tuple[int, ...]
    layers: int
    vae_channels: tuple[int, ...]


SHAPES = {"deep": Shape(8, (16, 32, 32, 32), 2, (8, 16, 16, 16)), "wide": Shape(16, (32, 64), 1, (8, 16, 16))}


def make_pipeline(folder: Path, wanted: Shape) -> None:
    """A Stable Diffusion pipeline of random weights, with SD 1.5's schedule: its last step has noise, so that all 10
    are decisions for both."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77,
        pad_token="<|endoftext|>",
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    blocks, vae_blocks = len(wanted.channels), len(wanted.vae_channels)
    unet = UNet2DConditionModel(
        sample_size=wanted.latent, in_channels=4, out_channels=4, block_out_channels=wanted.channels,
        layers_per_block=wanted.layers, cross_attention_dim=32, attention_head_dim=2, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",) * (blocks - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (blocks - 1),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=wanted.vae_channels, down_block_types=("DownEncoderBlock2D",) * vae_blocks,
        up_block_types=("UpDecoderBlock2D",) * vae_blocks, latent_channels=4, norm_num_groups=8, layers_per_block=1,
        sample_size=64,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
        set_alpha_to_one=False,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


class Work:
    """Counts latents that go through a denoiser, with and without gradient, and optimiser steps."""

    def __init__(self, denoiser: object, optimizer: object) -> None:
        self.counts = dict.fromkeys(WORK, 0)
        denoiser.conv_in.register_forward_pre_hook(self._forward)  # takes the latents by position in both
        optimizer.register_step_post_hook(self._step)

    def _forward(self, module: object, arguments: tuple) -> None:
        import torch

        self.counts["trained" if torch.is_grad_enabled() else "sampled"] += len(arguments[0])

    def _step(self, *_: object) -> None:
        self.counts["updates"] += 1


def run_mmrl(folder: Path, small: bool) -> dict[str, object]:
    import torch

    from diffusion.adapters import LoRA
    from diffusion.collector import PictureCollector, RolloutConfig
    from diffusion.policy import DiffusionPolicy, PolicyConfig
    from diffusion.prompts import Asked
    from diffusion.sampling import SamplingConfig
    from mmrl.advantages import GroupRelative
    from mmrl.aggregates import TokenMean
    from mmrl.algorithm import Algorithm
    from mmrl.batching import UpdateConfig
    from mmrl.parts import Parts
    from mmrl.runtime import Runtime, RuntimeConfig
    from mmrl.settings import EvaluateConfig, LoggingConfig, TrainConfig
    from mmrl.surrogates import PPOClip
    from mmrl.trainer import Trainer
    from mmrl.types import Evaluator
    from rewards.pictures import Compressibility

    class Untied(Compressibility):
        """A picture of exactly the mean size of its group would have advantage 0, and be skipped."""

        def __call__(self, samples):
            scores = super().__call__(samples)
            return replace(scores, values=scores.values + 1e-5 * torch.arange(len(samples)))

    class Nothing(Evaluator):
        def evaluate(self, policy, generator):
            return {}

        def samples(self, policy, generator, folder, count):
            return None

    runtime = Runtime(RuntimeConfig(device="cpu", threads=1), 0)
    policy = DiffusionPolicy.load(PolicyConfig(str(folder), adapter=LoRA(rank=RANK, alpha=RANK)))
    asked = [Asked(str(number), prompt) for number, prompt in enumerate(PROMPTS)]
    collector = PictureCollector(
        asked, Untied(), RolloutConfig(len(PROMPTS), GROUP), SamplingConfig(DENOISE, GUIDANCE), runtime
    )
    update = UpdateConfig(minibatches=UPDATES)
    if small:
        update = replace(update, micro_rows=SAMPLES // UPDATES, micro_steps=1)
    trainer = Trainer(
        Parts(policy, collector, Nothing(), Algorithm(GroupRelative(), PPOClip(1e-4, 1e-4), TokenMean())),
        TrainConfig(steps=STEPS + UNMEASURED, lr=3e-4, update=update), runtime,
        evaluate=EvaluateConfig(None), logging=LoggingConfig(progress=False),
    )  # fmt: skip
    spent = dict.fromkeys(PHASES, 0.0)
    _timed(collector, "collect", spent)
    work = Work(policy.denoiser, trainer.optimizer)
    return _measure(trainer.step, spent, work, sum(p.numel() for p in policy.denoiser.parameters()))


def run_trl(folder: Path, batch: int) -> dict[str, object]:
    import torch
    from accelerate import PartialState
    from PIL import Image

    sys.path.insert(0, str(SIDE))  # before a TRL of the environment
    PartialState()  # its logger needs one before there is an Accelerator
    from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

    torch.set_num_threads(1)
    prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
    drawn = iter(prompts * (STEPS + UNMEASURED))

    def reward(images, prompts, metadata):
        pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return torch.tensor([-_kilobytes(Image.fromarray(picture)) for picture in pixels]), {}

    config = DDPOConfig(
        mixed_precision="no", accelerator_kwargs={"cpu": True}, save_freq=10**6, sample_num_steps=DENOISE,
        sample_guidance_scale=GUIDANCE, sample_batch_size=SAMPLES, sample_num_batches_per_epoch=1,
        train_batch_size=batch, train_gradient_accumulation_steps=SAMPLES // UPDATES // batch,
    )  # fmt: skip
    pipeline = DefaultDDPOStableDiffusionPipeline(str(folder))
    trainer = DDPOTrainer(config, reward, lambda: (next(drawn), {}), pipeline)
    pipeline.set_progress_bar_config(disable=True)
    spent = dict.fromkeys(PHASES, 0.0)
    _timed(trainer, "_generate_samples", spent)
    _timed(trainer, "compute_rewards", spent)
    work, epochs = Work(pipeline.unet, trainer.optimizer.optimizer), iter(range(STEPS + UNMEASURED))
    parameters = sum(p.numel() for p in pipeline.unet.parameters())
    return _measure(lambda: trainer.step(next(epochs), 0), spent, work, parameters)


def _kilobytes(picture) -> float:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return len(buffer.getvalue()) / 1000


def _timed(owner: object, name: str, spent: dict[str, float]) -> None:
    """Add the CPU seconds of every call of owner.name to the sampling."""
    inner = getattr(owner, name)

    def timed(*args: object, **kwargs: object) -> object:
        before = time.process_time()
        try:
            return inner(*args, **kwargs)
        finally:
            spent["sampling"] += time.process_time() - before

    setattr(owner, name, timed)


def _measure(step, spent: dict[str, float], work: Work, parameters: int) -> dict[str, object]:
    """Every step timed; those after the unmeasured ones count."""
    found: list[dict[str, float]] = []
    for _ in range(STEPS + UNMEASURED):
        spent["sampling"], work.counts = 0.0, dict.fromkeys(WORK, 0)
        before = time.process_time()
        step()
        total = time.process_time() - before
        if work.counts != WORK:
            raise RuntimeError(f"a step did {work.counts}, and {WORK} is what is compared")
        found.append({"total": total, "sampling": spent["sampling"], "training": total - spent["sampling"]})
    kept = found[UNMEASURED:]
    return {"denoiser_parameters": parameters, **{n: statistics.median(s[n] for s in kept) for n in found[0]}}


def install_trl() -> None:
    """Put TRL into a folder of its own, without what it depends on: that is there."""
    if (SIDE / "trl").is_dir():
        return
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is not None:
        command = [uv, "pip", "install", "--python", sys.executable]
    else:
        command = [sys.executable, "-m", "pip", "install"]
    subprocess.run([*command, "--quiet", "--no-deps", "--target", str(SIDE), TRL], check=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=SHAPES, default="deep")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    if options.arm:
        name, _, size = options.arm.partition("_")
        ran = run_trl(options.folder, int(size)) if name == "trl" else run_mmrl(options.folder, small=bool(size))
        print("RESULT " + json.dumps(ran))
        return
    from benchmarks.common import spread, write

    install_trl()
    with tempfile.TemporaryDirectory() as folder:
        make_pipeline(Path(folder), SHAPES[options.shape])
        results: dict[str, list[dict]] = {arm: [] for arm in ARMS}
        for repeat in range(options.repeats):
            for arm in ARMS:
                found = _subprocess(arm, folder)
                results[arm].append(found)
                print(f"repeat {repeat} {arm}: " + json.dumps(found), flush=True)
    totals = {arm: [r["total"] for r in results[arm]] for arm in ARMS}
    best = min(TRL_ARMS, key=lambda arm: statistics.median(totals[arm]))
    ratios = {
        f"{trl}/{our}": [t / m for t, m in zip(totals[trl], totals[our], strict=True)]
        for trl in TRL_ARMS
        for our in OUR_ARMS
    }
    write("diffusion_vs_trl" if options.shape == "deep" else f"diffusion_vs_trl_{options.shape}", {
        "what": __doc__.split("\n")[0], "shape_note": __doc__.split("\n\n")[3],
        "ratio_trl_over_mmrl": round(statistics.median(ratios[f"{best}/mmrl"]), 3),
        "ratio_trl_default_over_mmrl": round(statistics.median(ratios[f"trl_{DEFAULT}/mmrl"]), 3),
        "ratio_trl_over_mmrl_16": round(statistics.median(ratios[f"{best}/mmrl_16"]), 3),
        "trl_best_batch_size": int(best.removeprefix("trl_")), "trl_default_batch_size": DEFAULT,
        "ratios": {pair: spread(values) for pair, values in ratios.items()},
        "cpu_s_per_step": {arm: spread(totals[arm]) for arm in ARMS},
        "phases": {arm: {p: spread([r[p] for r in results[arm]]) for p in PHASES} for arm in ARMS},
        "setting": {"denoiser_parameters": results["mmrl"][0]["denoiser_parameters"], "trl": TRL,
                    "samples": SAMPLES, "prompts": len(PROMPTS), "denoise_steps": DENOISE, "guidance": GUIDANCE,
                    "lora_rank": RANK, "image": 64, "shape": asdict(SHAPES[options.shape]),
                    "work_per_step": WORK, "threads": 1, "steps": STEPS, "unmeasured": UNMEASURED,
                    "repeats": options.repeats},
    })  # fmt: skip


def _subprocess(arm: str, folder: str) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "benchmarks.diffusion_vs_trl", "--arm", arm, "--folder", folder]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"{arm} failed:\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}")
    return json.loads(lines[0].removeprefix("RESULT "))


if __name__ == "__main__":
    main()
