"""Tiny random-weight but real diffusers pipelines, saved for `DiffusionPipeline.from_pretrained`."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

KINDS = ("sd", "lcm", "sdxl", "sd3", "flux")
WORDS = ("a", "red", "cat", "blue", "dog")


def clip_tokenizer() -> CLIPTokenizer:
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(
        vocab={t: n for n, t in enumerate(tokens)}, merges=[], model_max_length=24, pad_token="<|endoftext|>"
    )


def clip_config(tokens: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=24, projection_dim=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


def vae(channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels, norm_num_groups=4, layers_per_block=1, sample_size=16, shift_factor=0.1,
    )  # fmt: skip


def unet(cross: int = 16, **more: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=cross, attention_head_dim=4, norm_num_groups=4, **more,
    )  # fmt: skip


ALPHAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def make(kind: str, folder: Path) -> None:
    """Write a tiny pipeline to `folder`."""
    torch.manual_seed(0)
    {"sd": _sd, "lcm": _lcm, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}[kind]().save_pretrained(folder)


def _sd() -> StableDiffusionPipeline:
    tokens = clip_tokenizer()
    return StableDiffusionPipeline(
        vae(), CLIPTextModel(clip_config(tokens)), tokens, unet(), DDIMScheduler(**ALPHAS, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _lcm() -> LatentConsistencyModelPipeline:
    tokens = clip_tokenizer()
    return LatentConsistencyModelPipeline(
        vae(), CLIPTextModel(clip_config(tokens)), tokens, unet(time_cond_proj_dim=32),
        LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl() -> StableDiffusionXLPipeline:
    tokens = clip_tokenizer()
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 40,
    }
    return StableDiffusionXLPipeline(
        vae(), CLIPTextModel(clip_config(tokens)), CLIPTextModelWithProjection(clip_config(tokens)), tokens, tokens,
        unet(cross=32, **added), EulerDiscreteScheduler(**ALPHAS),
    )  # fmt: skip


def _sd3() -> StableDiffusion3Pipeline:
    tokens = clip_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    first, second = (CLIPTextModelWithProjection(clip_config(tokens)) for _ in range(2))
    return StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), vae(), first, tokens, second, tokens, None, None
    )


def _flux() -> FluxPipeline:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens = clip_tokenizer()
    words = Tokenizer(
        models.WordLevel({t: n for n, t in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    t5_tokens = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    t5 = T5EncoderModel(T5Config(vocab_size=16, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2))
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae(), CLIPTextModel(clip_config(tokens)), tokens,
        t5, t5_tokens, transformer,
    )  # fmt: skip
