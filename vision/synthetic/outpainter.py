"""Makes the small outpainting pipeline of assets/: StableDiffusionInpaintPipeline's own classes at about 1.3 million
parameters, from nothing, on digits before the backgrounds of `vision.backdrops`.

First the autoencoder (four pixels to a latent), then the denoiser together with its text encoder: it sees the noisy
latents, the mask of what is to be painted and the latents of the object alone, and predicts the velocity
sqrt(a) noise - sqrt(1 - a) latents (Salimans and Ho, arXiv 2202.00512, appendix D) at terminal SNR 0 (arXiv
2305.08891).

    python -m vision.synthetic.outpainter [FOLDER]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import interpolate, mse_loss
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from mmrl.runtime import Runtime, RuntimeConfig
from vision.backdrops import background, vocabulary
from vision.data import Placed
from vision.embedded import train_tokenizer
from vision.synthetic.outpainting import Outpainting

SIZE, TOKENS, WIDTH = 32, 8, 64
PICTURES, ROWS = 12_000, 32
AUTOENCODER_STEPS, DENOISER_STEPS = 1200, 2500
AUTOENCODER_LR, DENOISER_LR = 3e-3, 1e-3
SEED = 0


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor, list[str]]:
    """Training digits before backgrounds (N, 3, Y, X) in -1..1, what is to be painted (N, 1, Y, X), and words."""
    objects = Placed(count=1400, scale=(0.6, 0.95)).examples()
    chance, words = np.random.default_rng(seed), vocabulary()
    chosen = [words[int(chance.integers(len(words)))] for _ in range(count)]
    whole, painted = [], []
    for description in chosen:
        one = objects[int(chance.integers(len(objects)))]
        mask = np.asarray(one.columns["mask"])
        behind = background(description, SIZE, chance)
        whole.append(np.where(mask[..., None], np.asarray(one.pictures()[0]), behind))
        painted.append(~mask)
    pixels = torch.from_numpy(np.stack(whole)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return pixels, torch.from_numpy(np.stack(painted))[:, None].float(), chosen


def new_pipeline() -> StableDiffusionInpaintPipeline:
    """Randomly initialised."""
    tokenizer = train_tokenizer(vocabulary(), 320)
    tokenizer.model_max_length, tokenizer.padding_side = TOKENS, "right"
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=TOKENS, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    autoencoder = AutoencoderTiny(
        encoder_block_out_channels=(24, 24, 24), decoder_block_out_channels=(24, 24, 24),
        num_encoder_blocks=(1, 1, 2), num_decoder_blocks=(2, 1, 1), latent_channels=4, upsampling_scaling_factor=2,
    )  # fmt: skip
    denoiser = UNet2DConditionModel(
        sample_size=SIZE // 4, in_channels=9, out_channels=4, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=16, norm_num_groups=8,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        timestep_spacing="trailing", rescale_betas_zero_snr=True, clip_sample=False,
    )  # fmt: skip
    return StableDiffusionInpaintPipeline(
        autoencoder, CLIPTextModel(text), tokenizer, denoiser, scheduler, None, None, requires_safety_checker=False
    )  # fmt: skip


def fit_autoencoder(autoencoder: AutoencoderTiny, pixels: Tensor, chance: torch.Generator) -> float:
    """Train it; returns the PSNR in dB of the last 500 pictures, which it has not seen."""
    optimizer = torch.optim.AdamW(autoencoder.parameters(), AUTOENCODER_LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, AUTOENCODER_LR, AUTOENCODER_STEPS)
    for _ in tqdm(range(AUTOENCODER_STEPS), "autoencoder", mininterval=10):
        some = pixels[torch.randint(len(pixels) - 500, (ROWS,), generator=chance)]
        loss = mse_loss(autoencoder.decode(autoencoder.encode(some).latents).sample, some)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        rest = pixels[-500:]
        error = mse_loss(autoencoder.decode(autoencoder.encode(rest).latents).sample.clamp(-1, 1), rest)
        deviation = torch.cat([autoencoder.encode(part).latents for part in pixels[:2000].split(200)]).std()
    autoencoder.register_to_config(scaling_factor=round(1 / float(deviation), 4))
    return round(10 * float(torch.log10(4.0 / error)), 2)


def fit_denoiser(
    pipeline: StableDiffusionInpaintPipeline, pixels: Tensor, painted: Tensor, words: list[str], chance: torch.Generator
) -> float:
    """Train it and its text encoder; returns the mean loss of the last 200 steps."""
    unet, text, scheduler = pipeline.unet, pipeline.text_encoder, pipeline.scheduler
    scale = pipeline.vae.config.scaling_factor
    with torch.no_grad():
        clean = scale * torch.cat([pipeline.vae.encode(part).latents for part in pixels.split(200)])
        alone = pixels * (painted < 0.5)
        known = scale * torch.cat([pipeline.vae.encode(part).latents for part in alone.split(200)])
    mask = interpolate(painted, size=clean.shape[-2:])
    tokens = pipeline.tokenizer(words, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    weights = [*unet.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(weights, DENOISER_LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, DENOISER_LR, DENOISER_STEPS)
    losses = []
    for _ in tqdm(range(DENOISER_STEPS), "denoiser", mininterval=10):
        some = torch.randint(len(clean), (ROWS,), generator=chance)
        time_ = torch.randint(scheduler.config.num_train_timesteps, (ROWS,), generator=chance)
        noise = torch.randn(clean[some].shape, generator=chance)
        noisy = scheduler.add_noise(clean[some], noise, time_)
        said = text(tokens.input_ids[some])[0]
        found = unet(torch.cat([noisy, mask[some], known[some]], 1), time_, said).sample
        loss = mse_loss(found, scheduler.get_velocity(clean[some], noise, time_))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return round(sum(losses[-200:]) / len(losses[-200:]), 4)


def make(folder: Path) -> dict[str, object]:
    """Train all of it and write it to `folder`; returns what it is and what it cost."""
    runtime = Runtime(RuntimeConfig(device="cpu"), SEED)  # on the CPU, so that it is the same everywhere
    began, chance = time.process_time(), runtime.generator("outpainter")
    pipeline = new_pipeline()
    pixels, painted, words = pictures(PICTURES, SEED)
    psnr = fit_autoencoder(pipeline.vae, pixels, chance)
    loss = fit_denoiser(pipeline, pixels, painted, words, chance)
    pipeline.save_pretrained(folder)
    parts = {"vae": pipeline.vae, "unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    found: dict[str, object] = {
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "autoencoder_psnr_db": psnr, "denoiser_loss": loss, "seed": SEED,
        "cpu_s": round(time.process_time() - began, 1),
    }  # fmt: skip
    (folder / "warmup.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    print(make(Path(sys.argv[1] if len(sys.argv) > 1 else Outpainting().pipeline)))
