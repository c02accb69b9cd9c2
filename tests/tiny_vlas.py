"""Tiny random-weight but real PI0, PI05 and SmolVLA of lerobot, with processors, statistics and a tokenizer, saved for
`from_pretrained` without a network.

SmolVLA's sizes come from a folder that its config names. Those of PI0 and PI05 stand in lerobot's code, so that they
can be made and loaded only under `small_gemmas`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pi0 import PI0Config, PI0Policy, modeling_pi0
from lerobot.policies.pi0.processor_pi0 import make_pi0_pre_post_processors
from lerobot.policies.pi05 import PI05Config, PI05Policy, modeling_pi05
from lerobot.policies.pi05.processor_pi05 import make_pi05_pre_post_processors
from lerobot.policies.smolvla import SmolVLAConfig, SmolVLAPolicy
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from lerobot.processor import TokenizerProcessorStep
from lerobot.utils.constants import ACTION, OBS_STATE
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

KINDS = ("pi0", "pi05", "smolvla")
STATE, ACTIONS = 5, 3  # of 8 and of 6 padded
WORDS = [
    "push", "pick", "lower", "the", "red", "blue", "cube", "hand", "to", "a", "goal", "Task", "State", "Action", ":", ",",
]  # fmt: skip
SPECIAL = {
    "image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """Of whole words and numbers."""
    words = ["<pad>", "<unk>", *WORDS, *map(str, range(-1, 257)), *SPECIAL.values()]
    model = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", pad_token="<pad>", extra_special_tokens=SPECIAL
    )


@contextmanager
def small_gemmas() -> Iterator[None]:
    """lerobot's PI0 and PI05 with two narrow layers of each transformer."""
    pi0 = mock.patch.multiple(modeling_pi0, **_small(modeling_pi0))
    pi05 = mock.patch.multiple(modeling_pi05, **_small(modeling_pi05))
    with pi0, pi05:
        yield


def _small(module: Any) -> dict[str, Any]:
    paligemma, gemma = module.PaliGemmaForConditionalGenerationWithPiGemma, module.PiGemmaForCausalLM

    def sizes(_: str) -> Any:
        return module.GemmaConfig(width=64, depth=2, mlp_dim=128, num_heads=8, num_kv_heads=1, head_dim=16)

    def vlm(config: Any) -> Any:
        config.text_config.vocab_size, config.image_token_id = 512, 511
        vision = config.vision_config
        vision.hidden_size, vision.intermediate_size, vision.projection_dim = 64, 128, 64
        vision.num_hidden_layers, vision.num_attention_heads = 2, 2
        config.projection_dim = 64
        return paligemma(config=config)

    def expert(config: Any) -> Any:
        config.vocab_size = 512
        return gemma(config=config)

    return {
        "get_gemma_config": sizes, "PaliGemmaForConditionalGenerationWithPiGemma": vlm, "PiGemmaForCausalLM": expert,
    }  # fmt: skip


def make(
    kind: str, folder: Path, state: int = STATE, actions: int = ACTIONS, cameras: tuple[str, ...] = ("top", "wrist"),
    stats: dict[str, dict[str, torch.Tensor]] | None = None, chunk: int = 6,
) -> Path:  # fmt: skip
    """Write a policy of `kind` to `folder`. `stats` null: some that change what they normalise."""
    torch.manual_seed(0)
    shapes = {
        "input_features": {
            OBS_STATE: PolicyFeature(FeatureType.STATE, (state,)),
            **{f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 32, 40)) for name in cameras},
        },
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (actions,))},
        "chunk_size": chunk, "n_action_steps": chunk - 2, "max_state_dim": max(8, state),
        "max_action_dim": max(6, actions), "device": "cpu", "push_to_hub": False, "tokenizer_max_length": 16,
    }  # fmt: skip
    names = folder / ("vlm" if kind == "smolvla" else "tokenizer")
    if kind == "smolvla":
        _smolvlm(names)
        config = SmolVLAConfig(
            vlm_model_name=str(names), num_steps=4, resize_imgs_with_padding=(32, 32), num_vlm_layers=2, **shapes
        )
    else:
        tokenizer().save_pretrained(names)
        shapes["tokenizer_max_length"] = 32
        config = {"pi0": PI0Config, "pi05": PI05Config}[kind](
            num_inference_steps=4, image_resolution=(28, 28), **shapes
        )
    policy = {"pi0": PI0Policy, "pi05": PI05Policy, "smolvla": SmolVLAPolicy}[kind](config)
    with torch.no_grad():  # some start at zero
        for parameter in policy.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape))
    policy.eval().save_pretrained(folder)
    for processor in _processors(kind, config, stats or statistics(state, actions), names):
        processor.save_pretrained(folder)
    return folder


def statistics(state: int, actions: int) -> dict[str, dict[str, torch.Tensor]]:
    """Means, deviations and quantiles."""
    found = {}
    for name, size, scale in ((OBS_STATE, state, 2.0), (ACTION, actions, 0.4)):
        mean = torch.linspace(-0.2, 0.3, size)
        found[name] = {"mean": mean, "std": torch.full((size,), scale), "q01": mean - scale, "q99": mean + scale}
    return found


def _processors(kind: str, config: Any, stats: dict[str, dict[str, torch.Tensor]], names: Path) -> tuple[Any, Any]:
    """lerobot's own, with the tokenizer of a folder in place of the hub's."""
    made = {
        "pi0": make_pi0_pre_post_processors, "pi05": make_pi05_pre_post_processors,
        "smolvla": make_smolvla_pre_post_processors,
    }[kind]  # fmt: skip
    local = mock.patch.object(TokenizerProcessorStep, "__post_init__", lambda step: _local(step, names))
    with local:
        found: tuple[Any, Any] = made(config, stats)
    return found


def _local(step: TokenizerProcessorStep, names: Path) -> None:
    step.tokenizer_name, step.input_tokenizer = str(names), tokenizer()


def _smolvlm(folder: Path) -> None:
    """The config, tokenizer and processor of a tiny SmolVLM; its weights are in the policy's."""
    words, size = tokenizer(), {"longest_edge": 32}
    config = SmolVLMConfig(
        text_config={
            "model_type": "llama", "vocab_size": len(words), "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        scale_factor=2, image_token_id=words.convert_tokens_to_ids("<image>"), pad_token_id=0,
    )  # fmt: skip
    config.save_pretrained(folder)
    pictures = SmolVLMImageProcessor(size=size, max_image_size=size, do_image_splitting=False)
    videos = SmolVLMVideoProcessor(
        size=size, max_image_size=size, video_sampling={"fps": 1, "max_frames": 2, "video_size": size}
    )
    SmolVLMProcessor(pictures, words, videos, image_seq_len=4).save_pretrained(folder)
