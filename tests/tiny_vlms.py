"""Tiny random-weight but real vision-language models of several architectures, saved for `from_pretrained`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from vision import embedded

ARCHITECTURES = ("qwen2_5_vl", "qwen3_vl", "smolvlm", "llava_onevision")
TEXTS = ["Which digit is it? Please directly output the answer.", "<think>even</think><answer>two</answer>"] * 4
TEMPLATE = (
    "{{% for message in messages %}}{{% for part in message['content'] %}}"
    "{{% if part['type'] == 'image' %}}{image}{{% elif 'text' in part %}}{{{{ part['text'] }}}}{{% endif %}}"
    "{{% endfor %}}<|im_end|>{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>{{% endif %}}"
)


def make(architecture: str, folder: Path) -> None:
    """Write a tiny model of `architecture` and its processor to `folder`."""
    torch.manual_seed(0)
    if architecture == "qwen2_5_vl":
        config = embedded.EmbeddedConfig(hidden=32, layers=2, vision_layers=1, image_size=32)
        embedded.save(config, TEXTS, 0, folder)
        return
    config, processor = {"qwen3_vl": _qwen3, "smolvlm": _smolvlm, "llava_onevision": _llava}[architecture]()
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _tokenizer(*more: str) -> PreTrainedTokenizerFast:
    tokenizer = embedded.train_tokenizer(TEXTS, 400)
    tokenizer.add_special_tokens({"additional_special_tokens": list(more)}, replace_extra_special_tokens=False)
    return tokenizer


def _text(tokenizer: PreTrainedTokenizerFast, **more: object) -> dict:
    return {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 8,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, **more,
    }  # fmt: skip


def _qwen3() -> tuple:
    tokenizer = _tokenizer()
    token = tokenizer.convert_tokens_to_ids
    size = {"shortest_edge": 1024, "longest_edge": 1024}
    pictures = Qwen2VLImageProcessor(patch_size=8, merge_size=2, temporal_patch_size=2, size=size)
    videos = Qwen2VLVideoProcessor(patch_size=8, merge_size=2, temporal_patch_size=2, size=size)
    template = TEMPLATE.format(image="<|vision_start|><|image_pad|><|vision_end|>")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=_text(tokenizer, rope_parameters=rope),
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 8,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
    )  # fmt: skip
    return config, Qwen3VLProcessor(pictures, tokenizer, videos, chat_template=template)


def _smolvlm() -> tuple:
    tokenizer = _tokenizer("<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<end_of_utterance>")
    size = {"longest_edge": 32}
    pictures = SmolVLMImageProcessor(size=size, max_image_size=size, do_image_splitting=False)
    videos = SmolVLMVideoProcessor(
        size=size, max_image_size=size, video_sampling={"fps": 1, "max_frames": 2, "video_size": size}
    )
    processor = SmolVLMProcessor(
        pictures, tokenizer, videos, image_seq_len=4, chat_template=TEMPLATE.format(image="<|image_pad|>")
    )
    config = SmolVLMConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        scale_factor=2, image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return config, processor


def _llava() -> tuple:
    tokenizer = _tokenizer()
    pictures = LlavaOnevisionImageProcessor(
        size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 32], [32, 64], [64, 32]]
    )
    videos = LlavaOnevisionVideoProcessor(size={"height": 32, "width": 32})
    processor = LlavaOnevisionProcessor(
        pictures, tokenizer, videos, num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=TEMPLATE.format(image="<|image_pad|>"),
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        image_grid_pinpoints=[[32, 32], [32, 64], [64, 32]], vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )  # fmt: skip
    return config, processor
