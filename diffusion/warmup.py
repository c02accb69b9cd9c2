"""Makes the small models of assets/ from nothing; of a pipeline first the autoencoder, then the denoiser together with
its text encoder.

The UNet learns the clean latent, its error weighted by sqrt(clamp(SNR, 0.2, 5)); the transformer learns the velocity of
a rectified flow, at times of logit-normal density (Stable Diffusion 3, arXiv 2403.03206).
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm import tqdm

from diffusion import embedded
from mmrl.recipes import find_asset
from mmrl.runtime import Runtime
from rewards.pictures import emoji, small_clip
from rewards.pictures.base import pixels_of
from rewards.pictures.small_clip import train_tokenizer

PER_CAPTION = 24
"""Pictures of each caption that are trained on."""


@dataclass(frozen=True)
class Fit:
    """`steps` of AdamW on `rows` pictures each; the rate rises to `lr` over 5 % of the steps and falls to 0."""

    steps: int
    rows: int
    lr: float

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rows < 1 or self.lr <= 0:
            raise ValueError(f"a warm-up has steps {self.steps}, rows {self.rows} and lr {self.lr}: give more than 0")


class Making(abc.ABC):
    """How one of the small models of assets/ is made."""

    @abc.abstractmethod
    def make(self, runtime: Runtime, folder: Path, progress: bool) -> dict[str, object]:
        """Train it and write it to `folder`; returns what it is and what it cost."""


@dataclass(frozen=True)
class SmallClip(Making):
    """A contrastive model for rewards, by open_clip."""

    steps: int = 150
    lr: float = 2e-3

    def __post_init__(self) -> None:
        Fit(self.steps, 1, self.lr)

    def make(self, runtime: Runtime, folder: Path, progress: bool) -> dict[str, object]:
        began = time.process_time()
        found = small_clip.make(folder, runtime.seed, self.steps, self.lr, progress)
        return {"warmup": asdict(self), **found, "cpu_s": round(time.process_time() - began, 1)}


@dataclass(frozen=True)
class SmallPipeline(Making):
    """A pipeline. `autoencoder` says how its autoencoder is trained, or names a pipeline whose own is taken; captions
    are left out for guidance in a share `unconditional` of the rows."""

    denoiser: Fit
    autoencoder: Fit | str = Fit(4500, 16, 6e-3)
    unconditional: float = 0.1
    ema: float = 0.995

    @abc.abstractmethod
    def pipeline(self, vae: AutoencoderTiny) -> DiffusionPipeline:
        """A new pipeline around an autoencoder."""

    @abc.abstractmethod
    def texts(self, pipeline: DiffusionPipeline, captions: list[str]) -> tuple[Tensor, ...]:
        """What the denoiser reads of each caption, with gradient."""

    @abc.abstractmethod
    def loss(self, denoiser: nn.Module, clean: Tensor, texts: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Loss on clean latents (n, C, Y, X)."""

    def make(self, runtime: Runtime, folder: Path, progress: bool) -> dict[str, object]:
        began, generator = time.process_time(), runtime.generator("warmup")
        pictures = _pixels(PER_CAPTION, seed=0)
        if isinstance(self.autoencoder, str):
            vae = DiffusionPipeline.from_pretrained(find_asset(self.autoencoder)).vae
        else:
            vae = embedded.autoencoder()
            _fit_autoencoder(vae, pictures, self.autoencoder, generator, progress)
        vae.requires_grad_(False)
        made = time.process_time()
        pipeline = self.pipeline(vae)
        self._fit_denoiser(pipeline, pictures, generator, progress)
        pipeline.save_pretrained(folder)
        modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        return {
            "warmup": asdict(self),
            "parameters": {name: _size(part) for name, part in modules.items()},
            "autoencoder_psnr_db": round(_psnr(vae, _pixels(2, seed=1)), 2),
            "cpu_s": {"autoencoder": round(made - began, 1), "denoiser": round(time.process_time() - made, 1)},
        }  # fmt: skip

    def _fit_denoiser(
        self, pipeline: DiffusionPipeline, pictures: Tensor, generator: torch.Generator, progress: bool
    ) -> None:
        latents = encoded(pipeline.vae, pictures)
        names = [
            name for name in ("unet", "transformer", "text_encoder", "text_encoder_2") if name in pipeline.components
        ]
        trained = nn.ModuleList([pipeline.components[name] for name in names])
        average = EMAModel(trained.parameters(), decay=self.ema, use_ema_warmup=True, power=0.75)
        captions = [*emoji.captions(), ""]

        def loss() -> Tensor:
            rows = torch.randint(len(latents), (self.denoiser.rows,), generator=generator)
            told = rows % (len(captions) - 1)  # pictures come caption by caption
            left_out = torch.rand(len(rows), generator=generator) < self.unconditional
            told = torch.where(left_out, len(captions) - 1, told)
            texts = tuple(found[told] for found in self.texts(pipeline, captions))
            return self.loss(trained[0], latents[rows], texts, generator)

        _fit(trained.parameters(), loss, self.denoiser, progress, lambda: average.step(trained.parameters()))
        average.copy_to(trained.parameters())


