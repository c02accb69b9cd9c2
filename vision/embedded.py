"""The small real model that ships with mmrl: Qwen2.5-VL's own classes at about 0.7 million parameters.

Made from nothing here, warmed up by `mmrl warmup`, saved and loaded by `from_pretrained`. Its vocabulary is
a byte-pair encoding trained on the texts it will read and write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|im_start|>{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


@dataclass(frozen=True)
class EmbeddedConfig:
    """Sizes of a small Qwen2.5-VL. `image_size` and `patch` in pixels; 2 x 2 patches make one token."""

    hidden: int = 96
    layers: int = 2
    vision_layers: int = 2
    heads: int = 4
    patch: int = 8
    image_size: int = 32
    vocabulary: int = 512


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over `texts`, in which tags and special tokens are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(list(TAGS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        additional_special_tokens=[s for s in SPECIAL if s not in ("<|im_end|>", "<|endoftext|>")],
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )  # fmt: skip


def build(
    config: EmbeddedConfig, texts: Sequence[str], seed: int
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """A randomly initialised model and its processor."""
    tokenizer = train_tokenizer(texts, config.vocabulary)
    pixels = config.image_size**2
    size = {"shortest_edge": pixels, "longest_edge": pixels}
    pictures = Qwen2VLImageProcessor(patch_size=config.patch, merge_size=2, temporal_patch_size=2, size=size)
    videos = Qwen2VLVideoProcessor(patch_size=config.patch, merge_size=2, temporal_patch_size=2, size=size)
    processor = Qwen2_5_VLProcessor(pictures, tokenizer, videos, chat_template=CHAT_TEMPLATE)
    token = tokenizer.convert_tokens_to_ids
    half_head = config.hidden // config.heads // 2
    sections = [half_head - 2 * (half_head // 3), half_head // 3, half_head // 3]
    model_config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": config.hidden, "intermediate_size": 3 * config.hidden,
            "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
            "num_key_value_heads": config.heads // 2, "max_position_embeddings": 1024, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections},
            "eos_token_id": token("<|im_end|>"), "pad_token_id": token("<|endoftext|>"), "bos_token_id": None,
        },
        vision_config={
            "depth": config.vision_layers, "hidden_size": config.hidden, "intermediate_size": 3 * config.hidden,
            "num_heads": config.heads, "patch_size": config.patch, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "out_hidden_size": config.hidden, "window_size": 4 * config.patch,
            "fullatt_block_indexes": list(range(config.vision_layers)),
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(model_config)
    model.generation_config.eos_token_id = token("<|im_end|>")
    return model, processor


def save(config: EmbeddedConfig, texts: Sequence[str], seed: int, folder: Path) -> None:
    """Write a fresh model where `from_pretrained` finds it."""
    model, processor = build(config, texts, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
