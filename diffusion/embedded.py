"""The small real pipelines that ship with mmrl: diffusers' own classes at 2 to 3 million parameters, for 32 x 32
pictures.

One autoencoder (AutoencoderTiny, 16 channels at 8 x 8) serves both: a Stable Diffusion pipeline whose UNet predicts the
clean latent, so that it is a diffusion model and, as it is, a consistency model; and a Stable Diffusion 3 pipeline.
"""

from __future__ import annotations

from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from rewards.pictures.small_clip import CONTEXT

CHANNELS, SIDE, WIDTH = 16, 8, 64
"""Of a latent, its side, and of a text vector."""
UNREAD = 1
"""`max_sequence_length` of a Stable Diffusion 3 pipeline without a T5, which puts so many empty tokens in its place."""
ALPHAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def autoencoder(channels: int = 32) -> AutoencoderTiny:
    """A new one. Its residual blocks start as the identity: it would else take several times as long to train."""
    model = AutoencoderTiny(
        encoder_block_out_channels=(channels,) * 3, decoder_block_out_channels=(channels,) * 3,
        latent_channels=CHANNELS, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(3, 1, 1),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in model.modules():
        if isinstance(block, AutoencoderTinyBlock):
            nn.init.zeros_(block.conv[-1].weight)
    return model


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """Two layers of 64."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=CONTEXT, projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def stable_diffusion(vae: AutoencoderTiny, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """A new one around `vae`, with DDIM's scheduler."""
    unet = UNet2DConditionModel(
        sample_size=SIDE, in_channels=CHANNELS, out_channels=CHANNELS, block_out_channels=(64, 96), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=16, norm_num_groups=8,
    )  # fmt: skip
    scheduler = DDIMScheduler(**ALPHAS, prediction_type="sample", clip_sample=False, steps_offset=1)
    return StableDiffusionPipeline(
        vae, CLIPTextModel(text_config(tokenizer)), tokenizer, unet, scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_3(vae: AutoencoderTiny, tokenizer: CLIPTokenizer) -> StableDiffusion3Pipeline:
    """A new one around `vae`. Its second text encoder, which the pipeline asks for, has the weights of the first."""
    width = 128
    transformer = SD3Transformer2DModel(
        sample_size=SIDE, patch_size=1, in_channels=CHANNELS, out_channels=CHANNELS, num_layers=4,
        attention_head_dim=32, num_attention_heads=width // 32, joint_attention_dim=2 * WIDTH,
        caption_projection_dim=width, pooled_projection_dim=2 * WIDTH, pos_embed_max_size=SIDE,
    )  # fmt: skip
    first, second = (CLIPTextModelWithProjection(text_config(tokenizer)) for _ in range(2))
    second.load_state_dict(first.state_dict())
    return StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=1.0), vae, first, tokenizer, second, tokenizer, None, None
    )