@dataclass(frozen=True)
class SmallUNet(SmallPipeline):
    """A Stable Diffusion pipeline that predicts the clean latent: for DDPO, and for RLCM without distillation."""

    def pipeline(self, vae: AutoencoderTiny) -> DiffusionPipeline:
        return embedded.stable_diffusion(vae, train_tokenizer(emoji.captions()))

    def texts(self, pipeline: DiffusionPipeline, captions: list[str]) -> tuple[Tensor, ...]:
        return (pipeline.encode_prompt(captions, pipeline.device, 1, False)[0],)

    def loss(self, denoiser: nn.Module, clean: Tensor, texts: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        start, end = embedded.ALPHAS["beta_start"], embedded.ALPHAS["beta_end"]
        alphas = (1 - torch.linspace(start**0.5, end**0.5, 1000).square()).cumprod(0)
        steps = torch.randint(1000, (len(clean),), generator=generator)
        alpha = alphas[steps].view(-1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=generator)
        found = denoiser(
            alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, steps, encoder_hidden_states=texts[0]
        ).sample
        weight = (alpha / (1 - alpha)).clamp(0.2, 5.0).sqrt()
        return (weight * (found - clean).square()).mean()


@dataclass(frozen=True)
class SmallFlow(SmallPipeline):
    """A Stable Diffusion 3 pipeline, a rectified flow: for Flow-GRPO."""

    def pipeline(self, vae: AutoencoderTiny) -> DiffusionPipeline:
        return embedded.stable_diffusion_3(vae, train_tokenizer(emoji.captions()))

    def texts(self, pipeline: DiffusionPipeline, captions: list[str]) -> tuple[Tensor, ...]:
        found = pipeline.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False, max_sequence_length=embedded.UNREAD
        )
        return found[0], found[2]

    def loss(self, denoiser: nn.Module, clean: Tensor, texts: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        times = torch.randn(len(clean), generator=generator).sigmoid()
        at = times.view(-1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=generator)
        found = denoiser(
            (1 - at) * clean + at * noise, encoder_hidden_states=texts[0], pooled_projections=texts[1],
            timestep=1000 * times,
        ).sample  # fmt: skip
        return mse_loss(found, noise - clean)


def _pixels(per_caption: int, seed: int) -> Tensor:
    """Pictures (n, 3, Y, X) in -1..1, caption by caption in the order of emoji.captions()."""
    return torch.stack([pixels_of(picture) for picture in emoji.captioned(per_caption, seed)[0]]) * 2 - 1


@torch.no_grad()
def encoded(vae: AutoencoderTiny, pictures: Tensor) -> Tensor:
    """Latents (n, C, Y, X) as a denoiser sees them."""
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    return torch.cat([(vae.encode(part).latents - shift) * scale for part in pictures.split(96)])


def _fit_autoencoder(
    vae: AutoencoderTiny, pictures: Tensor, fit: Fit, generator: torch.Generator, progress: bool
) -> None:
    """Squared error of pixels; a little noise on the latents makes the decoder forgive, and a weak pull keeps them near
    mean 0 and deviation 1, which is what a pipeline without a shift of its own can say of them."""

    def loss() -> Tensor:
        chosen = pictures[torch.randint(len(pictures), (fit.rows,), generator=generator)]
        latents = vae.encoder(chosen)
        noise = torch.randn(latents.shape, generator=generator)
        by_channel = latents.transpose(0, 1).flatten(1)
        pull = by_channel.mean(1).square().mean() + (by_channel.std(1) - 1).square().mean()
        return mse_loss(vae.decoder(latents + 0.05 * noise), chosen) + 0.01 * pull

    _fit(vae.parameters(), loss, fit, progress)
    vae.register_to_config(scaling_factor=1.0)
    vae.register_to_config(scaling_factor=round(1 / float(encoded(vae, pictures[:96]).std()), 4))


def _fit(
    parameters: Iterable[nn.Parameter], loss: Callable[[], Tensor], fit: Fit, progress: bool,
    after: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    known = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(known, fit.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, fit.lr, fit.steps, pct_start=0.05)
    with tqdm(total=fit.steps, disable=not progress, unit="step") as bar:
        for _ in range(fit.steps):
            found = loss()
            optimizer.zero_grad()
            found.backward()
            nn.utils.clip_grad_norm_(known, 1.0)
            optimizer.step()
            schedule.step()
            after()
            bar.set_postfix(loss=f"{float(found.detach()):.4f}", refresh=False)
            bar.update()


def _size(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


@torch.no_grad()
def _psnr(vae: AutoencoderTiny, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio in dB."""
    again = vae.decoder(vae.encoder(pictures)).clamp(-1, 1)
    return float(-10 * ((again - pictures) / 2).square().mean().log10())
